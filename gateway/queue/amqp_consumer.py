"""A consumer on RabbitMQ: channels on which the broker pushes, up to a window for each queue, and the leases handed out.

It lasts through lost connections: what was out is lost (`settle` says LeaseLost; the broker delivers it again, counted),
the iteration says QueueUnavailable once for each failed attempt, and goes on when the link is up.
The channels' own part, and the watch over their progress, is `queue.amqp_session`.
Of `email.send.serial` no two tickets are out at once, at the hand-over neither: a consumer that stops or pauses keeps its
subscription until its ticket is settled, and one that has none at work closes the channel, which puts back what was coming.
Release means a new copy and an acknowledgement, since RabbitMQ before 4.3 counts every return.  A client of an app, which may
not publish to queues, can only return: there a release is counted.  So is one of `email.send.serial`, which must keep its
place, and what the closed channel puts back: before 4.3 only the worker's longer patience (`queue.worker`) keeps such a
ticket from becoming a suspect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Protocol

from aio_pika import IncomingMessage
from aio_pika.abc import AbstractConnection

from gateway.errors import LeaseLost, QueueUnavailable
from gateway.queue.amqp_acks import Acks
from gateway.queue.amqp_faults import RPC_SECONDS
from gateway.queue.amqp_lines import Delivery, Line, Lines
from gateway.queue.amqp_link import Link
from gateway.queue.amqp_session import Session
from gateway.queue.amqp_ticket import Arrived, crashed_reason, read, waits
from gateway.queue.broker import DELIVERY_LIMIT, Dead, Done, Lease, Outcome, Release
from gateway.queue.delays import IN_HAND_SECONDS
from gateway.queue.ticket import Ticket
from gateway.runtime import Clock, failpoint

WATCH_SECONDS = 5.0
PAUSE_SECONDS = 0.5


class House(Protocol):
    """What a consumer needs of its broker."""

    link: Link
    user: str
    clock: Clock
    is_house: bool

    async def put(self, arrived: Arrived, outcome: Outcome) -> None:
        """Publishes what an outcome makes of a ticket, confirmed."""
        ...

    async def wait_on(self, arrived: Arrived) -> None:
        """Sends an early ticket down the next step of its delay, confirmed."""
        ...

    async def mend(self, connection: AbstractConnection) -> None: ...

    def consumed(self, arrived: Arrived) -> None:
        """Notes that a ticket of its queue was consumed."""
        ...

    def seen(self, arrived: Arrived) -> None:
        """Notes that a ticket of its queue was delivered."""
        ...


class AmqpLease:
    """A delivery, until it is settled, its time is up, or its channel is lost."""

    def __init__(self, consumer: AmqpConsumer, delivery: Delivery, lease_seconds: float) -> None:
        self._consumer = consumer
        self._delivery = delivery
        self._is_settling = False
        self._is_late = False
        self._timer = asyncio.get_running_loop().call_later(lease_seconds, self._expire)

    @property
    def ticket(self) -> Ticket:
        return self._delivery.arrived.ticket

    @property
    def delivery_count(self) -> int:
        return self._delivery.arrived.deliveries

    async def settle(self, outcome: Outcome) -> None:
        if self._delivery.is_over or self._is_settling:
            raise LeaseLost(f"the lease on {self.ticket.queue} {self.ticket.id} is over")
        self._is_settling = True
        try:
            await self._consumer.settle(self._delivery, outcome)
        finally:
            self._is_settling = False
            if self._delivery.is_over:
                self.end()
            elif self._is_late:
                self._expire()

    def end(self) -> None:
        self._timer.cancel()

    def _expire(self) -> None:
        self._is_late = True
        if not self._is_settling and not self._delivery.is_over:
            self._consumer.take_back(self._delivery)


class AmqpConsumer:
    """The `Consumer` on RabbitMQ."""

    def __init__(self, house: House, queues: Mapping[str, int], *, concurrency: int, lease_seconds: float) -> None:
        self._house = house
        self._lines = Lines(queues, concurrency=concurrency)
        self._concurrency = concurrency
        self._lease_seconds = lease_seconds
        self._out: dict[Delivery, AmqpLease] = {}
        self._session: Session | None = None
        self._fault: QueueUnavailable | None = None
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._errands: set[asyncio.Task[None]] = set()
        self._is_stopped = self._is_paused = self._is_closing = False
        self._keeper = asyncio.create_task(self._keep())

    # what the worker sees

    def __aiter__(self) -> AsyncIterator[Lease]:
        return self

    async def __anext__(self) -> Lease:
        while not self._is_stopped:
            self._wake.clear()
            if (lease := self._next_lease()) is not None:
                failpoint("queue.leased")
                return lease
            if self._fault is not None:
                fault, self._fault = self._fault, None
                raise fault
            if (line := self._lines.to_ask()) is not None and self._session is not None:
                line.is_asked = True
                self._do(self._ask_for_more(self._session, line))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lines.wait_seconds):
                    await self._wake.wait()
        raise StopAsyncIteration

    def stop(self) -> None:
        self._is_stopped = True
        self._change()

    def pause(self) -> None:
        self._is_paused = True
        self._change()

    def resume(self) -> None:
        self._is_paused = False
        self._change()

    # what the broker asks

    @property
    def queues(self) -> Mapping[str, Line]:
        """The lines of the queues it is subscribed to now, or still has tickets of."""
        return {line.queue: line for line in self._lines if self.is_subscribed(line.queue) or line.unacked}

    def is_subscribed(self, queue: str) -> bool:
        return self._session is not None and self._session.consumes(queue)

    async def close(self) -> None:
        """Gives back what is still out, and leaves; what cannot be given back comes again by itself, counted."""
        self.stop()
        self._is_closing = True
        self._change()
        await asyncio.wait([self._keeper])
        for errand in set(self._errands):
            errand.cancel()

    # leases

    async def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        if not isinstance(outcome, Done):
            failpoint("queue.settling")
            if isinstance(outcome, Release) and (delivery.line.is_serial or not self._house.is_house):
                await self._return(delivery, is_counted=False)
                return
            await self._house.put(delivery.arrived, outcome)
            failpoint("queue.settled")
        await self._make_way(delivery)
        if delivery.is_over:
            raise LeaseLost(f"the channel was lost, and with it {delivery.arrived.ticket.id}")
        if isinstance(outcome, Done):
            failpoint("queue.acknowledging")
        if not isinstance(outcome, Release):
            self._house.consumed(delivery.arrived)
        self._acknowledge(delivery)

    def take_back(self, delivery: Delivery) -> None:
        """Ends a lease whose time is up: the ticket goes back, counted."""
        self._do(self._return(delivery, is_counted=True))

    def _next_lease(self) -> AmqpLease | None:
        is_subscribed = self._session is not None and self._session.is_subscribed
        if self._is_paused or not is_subscribed or len(self._out) >= self._concurrency:
            return None
        delivery = self._lines.next()
        if delivery is None:
            return None
        lease = self._out[delivery] = AmqpLease(self, delivery, self._lease_seconds)
        return lease

    async def _make_way(self, delivery: Delivery) -> None:
        """Before the last serial ticket of a consumer that stops or pauses is acknowledged: else the next one would come."""
        session = self._session
        if session is None or self._wants or not delivery.line.is_serial or not session.consumes(delivery.line.queue):
            return
        with suppress(QueueUnavailable):  # the channel is lost, and the lease with it
            await session.cancel(delivery.line)
        self._change()

    def _acknowledge(self, delivery: Delivery) -> None:
        if not delivery.is_over:
            delivery.acks.done(delivery.tag)
        self._let_go(delivery)

    async def _return(self, delivery: Delivery, *, is_counted: bool) -> None:
        with suppress(QueueUnavailable):  # the channel is lost, and puts it back itself
            if self._session is not None and delivery.line.is_serial and not self._wants:
                await self._hang_up(self._session, delivery.line)
            elif not delivery.is_over:
                self._let_go(delivery)
                await delivery.acks.give_back(delivery.tag, is_counted=is_counted)

    async def _leave_serial(self, session: Session) -> None:
        """Hands `email.send.serial` over, unless a ticket of it is at work: then its settling does."""
        for line in self._lines:
            if line.is_serial and not line.is_at_work and session.consumes(line.queue):
                await self._hang_up(session, line)

    async def _hang_up(self, session: Session, line: Line) -> None:
        leaving = session.hang_up()
        for delivery in [*line.take_all(), *(out for out in self._out if out.line is line)]:
            self._let_go(delivery)
        await leaving
        self._change()

    def _let_go(self, delivery: Delivery) -> None:
        if not delivery.is_over:
            delivery.is_over = True
            delivery.line.left()
        self._out.pop(delivery, None)
        self._wake.set()

    async def _ask_for_more(self, session: Session, line: Line) -> None:
        try:
            line.may_have_more = await session.has_ready(line)
        finally:
            line.is_asked = False
        self._wake.set()

    # deliveries

    async def _on_delivery(self, line: Line, message: Any, acks: Acks) -> None:
        arrived = read(IncomingMessage(message), line.queue, user=self._house.user)
        line.arrived()
        self._house.seen(arrived)
        self._place(Delivery(line, message.delivery.delivery_tag, arrived, acks))

    def _place(self, delivery: Delivery) -> None:
        """Into its line; an early one down the next delay or into the hand; one at the limit to the crashed ones."""
        if delivery.is_over:
            return
        wait_seconds = waits(delivery.arrived.ticket, now=self._house.clock())
        if wait_seconds > IN_HAND_SECONDS and self._house.is_house:
            self._do(self._pass_on(delivery, self._house.wait_on(delivery.arrived)))
        elif wait_seconds > 0:
            self._hold(delivery, wait_seconds)
        elif delivery.arrived.deliveries >= DELIVERY_LIMIT and self._house.is_house:
            outcome = Dead(reason=crashed_reason(), crashed=True)
            self._do(self._pass_on(delivery, self._house.put(delivery.arrived, outcome)))
        else:
            delivery.line.waiting.append(delivery)
            if not self._wants:
                self._changed.set()  # it goes back
            self._wake.set()

    def _hold(self, delivery: Delivery, seconds: float) -> None:
        delivery.line.held.add(delivery)
        asyncio.get_running_loop().call_later(seconds, self._unhold, delivery)

    def _unhold(self, delivery: Delivery) -> None:
        if delivery in delivery.line.held:
            delivery.line.held.remove(delivery)
            self._place(delivery)

    async def _pass_on(self, delivery: Delivery, publishing: Coroutine[Any, Any, None]) -> None:
        try:
            await publishing
        except QueueUnavailable:
            self._hold(delivery, PAUSE_SECONDS)
        else:
            await self._make_way(delivery)
            self._acknowledge(delivery)

    def _do(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_quietly(errand))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    # the channel

    async def _keep(self) -> None:
        while not self._is_closing:
            try:
                self._session = session = await self._join()
                await self._run(session)
            # Broad: whatever ends a session, the next one may do better, and the worker is told.
            except Exception as error:  # noqa: BLE001
                self._fault = error if isinstance(error, QueueUnavailable) else QueueUnavailable(str(error))
                self._wake.set()
            await self._part()
            if not self._is_closing:
                await self._wait_for_change(PAUSE_SECONDS)

    async def _join(self) -> Session:
        connection = await self._until_closing(self._house.link.wait())
        session = Session(self._house.link, connection, self._on_delivery)
        await session.open(self._change)
        return session

    async def _run(self, session: Session) -> None:
        while not session.is_lost:
            self._changed.clear()
            if self._wants and not session.is_subscribed:
                await self._subscribe(session)
            if not self._wants:  # by now
                await session.unsubscribe()
                await self._give_back(self._unleased())
                await self._leave_serial(session)
            if self._is_closing:
                return
            if not await self._wait_for_change(WATCH_SECONDS):
                await session.watch(self._lines)
        raise QueueUnavailable("the channel to RabbitMQ was lost")

    @property
    def _wants(self) -> bool:
        return not self._is_paused and not self._is_stopped

    async def _subscribe(self, session: Session) -> None:
        try:
            await session.subscribe(self._lines)
            self._wake.set()
        except QueueUnavailable:
            if self._house.is_house:
                await self._house.mend(session.connection)
            raise

    def _unleased(self) -> list[Delivery]:
        return [delivery for line in self._lines if not line.is_serial for delivery in line.take_all()]

    async def _give_back(self, deliveries: list[Delivery]) -> None:
        """Puts a copy back of each, then acknowledges it; what cannot be put back stays in its line."""
        given = await asyncio.gather(*(self.settle(item, Release()) for item in deliveries), return_exceptions=True)
        for delivery, fault in zip(deliveries, given, strict=True):
            if isinstance(fault, QueueUnavailable) and not delivery.is_over:
                delivery.line.waiting.append(delivery)

    async def _part(self) -> None:
        """Ends the session: at the close what is out goes back first; else it is lost with the channel."""
        session = self._session
        if session is None:
            return
        if self._is_closing and not session.is_lost:
            await self._give_back([*self._unleased(), *self._out])
            if self._errands:
                await asyncio.wait(self._errands, timeout=RPC_SECONDS)
            await session.finish()
        session.is_over = True
        self._session = None
        for lease in self._out.values():
            lease.end()
        for delivery in [*self._unleased(), *self._out]:
            delivery.is_over = True
        self._out.clear()
        self._lines.clear()
        with suppress(QueueUnavailable):
            await session.close()

    # waiting

    def _change(self) -> None:
        self._changed.set()
        self._wake.set()

    async def _wait_for_change(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
                return True
        return False

    async def _until_closing(self, connecting: Coroutine[Any, Any, AbstractConnection]) -> AbstractConnection:
        task = asyncio.ensure_future(connecting)
        while not task.done():
            changing = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait([task, changing], return_when=asyncio.FIRST_COMPLETED)
            changing.cancel()
            self._changed.clear()
            if self._is_closing and not task.done():
                task.cancel()
                raise QueueUnavailable("closed")
        return task.result()


async def _quietly(errand: Coroutine[Any, Any, None]) -> None:
    with suppress(QueueUnavailable, LeaseLost):  # the channel is lost: what was out comes again
        await errand
