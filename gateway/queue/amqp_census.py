"""The census: what only consumers know of a queue, asked of every process of the house.

RabbitMQ tells a client how many tickets of a queue are ready and how many consumers it has.  How many are leased, how many
wait in a consumer's hand and what was last consumed, each process says for itself: the asker publishes to the fanout
exchange `gateway.census`, everyone answers to the asker's reply address.  It waits until as many consumers have answered
as the broker counts, or a second.
Limit: a consumer that does not answer (stopped, dead and not yet missed) leaves the census incomplete, and says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractConnection

from gateway.errors import QueueUnavailable
from gateway.queue.amqp_faults import RPC_SECONDS, faults_told, open_channel
from gateway.queue.amqp_publisher import REPLY_TO
from gateway.queue.topology import CENSUS

CENSUS_SECONDS = 1.0


@dataclass(slots=True, kw_only=True)
class Tally:
    """What consumers say of one queue; moments are microseconds since 1970, 0 for never."""

    consumers: int = 0
    leased: int = 0
    held: int = 0
    consumed: int = 0
    seen: int = 0

    def add(self, other: Tally) -> None:
        self.consumers += other.consumers
        self.leased += other.leased
        self.held += other.held
        self.consumed = max(self.consumed, other.consumed)
        self.seen = max(self.seen, other.seen)


@dataclass(slots=True, kw_only=True)
class Count:
    """The tallies by queue."""

    tallies: dict[str, Tally] = field(default_factory=dict)

    def of(self, queue: str) -> Tally:
        return self.tallies.get(queue) or Tally()

    def add(self, tallies: Mapping[str, Tally]) -> None:
        for queue, tally in tallies.items():
            self.tallies.setdefault(queue, Tally()).add(tally)

    def covers(self, consumers: Mapping[str, int]) -> bool:
        """Whether everybody the broker counts has answered."""
        return all(self.of(queue).consumers >= count for queue, count in consumers.items())


Own = Callable[[], Mapping[str, Tally]]
Answer = Callable[[Message, str], Awaitable[None]]


async def join(connection: AbstractConnection, own: Own, answer: Answer, *, name: str) -> None:
    """Answers every census from now on, for as long as the connection lives, by `answer(message, address)`.

    Nothing is published on the consumers' own connection: an alarm of the broker would stop their acknowledgements.
    """
    channel = await open_channel(connection)
    queue = await channel.declare_queue(exclusive=True, timeout=RPC_SECONDS)
    await queue.bind(CENSUS, timeout=RPC_SECONDS)
    underlay = await channel.get_underlay_channel()

    async def on_question(message: Any) -> None:
        properties = message.header.properties
        if properties.correlation_id == name or not (properties.reply_to or "").startswith(REPLY_TO):
            return  # our own question: the asker has counted itself
        with suppress(QueueUnavailable):  # the asker sees that somebody has not answered
            await answer(Message(_pack(own())), properties.reply_to)

    await underlay.basic_consume(queue.name, on_question, no_ack=True, timeout=RPC_SECONDS)


async def ask(
    connection: AbstractConnection, own: Mapping[str, Tally], consumers: Mapping[str, int], *, name: str
) -> Count:
    """Counts everybody; `consumers` is how many of each queue the broker has."""
    count = Count()
    count.add(own)
    if count.covers(consumers):
        return count
    is_complete = asyncio.Event()

    async def on_answer(message: Any) -> None:
        count.add(_unpack(message.body))
        if count.covers(consumers):
            is_complete.set()

    with faults_told("census"):
        channel = await open_channel(connection)
        underlay = await channel.get_underlay_channel()
        await underlay.basic_consume(REPLY_TO, on_answer, no_ack=True, timeout=RPC_SECONDS)
        question = Message(b"", reply_to=REPLY_TO, correlation_id=name)
        await underlay.basic_publish(b"", exchange=CENSUS, properties=question.properties, timeout=RPC_SECONDS)
        try:
            async with asyncio.timeout(CENSUS_SECONDS):
                await is_complete.wait()
        except TimeoutError:
            pass
        await channel.close()
    return count


def _pack(tallies: Mapping[str, Tally]) -> bytes:
    rows = {queue: [t.consumers, t.leased, t.held, t.consumed, t.seen] for queue, t in tallies.items()}
    return json.dumps(rows).encode()


def _unpack(body: bytes) -> dict[str, Tally]:
    names = ("consumers", "leased", "held", "consumed", "seen")
    return {queue: Tally(**dict(zip(names, row, strict=True))) for queue, row in json.loads(body).items()}
