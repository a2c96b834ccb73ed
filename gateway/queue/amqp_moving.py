"""Where the tickets of a moved queue lie aside on RabbitMQ until the file they came from has let them go.

    publish ─▶ gateway.moving.<move> (fanout) ─▶ the same ─ rejected ─▶ gateway.moved (headers) ─▶ their queue,
                                                                             or the delays that lead there

`fill` keeps a batch aside, confirmed, where nobody works it; `clear` throws away what lies aside; `release` lets it go by
rejecting it: then the broker itself carries each one to where its header says, so that whoever dies between two instructions
here has neither lost nor doubled anything.
Limits: the broker's own crash in the middle of it may let go of a ticket twice, as with delays; the queue
`gateway.moving.<move>` stays declared, empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from aio_pika.abc import AbstractConnection

from gateway.errors import PermanentFailure, QueueUnavailable
from gateway.queue import topology
from gateway.queue.amqp_faults import RPC_SECONDS, faults_told, open_channel
from gateway.queue.amqp_migrate import connect
from gateway.queue.amqp_ticket import death_notes, refuse_unfit, to_message, waits
from gateway.queue.amqp_url import user_of
from gateway.queue.delays import delay_queue, step_for
from gateway.queue.moving import Parcel
from gateway.queue.ticket import EMAIL_SEND_SERIAL
from gateway.queue.topology import ExchangeSpec, Looking, QueueSpec
from gateway.runtime import Clock, failpoint, utc_now

OUT = "gateway.moved"
CONFIRM_SECONDS = 30.0
_DESTINATION = "x-gateway-destination"  # the tickets' readers leave out what begins like this
_REJECTED_AT_ONCE = 100


class Staging:
    """The place aside, on the first node that answers; open it with `async with`."""

    def __init__(self, urls: Sequence[str], move: str, *, clock: Clock = utc_now) -> None:
        """`move` tells one move from another: each lays aside in a queue of its own."""
        self._urls = urls
        self._aside = f"gateway.moving.{move}"
        self._user = user_of(urls[0])
        self._clock = clock
        self._connection: AbstractConnection
        self._reached: set[str] = set()

    async def __aenter__(self) -> Staging:
        with faults_told("cannot move to RabbitMQ"):
            self._connection = await connect(self._urls)
            try:
                await topology.declare(self._connection)
                await topology.declare_these(self._connection, [_aside(self._aside)], _exchanges(self._aside))
            except BaseException:
                await self._connection.close()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    def refusal(self, parcel: Parcel) -> str:
        """Why this one cannot lie on RabbitMQ; '' when it can."""
        try:
            refuse_unfit(parcel.ticket)
        except PermanentFailure as unfit:
            return str(unfit)
        return ""

    async def subscribe(self, queue: str, patterns: Sequence[str]) -> None:
        """Binds a subscriber's queue to its events, as it was."""
        with faults_told(f"cannot declare {queue}"):
            await topology.declare_these(self._connection, [topology.keeping_queue(queue)])
            await topology.bind(self._connection, topology.EVENTS, [(queue, pattern) for pattern in patterns])

    async def fill(self, parcels: Sequence[Parcel]) -> None:
        """Keeps them aside; raises QueueUnavailable unless every one of them is confirmed."""
        with faults_told("cannot lay tickets aside"):
            opened = await open_channel(self._connection, confirms=True)
            channel: Any = await opened.get_underlay_channel()
            in_order = [parcel for parcel in parcels if parcel.ticket.queue == EMAIL_SEND_SERIAL]
            others = [parcel for parcel in parcels if parcel.ticket.queue != EMAIL_SEND_SERIAL]
            for parcel in in_order:
                await self._publish(channel, parcel)
            results = await asyncio.gather(*(self._publish(channel, item) for item in others), return_exceptions=True)
            await opened.close()
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            async with Looking(self._connection) as looking:
                lies = (await looking.count(self._aside)).ready
        if lies != len(parcels):
            raise QueueUnavailable(f"{self._aside} has {lies} tickets instead of {len(parcels)}")

    async def clear(self) -> None:
        """Throws away what lies aside."""
        await self._drain(is_kept=False)

    async def release(self) -> None:
        """Lets what lies aside go where it belongs."""
        await self._drain(is_kept=True)

    async def _publish(self, channel: Any, parcel: Parcel) -> None:
        destination = await self._destination(parcel)
        death: Mapping[str, Any] = {}
        if parcel.died_at is not None:
            death = death_notes(parcel.ticket, parcel.reason, parcel.died_at)
        message = to_message(
            parcel.ticket,
            user=self._user,
            published_at=parcel.published_at,
            deliveries=parcel.deliveries,
            death={**death, _DESTINATION: destination},
        )
        await channel.basic_publish(
            message.body,
            exchange=self._aside,
            routing_key=parcel.ticket.queue,
            properties=message.properties,
            mandatory=True,
            timeout=CONFIRM_SECONDS,
            wait=True,
        )

    async def _destination(self, parcel: Parcel) -> str:
        """The queue it belongs in, or the exchange of the delay it takes first; both are there and can be reached."""
        home = parcel.ticket.queue
        step = None if parcel.box else step_for(waits(parcel.ticket, now=self._clock()))
        return await self._reach(parcel.box or home, None) if step is None else await self._reach(home, step)

    async def _reach(self, queue: str, step: float | None) -> str:
        name = queue if step is None else delay_queue(step, queue)
        if name in self._reached:
            return name
        await topology.declare_these(self._connection, [topology.queue_spec(queue)])
        if step is not None:
            await topology.declare_ladder(self._connection, queue)
        channel = await open_channel(self._connection)
        out = await channel.get_exchange(OUT, ensure=False)
        leads: dict[str, Any] = {"x-match": "all-with-x", _DESTINATION: name}
        if step is None:
            bound = await channel.get_queue(name, ensure=False)
            await bound.bind(out, "", arguments=leads, timeout=RPC_SECONDS)
        else:
            delay = await channel.get_exchange(name, ensure=False)
            await delay.bind(out, "", arguments=leads, timeout=RPC_SECONDS)
        await channel.close()
        self._reached.add(name)
        return name

    async def _drain(self, *, is_kept: bool) -> None:
        """Takes what is ready until nothing is, and rejects it, which lets it go, or acknowledges it, which ends it."""
        with faults_told("cannot empty the place aside"):
            opened = await open_channel(self._connection)
            channel: Any = await opened.get_underlay_channel()
            while (tag := await self._take_some(channel)) is not None:
                if is_kept:
                    await channel.basic_nack(tag, multiple=True, requeue=False)
                    failpoint("move.releasing")
                else:
                    await channel.basic_ack(tag, multiple=True)
            await opened.close()

    async def _take_some(self, channel: Any) -> int | None:
        """The tag up to which some tickets are in our hands; None when there are none."""
        tag = None
        for _ in range(_REJECTED_AT_ONCE):
            message = await channel.basic_get(self._aside, timeout=RPC_SECONDS)
            if message.delivery.name == "Basic.GetEmpty":
                break
            tag = message.delivery.delivery_tag
        return tag


def _aside(name: str) -> QueueSpec:
    arguments = {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-delivery-limit": topology.NEVER,
        "x-dead-letter-exchange": OUT,
        "x-dead-letter-strategy": "at-least-once",
    }
    return QueueSpec(name=name, arguments=arguments)


def _exchanges(aside: str) -> list[ExchangeSpec]:
    return [ExchangeSpec(name=OUT, kind="headers"), ExchangeSpec(name=aside, kind="fanout", bindings=((aside, ""),))]
