"""The worker: leases tickets, runs their handlers side by side, and settles what became of each.

A handler gets a ticket and returns Done or Later, or raises; it never sees the broker.  It records before it returns, so
the ticket goes last.  What it raises decides alone what happens next:
    TransientFailure, ours or the relay's   a fixed step later, not counted: nothing was tried
    TransientFailure of anyone else         the ladder; when that is exhausted, dead
    PermanentFailure                        dead, with its text as the reason
    LeaseLost                               nothing: the ticket is somebody else's now
    anything else, the deadline too         the ladder: a fault that always comes must not come for ever
In `email.send.serial` a fault of ours is waited out with the ticket in hand, and then it goes back to its place: nothing may
overtake it.  It waits for no gate (it is accepted only, nothing is sent), and is suspected later, since a suspect has left
its place.
A ticket that comes for the third time without a word of those who had it is a suspect: it is put apart before anything
else is tried.  A worker of `gateway.suspect` runs in a process of its own, one ticket at a time; there a ticket has
`SUSPECT_LIVES`, then it is dead (crashed), after its kind's `bury` has recorded so.
Promises: the loop outlives every handler and every fault of the queue; each failure is told to the observer.
On stop it leases no more, lets handlers finish for `grace_seconds`, then ends them and gives their tickets back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from gateway.contract.versions import PARKED_SECONDS, NewerVersion
from gateway.errors import FaultOwner, LeaseLost, PermanentFailure, QueueUnavailable, TransientFailure
from gateway.queue.broker import Broker, Consumer, Dead, Done, Later, Lease, Outcome, Release, Suspect
from gateway.queue.ladder import Ladder
from gateway.queue.ticket import EMAIL_SEND_SERIAL, SUSPECT, Ticket, at_home, fresh_queue
from gateway.runtime import CLEANUP_SECONDS, Clock, Stop, failpoint, utc_now

Handler = Callable[[Ticket], Awaitable[Done | Later]]
Gate = Callable[[], Awaitable[object]]
Bury = Callable[[Ticket, str], Awaitable[None]]

SUSPECT_DELIVERIES = 2
SERIAL_SUSPECT_DELIVERIES = 5  # RabbitMQ before 4.3 counts it too when the ticket is given back to its place
SUSPECT_LIVES = 3
FIXED_STEP_SECONDS = 30.0
_GATE_SECONDS = 0.05
_CLEANUP_SECONDS = CLEANUP_SECONDS - 2  # the rest is for giving the tickets back


class Observer(Protocol):
    """Whoever counts and logs failures; the mail log is one."""

    def handler_failed(self, queue: str, ticket_id: str, *, error: BaseException, next_step: str) -> None: ...

    def ticket_suspected(self, queue: str, ticket_id: str, *, deliveries: int) -> None: ...

    def ticket_parked(self, queue: str, ticket_id: str, *, why: str) -> None: ...


async def work(
    broker: Broker,
    *,
    queues: Mapping[str, int],
    handlers: Mapping[str, Handler],
    concurrency: int,
    stop: Stop,
    ladder: Ladder,
    observer: Observer,
    clock: Clock = utc_now,
    handler_seconds: float = 900,
    grace_seconds: float = 30,
    gate: Gate | None = None,
    buries: Mapping[str, Bury] | None = None,
    jitter: Callable[[], float] = random.random,
    probe_seconds: float = 5,
) -> None:
    """Works `queues` (name → weight) until `stop`; `handlers` has one for each kind, by the name of its fresh queue;
    `buries` records for some kinds that a suspect of theirs is dead.
    `gate()` returns when there is any use in leasing (a relay is usable); while it does not, tickets stay ready.
    While the queue cannot be reached it is probed every `probe_seconds`.
    """
    missing = sorted({fresh_queue(name) for name in queues} - {*handlers, SUSPECT})
    if missing:
        raise ValueError(f"no handler for {', '.join(missing)}")
    rules = _Rules(ladder=ladder, observer=_PatientObserver(observer), clock=clock, jitter=jitter)
    bench = _Bench(
        handlers=handlers,
        buries=buries or {},
        rules=rules,
        handler_seconds=handler_seconds,
        probe_seconds=probe_seconds,
    )
    while not stop.is_set:
        try:
            async with (
                broker.consume(queues, concurrency=concurrency, lease_seconds=handler_seconds + 60) as consumer,
                bench.closing(grace_seconds),
            ):
                await _lease(consumer, bench, stop=stop, gate=gate)
        except QueueUnavailable as error:
            await bench.sit_out(error, stop)


async def _lease(consumer: Consumer, bench: _Bench, *, stop: Stop, gate: Gate | None) -> None:
    """Hands leases to the bench until stop; an outage of the queue does not disturb the handlers at work."""
    stopping = asyncio.create_task(_stop_with(consumer, stop))
    try:
        while not stop.is_set:
            try:
                await _lease_on(consumer, bench, gate=gate)
            except QueueUnavailable as error:
                await bench.sit_out(error, stop)
    finally:
        stopping.cancel()


async def _lease_on(consumer: Consumer, bench: _Bench, *, gate: Gate | None) -> None:
    resuming: asyncio.Task[None] | None = None
    try:
        async for lease in consumer:
            if gate is None or lease.ticket.queue == EMAIL_SEND_SERIAL or await _is_open(gate):
                bench.take(lease)
            else:
                consumer.pause()
                resuming = asyncio.create_task(_resume_with(consumer, gate))
                await bench.settle(lease, Release())
    finally:
        if resuming is not None:
            resuming.cancel()
        consumer.resume()  # whoever iterates it next must find it leasing; a task that never ran resumes nothing


async def _resume_with(consumer: Consumer, gate: Gate) -> None:
    try:
        await gate()
    finally:
        consumer.resume()


async def _stop_with(consumer: Consumer, stop: Stop) -> None:
    await stop.wait()
    consumer.stop()


async def _is_open(gate: Gate) -> bool:
    try:
        async with asyncio.timeout(_GATE_SECONDS):
            await gate()
    except TimeoutError:
        return False
    return True


def fault_wait_seconds(ticket: Ticket, error: BaseException, ladder: Ladder, *, jitter: float = 0.5) -> float | None:
    """How long a ticket waits when its handler has raised this; None when it becomes a dead letter."""
    if isinstance(error, PermanentFailure):
        return None
    if _spends_no_attempt(error):
        return FIXED_STEP_SECONDS
    return ladder.delay_seconds(ticket.attempt + 1, jitter=jitter)


def _spends_no_attempt(error: BaseException) -> bool:
    return isinstance(error, TransientFailure) and error.owner in (FaultOwner.OURS, FaultOwner.RELAY)


@dataclass(frozen=True, slots=True)
class _PatientObserver:
    """An observer that raises must not keep a ticket from its end: the event loop's own log hears of it."""

    observer: Observer

    def handler_failed(self, queue: str, ticket_id: str, *, error: BaseException, next_step: str) -> None:
        try:
            self.observer.handler_failed(queue, ticket_id, error=error, next_step=next_step)
        except Exception as fault:  # noqa: BLE001 - see above
            _tell_loop(f"not logged: {queue} {ticket_id}: {error!r}, {next_step}", fault)

    def ticket_suspected(self, queue: str, ticket_id: str, *, deliveries: int) -> None:
        try:
            self.observer.ticket_suspected(queue, ticket_id, deliveries=deliveries)
        except Exception as fault:  # noqa: BLE001 - see above
            _tell_loop(f"not logged: {queue} {ticket_id} is a suspect", fault)

    def ticket_parked(self, queue: str, ticket_id: str, *, why: str) -> None:
        try:
            self.observer.ticket_parked(queue, ticket_id, why=why)
        except Exception as fault:  # noqa: BLE001 - see above
            _tell_loop(f"not logged: {queue} {ticket_id} is parked: {why}", fault)


def _tell_loop(message: str, error: BaseException) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """What a failure leads to."""

    ladder: Ladder
    observer: Observer
    clock: Clock
    jitter: Callable[[], float]

    def after(self, ticket: Ticket, error: BaseException) -> Outcome:
        """The outcome of a failed handler, told to the observer."""
        outcome: Outcome
        if isinstance(error, LeaseLost):
            outcome, next_step = Release(), "left to whoever holds the ticket now"
        elif (seconds := fault_wait_seconds(ticket, error, self.ladder, jitter=self.jitter())) is None:
            outcome, next_step = self._dead(error)
        else:
            outcome, next_step = self._later(seconds, climbs=not _spends_no_attempt(error))
        self.observer.handler_failed(ticket.queue, ticket.id, error=error, next_step=next_step)
        return outcome

    def _later(self, seconds: float, *, climbs: bool) -> tuple[Outcome, str]:
        outcome = Later(at=self.clock() + timedelta(seconds=seconds), climbs=climbs)
        return outcome, f"again in {seconds:.0f} s"

    def _dead(self, error: BaseException) -> tuple[Outcome, str]:
        return Dead(reason=_storable(f"{type(error).__name__}: {error}")), "dead letter"


def _storable(text: str) -> str:
    """The text without what no engine can keep: errors may quote octets of a mail."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")


class _HandlerTimedOut(Exception):
    """The handler did not come back within its deadline."""


@dataclass(slots=True, kw_only=True)
class _Bench:
    """The handlers at work."""

    handlers: Mapping[str, Handler]
    buries: Mapping[str, Bury]
    rules: _Rules
    handler_seconds: float
    probe_seconds: float
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _deadlines: set[asyncio.Timeout] = field(default_factory=set)
    _is_over: bool = False

    def take(self, lease: Lease) -> None:
        task = asyncio.create_task(self._handle(lease))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @asynccontextmanager
    async def closing(self, grace_seconds: float) -> AsyncIterator[None]:
        """On leaving: handlers get their grace, then their deadline is now, and their tickets go back."""
        self._is_over = False
        try:
            yield
        finally:
            try:
                await self._finish(grace_seconds)
            finally:
                for task in self._tasks:
                    task.cancel()

    async def _finish(self, grace_seconds: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_seconds)
        self._is_over = True
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(asyncio.get_running_loop().time())
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLEANUP_SECONDS)

    async def _handle(self, lease: Lease) -> None:
        outcome: Outcome
        try:
            outcome = await self._convict(lease) or await self._work(at_home(lease.ticket))
            failpoint("worker.handled")
        # Broad, the last resort: a lease that nobody ends keeps its place for ever, and the consumer stands still.
        except Exception as error:  # noqa: BLE001
            outcome = self._wait_a_step(lease, error)
        await self.settle(lease, outcome)

    def _wait_a_step(self, lease: Lease, error: BaseException) -> Outcome:
        self._tell(lease, error, f"again in {FIXED_STEP_SECONDS:.0f} s")
        return Later(at=self.rules.clock() + timedelta(seconds=FIXED_STEP_SECONDS), climbs=False)

    async def _convict(self, lease: Lease) -> Outcome | None:
        """What a ticket gets that workers died with before; None when it is to be worked."""
        ticket, deliveries = lease.ticket, lease.delivery_count
        if ticket.queue == SUSPECT:
            if deliveries < SUSPECT_LIVES:
                return None
            reason = f"its worker died {deliveries} times although it worked on nothing else"
            return Dead(reason=reason, crashed=True) if await self._bury(at_home(ticket), reason) else Release()
        if deliveries < (SERIAL_SUSPECT_DELIVERIES if ticket.queue == EMAIL_SEND_SERIAL else SUSPECT_DELIVERIES):
            return None
        self.rules.observer.ticket_suspected(ticket.queue, ticket.id, deliveries=deliveries)
        return Suspect()

    async def _bury(self, ticket: Ticket, reason: str) -> bool:
        """Has the death recorded, waiting while the store cannot be reached; False when we had to stop first."""
        bury = self.buries.get(fresh_queue(ticket.queue))
        while bury is not None and not self._is_over:
            try:
                await bury(ticket, reason)
                break
            except TransientFailure as error:
                next_step = f"records its death again in {self.probe_seconds:g} s"
                self.rules.observer.handler_failed(ticket.queue, ticket.id, error=error, next_step=next_step)
                await asyncio.sleep(self.probe_seconds)
            # Broad: a killer must end as a dead letter, whatever is wrong with it besides.
            except Exception as error:  # noqa: BLE001
                self.rules.observer.handler_failed(ticket.queue, ticket.id, error=error, next_step="dead letter")
                break
        return not self._is_over

    async def _work(self, ticket: Ticket) -> Outcome:
        until = asyncio.get_running_loop().time() + self.handler_seconds
        while (outcome := await self._outcome_of(ticket)) is None:
            await asyncio.sleep(self.probe_seconds)
            if self._is_over or asyncio.get_running_loop().time() > until:
                return Release()
        return outcome

    async def _outcome_of(self, ticket: Ticket) -> Outcome | None:
        """What one run of the handler leads to; None where it is to be run again with the ticket in hand."""
        try:
            return await self._run(self._handler(ticket), ticket)
        except (KeyboardInterrupt, SystemExit):
            raise
        except NewerVersion as newer:
            self.rules.observer.ticket_parked(ticket.queue, ticket.id, why=str(newer))
            return Later(at=self.rules.clock() + timedelta(seconds=PARKED_SECONDS), climbs=False)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return self.rules.after(ticket, error)  # something inside was cancelled, not we
        # Broad, panics of extension modules included: a ticket that breaks its handler must not break the loop.
        except BaseException as error:  # noqa: BLE001
            if self._is_over and isinstance(error, _HandlerTimedOut):
                return Release()
            if ticket.queue == EMAIL_SEND_SERIAL and _spends_no_attempt(error):
                next_step = f"tried again in its place in {self.probe_seconds:g} s"
                self.rules.observer.handler_failed(ticket.queue, ticket.id, error=error, next_step=next_step)
                return None
            return self.rules.after(ticket, error)

    def _handler(self, ticket: Ticket) -> Handler:
        handler = self.handlers.get(fresh_queue(ticket.queue))
        if handler is None:
            raise PermanentFailure(f"no handler for {ticket.queue}")
        return handler

    async def _run(self, handler: Handler, ticket: Ticket) -> Outcome:
        deadline = asyncio.timeout(self.handler_seconds)
        try:
            async with deadline:
                self._deadlines.add(deadline)
                outcome = await handler(ticket)
        except TimeoutError:
            if deadline.expired():
                raise _HandlerTimedOut(f"no result within {self.handler_seconds:g} s") from None
            raise
        finally:
            self._deadlines.discard(deadline)
        if not isinstance(outcome, Done | Later):
            raise TypeError(f"a handler returns Done or Later, not {outcome!r}")
        return outcome

    async def settle(self, lease: Lease, outcome: Outcome) -> None:
        """Settles, again and again while the queue cannot be reached; at the end the lease's own end must do."""
        is_as_decided = True
        while True:
            try:
                await lease.settle(outcome)
            except LeaseLost as error:
                self._tell(lease, error, "left to whoever holds the ticket now")
            except QueueUnavailable as error:
                self._tell(lease, error, f"settles again in {self.probe_seconds:g} s")
                if not self._is_over:
                    await asyncio.sleep(self.probe_seconds)
                    continue
            # Broad: an outcome the engine cannot write down must not cost the lease's place.
            except Exception as error:  # noqa: BLE001
                if is_as_decided:
                    is_as_decided, outcome = False, self._wait_a_step(lease, error)
                    continue
                self._tell(lease, error, "comes back when its lease runs out")
            return

    async def sit_out(self, error: BaseException, stop: Stop) -> None:
        """Tells of an outage of the queue and waits before the next try."""
        next_step = f"leases again in {self.probe_seconds:g} s"
        self.rules.observer.handler_failed("+".join(self.handlers), "", error=error, next_step=next_step)
        await stop.wait(self.probe_seconds)

    def _tell(self, lease: Lease, error: BaseException, next_step: str) -> None:
        self.rules.observer.handler_failed(lease.ticket.queue, lease.ticket.id, error=error, next_step=next_step)
