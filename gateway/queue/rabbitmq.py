"""The queue engine on RabbitMQ, 3.10 or later, one node or a cluster: quorum queues, confirms, many hosts.

What is declared stands in `queue.topology`, how a ticket waits in `queue.delays`, how a consumer lasts in
`queue.amqp_consumer`, how a connection is kept up in `queue.amqp_link`.
Two ways to open it: as the house (`is_house`), which declares the topology, puts tickets into any queue and answers the
census; and as an app's client, which declares nothing and publishes to `gateway.commands` only, as its user may.
Promises: those of `queue.broker`; a publish is confirmed by a majority of the queue's nodes.
Limits: all processes of the house use the same RabbitMQ user, it is how they know each other's notes; `oldest_seconds` is an
upper bound taken from what consumers have seen, None where none has seen anything; patterns of a subscription add up over
time (delete `subscriber.<name>` to be rid of them); `depths` names the subscribers that this process knows; a ticket that
AMQP cannot carry (see `queue.amqp_ticket`) is a PermanentFailure.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity

from gateway.errors import QueueUnavailable
from gateway.queue import amqp_census, topology
from gateway.queue.amqp_census import Count, Tally
from gateway.queue.amqp_consumer import AmqpConsumer
from gateway.queue.amqp_dead import DeadLetters, Take
from gateway.queue.amqp_faults import faults_told, is_blocked
from gateway.queue.amqp_link import Link
from gateway.queue.amqp_publisher import BLOCKED, REPLY_TO, Publisher, Unroutable, question_id
from gateway.queue.amqp_ticket import Arrived, death_notes, refuse_unfit, suspect, to_message, waits
from gateway.queue.amqp_url import amqp_urls, user_of
from gateway.queue.amqp_version import refuse_without_streams
from gateway.queue.broker import Dead, DeadTicket, Depth, Event, Later, Outcome, Suspect
from gateway.queue.delays import STEPS, delay_queue, step_for
from gateway.queue.ticket import (
    DEAD_CRASHED,
    DEAD_FAILED,
    HOME_QUEUES,
    SUBSCRIBER,
    SUSPECT,
    UNROUTABLE,
    WORK_QUEUES,
    Ticket,
    at_home,
    fresh_queue,
    home_queue,
    leads_somewhere,
    retry_queue,
)
from gateway.runtime import Clock, failpoint, utc_now

MAX_REPLY_NAME = 200
_REPLY_NAMES = (REPLY_TO, "amq.gen-", "reply.")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EVENT_TYPE = "application/cloudevents+json"


class RabbitmqBroker:
    """The `Broker` on RabbitMQ, on one event loop; open it with `async with`."""

    def __init__(self, urls: Sequence[str], *, is_house: bool = False, clock: Clock = utc_now) -> None:
        """`urls` name nodes of one cluster, tried in turn, with the same user and vhost."""
        urls = amqp_urls(" ".join(urls))
        self.user = user_of(urls[0])
        self.clock = clock
        self.is_house = is_house
        self._name = f"gateway {os.getpid()} {uuid.uuid4().hex[:8]}"
        self.link = Link(urls, name=f"{self._name} consumer", prepare=self._prepare_consuming)
        self._publishing = Link(urls, name=f"{self._name} publisher", prepare=self._prepare)
        self._publisher = Publisher(self._publishing)
        self._dead = DeadLetters(user=self.user)
        self._consumers: set[AmqpConsumer] = set()
        self._opening = asyncio.Lock()
        self._is_consuming = False
        self._moments: dict[str, Tally] = {}
        self._ladders: set[str] = set()
        self._known = {*HOME_QUEUES, *map(retry_queue, HOME_QUEUES), SUSPECT, UNROUTABLE}

    # open and close

    async def open(self) -> None:
        """Connects, as the house declares; raises QueueUnavailable, or SettingsError for a topology that differs."""
        await self._publishing.open()

    async def close(self) -> None:
        await self._publishing.close()
        await self.link.close()

    async def __aenter__(self) -> RabbitmqBroker:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _prepare(self, connection: AbstractConnection) -> None:
        self._ladders.clear()
        if self.is_house:
            await refuse_without_streams(connection)
            await topology.declare(connection)

    async def _prepare_consuming(self, connection: AbstractConnection) -> None:
        if not self.is_house:
            return
        try:
            await amqp_census.join(connection, self._own_tallies, self._answer_census, name=self._name)
        except ChannelNotFoundEntity:  # the broker was wiped
            await topology.declare(connection)
            await amqp_census.join(connection, self._own_tallies, self._answer_census, name=self._name)

    async def _answer_census(self, message: Message, address: str) -> None:
        await self._publisher.publish(message, exchange="", key=address, is_mandatory=False)

    async def mend(self, connection: AbstractConnection) -> None:
        """Declares anew what somebody has deleted."""
        self._ladders.clear()
        with faults_told("cannot declare"):
            await topology.declare(connection)

    # publish

    async def publish(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            refuse_unfit(ticket)
        failpoint("queue.publishing")
        now = self.clock()
        await _all(self._send(ticket, published_at=now) for ticket in tickets)
        failpoint("queue.published")

    async def publish_events(self, events: Sequence[Event]) -> None:
        failpoint("queue.publishing_events")
        await _all(self._publish_event(event) for event in events)

    async def _publish_event(self, event: Event) -> None:
        message = Message(
            event.body,
            headers={"key": event.key},
            content_type=_EVENT_TYPE,
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=event.id,
            user_id=self.user,
        )
        await self._publisher.publish(message, exchange=topology.EVENTS, key=event.key, is_mandatory=False)

    async def _send(self, ticket: Ticket, *, published_at: datetime | None, deliveries: int = 0) -> None:
        """To its queue, or down the delays that lead there; an app's by its key, and so what has no queue."""
        message = to_message(ticket, user=self.user, published_at=published_at, deliveries=deliveries)
        if not (self.is_house and leads_somewhere(ticket.queue)):
            await self._publisher.publish(message, exchange=topology.COMMANDS, key=ticket.queue)
            return
        step = step_for(waits(ticket, now=self.clock()))
        if step is not None:
            await self._have_ladder(ticket.queue)
            await self._put(message, exchange=delay_queue(step, ticket.queue), key=ticket.queue)
        else:
            await self._put(message, exchange="", key=ticket.queue)

    async def _put(self, message: Message, *, exchange: str, key: str) -> None:
        """Publishes; what is missing for it, after a broker was wiped, is declared once more."""
        try:
            await self._publisher.publish(message, exchange=exchange, key=key)
        except QueueUnavailable as error:
            if not (isinstance(error, Unroutable) or isinstance(error.__cause__, ChannelNotFoundEntity)):
                raise
            await self._declare_for(key, is_delay=bool(exchange))
            await self._publisher.publish(message, exchange=exchange, key=key)

    async def _declare_for(self, queue: str, *, is_delay: bool) -> None:
        connection = self._publishing.get()
        await self.mend(connection)
        if queue.startswith(SUBSCRIBER):
            with faults_told(f"cannot declare {queue}"):
                await topology.declare_these(connection, [topology.queue_spec(queue)])
        if is_delay:
            await self._have_ladder(queue)

    async def _have_ladder(self, home: str) -> None:
        async with self._opening:
            if home not in self._ladders:
                with faults_told(f"cannot declare the delays of {home}"):
                    await topology.declare_ladder(self._publishing.get(), home)
                self._ladders.add(home)

    # consume

    @asynccontextmanager
    async def consume(
        self, queues: Mapping[str, int], *, concurrency: int, lease_seconds: float = 960
    ) -> AsyncIterator[AmqpConsumer]:
        if not queues or min(queues.values()) < 1 or concurrency < 1:
            raise ValueError("a consumer needs queues with weights of at least 1, and a concurrency of at least 1")
        async with self._opening:
            if not self._is_consuming:
                await self.link.open()
                self._is_consuming = True
        self._known.update(queues)
        consumer = AmqpConsumer(self, queues, concurrency=concurrency, lease_seconds=lease_seconds)
        self._consumers.add(consumer)
        try:
            yield consumer
        finally:
            await consumer.close()
            self._consumers.discard(consumer)

    async def put(self, arrived: Arrived, outcome: Outcome) -> None:
        ticket = arrived.ticket
        if isinstance(outcome, Later):
            again = at_home(ticket)
            attempt = again.attempt + int(outcome.climbs)
            again = replace(again, queue=retry_queue(home_queue(ticket)), attempt=attempt, due_at=outcome.at)
            await self._send(again, published_at=self.clock())
        elif isinstance(outcome, Dead):
            await self._bury(ticket, outcome)
        elif isinstance(outcome, Suspect) and ticket.queue != SUSPECT:
            await self._send(suspect(ticket), published_at=self.clock())
        else:
            await self._send(ticket, published_at=arrived.published_at, deliveries=arrived.deliveries)

    async def wait_on(self, arrived: Arrived) -> None:
        await self._send(arrived.ticket, published_at=arrived.published_at, deliveries=arrived.deliveries)

    async def _bury(self, ticket: Ticket, outcome: Dead) -> None:
        now = self.clock()
        death = death_notes(ticket, outcome.reason, now)
        message = to_message(at_home(ticket), user=self.user, published_at=now, death=death)
        await self._put(message, exchange="", key=DEAD_CRASHED if outcome.crashed else DEAD_FAILED)

    def consumed(self, arrived: Arrived) -> None:
        tally = self._moments.setdefault(arrived.ticket.queue, Tally())
        tally.consumed = max(tally.consumed, _micros(arrived.published_at))

    def seen(self, arrived: Arrived) -> None:
        tally = self._moments.setdefault(arrived.ticket.queue, Tally())
        tally.seen = max(tally.seen, _micros(arrived.published_at))

    # subscribe, ask, answer

    async def subscribe(self, name: str, patterns: Sequence[str]) -> str:
        queue = SUBSCRIBER + name
        bindings = tuple((queue, pattern) for pattern in dict.fromkeys(patterns))
        connection = await self._unblocked()
        with faults_told(f"cannot subscribe {name}"):
            await topology.declare_these(connection, [topology.keeping_queue(queue)])
            await topology.bind(connection, topology.EVENTS, bindings)
        self._known.add(queue)
        return queue

    async def ask(self, ticket: Ticket, *, timeout_seconds: float) -> bytes:
        question = replace(ticket, reply_to=REPLY_TO, correlation_id=ticket.correlation_id or question_id())
        async with self._publisher.hearing(question.correlation_id or "") as answer:
            await self.publish([question])
            async with asyncio.timeout(timeout_seconds):
                return await answer

    async def answer(self, ticket: Ticket, body: bytes) -> None:
        address = ticket.reply_to or ""
        if not address.startswith(_REPLY_NAMES) or len(address) > MAX_REPLY_NAME:
            return
        reply = Message(
            body,
            content_type="application/json",
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=ticket.id,
            correlation_id=ticket.correlation_id,
            user_id=self.user,
        )
        await self._publisher.publish(reply, exchange="", key=address, is_mandatory=False)

    # look

    async def depths(self) -> list[Depth]:
        connection = await self._unblocked()
        with faults_told("cannot look at the queues"):
            async with topology.Looking(connection) as looking:
                ready = {name: await looking.count(name) for name in sorted(self._known)}
                delayed = {name: await self._count_delayed(looking, name) for name in ready}
        count = await self._census({name: found.consumers for name, found in ready.items()})
        dead = await self._dead.count(connection)
        depths = []
        for name in {*ready, *dead}:
            tally = count.of(name)
            depth = Depth(
                name=name,
                ready=ready[name].ready if name in ready else 0,
                leased=tally.leased,
                delayed=delayed.get(name, 0) + tally.held,
                dead=dead[name],
                oldest_seconds=None,
            )
            if depth.ready and tally.seen:
                depth = replace(depth, oldest_seconds=(_micros(self.clock()) - tally.seen) / 1_000_000)
            depths.append(depth)
        shown = [d for d in depths if d.name in WORK_QUEUES or d.ready or d.leased or d.delayed or d.dead]
        return sorted(shown, key=lambda depth: depth.name)

    async def has_consumed_past(self, queue: str, published_at: datetime) -> bool:
        with faults_told(f"cannot look at {queue}"):
            async with topology.Looking(await self._unblocked()) as looking:
                found = await looking.count(queue)
        consumers = {queue: found.consumers}
        count = await self._census(consumers)
        tally = count.of(queue)
        if tally.consumed > _micros(published_at):
            return True
        return found.ready == 0 and tally.leased == 0 and count.covers(consumers)

    async def is_surely_empty(self, queue: str) -> bool:
        """Whether no ticket lies in the queue, is leased from it, or is on its way to it; in any doubt it is not."""
        with faults_told(f"cannot look at {queue}"):
            async with topology.Looking(await self._unblocked()) as looking:
                found, delayed = await looking.count(queue), await self._count_delayed(looking, queue)
        consumers = {queue: found.consumers}
        count = await self._census(consumers)
        tally = count.of(queue)
        return found.ready + delayed + tally.leased + tally.held == 0 and count.covers(consumers)

    async def _count_delayed(self, looking: topology.Looking, home: str) -> int:
        if not await looking.has(delay_queue(STEPS[-1], home)):
            return 0
        return sum([(await looking.count(delay_queue(step, home))).ready for step in STEPS])

    async def _census(self, consumers: Mapping[str, int]) -> Count:
        return await amqp_census.ask(await self._unblocked(), self._own_tallies(), consumers, name=self._name)

    def _own_tallies(self) -> dict[str, Tally]:
        tallies = {queue: replace(moments) for queue, moments in self._moments.items()}
        for consumer in self._consumers:
            for queue, line in consumer.queues.items():
                held = len(line.held)
                own = Tally(consumers=int(consumer.is_subscribed(queue)), leased=max(0, line.unacked - held), held=held)
                tallies.setdefault(queue, Tally()).add(own)
        return tallies

    async def _unblocked(self) -> AbstractConnection:
        """The connection to ask on: while it is blocked the broker does not even read what we ask."""
        connection = self._publishing.get()
        if await is_blocked(connection):
            raise QueueUnavailable(BLOCKED)
        return connection

    # dead letters

    async def dead(self, *, limit: int = 1000) -> list[DeadTicket]:
        letters = await self._dead.read(await self._unblocked(), limit=limit)
        letters.sort(key=lambda letter: letter.died_at)
        return [replace(letter, ticket=replace(letter.ticket, body=b"")) for letter in letters[:limit]]

    async def all_dead(self) -> AsyncIterator[DeadTicket]:
        async with aclosing(self._dead.each(await self._unblocked())) as letters:
            async for letter in letters:
                yield letter

    async def dead_one(self, number: str) -> DeadTicket | None:
        return await self.find_dead(number)

    async def retry_dead(self, number: str) -> bool:
        async def put_home(letter: DeadTicket) -> None:
            home = fresh_queue(letter.queue)
            await self._send(replace(letter.ticket, queue=home, attempt=0, due_at=None), published_at=self.clock())

        return await self.find_dead(number, put_home) is not None

    async def drop_dead(self, number: str, *, is_recorded: bool = False) -> bool:
        async def drop(letter: DeadTicket) -> None:
            """Nothing is to be done before it goes."""

        return await self.find_dead(number, drop) is not None

    async def find_dead(self, number: str, take: Take | None = None) -> DeadTicket | None:
        """The dead letter of that number; with `take` it leaves its box once that has returned."""
        if len(number) != 32 or not set(number) <= set("0123456789abcdef"):
            return None
        return await self._dead.find(await self._unblocked(), number, take)


def _micros(moment: datetime | None) -> int:
    return 0 if moment is None else (moment - _EPOCH) // _MICROSECOND


async def _all(publishes: Iterable[Awaitable[None]]) -> None:
    """Waits for every publish, then raises the first fault: whoever hears of it repeats them all."""
    results = await asyncio.gather(*publishes, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
