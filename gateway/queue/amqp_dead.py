"""Dead letters on RabbitMQ: read one after another, and all given back unless one is taken out.

A queue cannot be looked into, so a reader takes the letters in turn and returns them at the end, in their order; while it
reads, others would see a part.  So readers take turns: the turn is an exclusive queue, which the broker deletes with its
holder's connection.  A reader that dies has taken nothing: the broker puts back what it held.
Counting them by the queue they died in means reading them, so that is done anew only when their number has changed or a
minute has passed, and what was counted last is told while somebody else reads.
Limits: reading costs a round trip a letter, some thousand a second; a letter is found by its number, not by place; beyond
`COUNTED` letters of a box the rest is counted under the box's own name.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aio_pika import IncomingMessage
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelClosed

from gateway.errors import QueueUnavailable
from gateway.queue.amqp_faults import RPC_SECONDS, faults_told, open_channel
from gateway.queue.amqp_ticket import read_dead
from gateway.queue.broker import DeadTicket
from gateway.queue.topology import DEAD_BOXES, Looking

_TURN = "gateway.dead.turn"
_TURN_SECONDS = 60.0
_COUNT_TURN_SECONDS = 1.0
_COUNT_AGE_SECONDS = 60.0
COUNTED = 1000
_PAUSE_SECONDS = 0.05
_LOCKED = "RESOURCE_LOCKED"

Take = Callable[[DeadTicket], Awaitable[None]]


class TurnTaken(QueueUnavailable):
    """Somebody else reads the dead letters for longer than we wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Count:
    """What was counted: letters by box, and by the queue they died in."""

    at: float
    ready: dict[str, int]
    by_queue: Counter[str]


class DeadLetters:
    """The letters in `gateway.dead.failed` and `gateway.dead.crashed`."""

    def __init__(self, *, user: str) -> None:
        self._user = user
        self._turn = asyncio.Lock()
        self._count: _Count | None = None

    async def read(self, connection: AbstractConnection, *, limit: int) -> list[DeadTicket]:
        """Up to `limit` letters of each box."""
        async with self._having_turn(connection):
            return await self._read(connection, limit)

    async def each(self, connection: AbstractConnection) -> AsyncGenerator[DeadTicket, None]:
        """Every letter; nobody else reads meanwhile."""
        async with self._having_turn(connection):
            for box in DEAD_BOXES:
                async with _Reading(connection, box) as reading:
                    while (letter := await reading.next(self._user)) is not None:
                        yield letter

    async def count(self, connection: AbstractConnection) -> Counter[str]:
        """How many letters there are by the queue they died in."""
        last, now = self._count, asyncio.get_running_loop().time()
        ready = await _ready(connection)
        if last is not None and now - last.at < _COUNT_AGE_SECONDS and ready == last.ready:
            return last.by_queue
        try:
            async with self._having_turn(connection, _TURN_SECONDS if last is None else _COUNT_TURN_SECONDS):
                ready = await _ready(connection)  # the other reader has put back what it held
                letters = await self._read(connection, COUNTED) if any(ready.values()) else []
        except TurnTaken:
            if last is None:
                raise
            return last.by_queue
        seen = Counter(letter.box for letter in letters)
        by_queue = Counter(letter.queue for letter in letters)
        by_queue.update({box: count - seen[box] for box, count in ready.items() if count > seen[box]})
        self._count = _Count(at=now, ready=ready, by_queue=by_queue)
        return by_queue

    async def _read(self, connection: AbstractConnection, limit: int) -> list[DeadTicket]:
        found: list[DeadTicket] = []
        for box in DEAD_BOXES:
            async with _Reading(connection, box) as reading:
                for _ in range(limit):
                    if (letter := await reading.next(self._user)) is None:
                        break
                    found.append(letter)
        return found

    async def find(self, connection: AbstractConnection, number: str, take: Take | None = None) -> DeadTicket | None:
        """The letter of that number; with `take` it leaves its box once that has returned."""
        async with self._having_turn(connection):
            for box in DEAD_BOXES:
                async with _Reading(connection, box) as reading:
                    while (letter := await reading.next(self._user)) is not None:
                        if letter.number == number:
                            if take is not None:
                                await take(letter)
                                await reading.remove_last()
                            return letter
        return None

    @asynccontextmanager
    async def _own_turn(self, seconds: float) -> AsyncIterator[None]:
        """One reader at a time in this process, too: the broker would give the turn to the same connection twice."""
        try:
            async with asyncio.timeout(seconds):
                await self._turn.acquire()
        except TimeoutError:
            raise TurnTaken("the dead letters are being read") from None
        try:
            yield
        finally:
            self._turn.release()

    @asynccontextmanager
    async def _having_turn(self, connection: AbstractConnection, seconds: float = _TURN_SECONDS) -> AsyncIterator[None]:
        async with self._own_turn(seconds):
            with faults_told("cannot read the dead letters"):
                until = asyncio.get_running_loop().time() + seconds
                while not await _takes_turn(connection):
                    if asyncio.get_running_loop().time() > until:
                        raise TurnTaken("somebody else reads the dead letters")
                    await asyncio.sleep(_PAUSE_SECONDS)  # the broker rings no bell
            try:
                yield
            finally:
                with faults_told("cannot end the reading of dead letters"):
                    channel = await open_channel(connection)
                    await channel.queue_delete(_TURN, timeout=RPC_SECONDS)
                    await channel.close()


async def _ready(connection: AbstractConnection) -> dict[str, int]:
    with faults_told("cannot look at the dead letters"):
        async with Looking(connection) as looking:
            return {box: (await looking.count(box)).ready for box in DEAD_BOXES}


async def _takes_turn(connection: AbstractConnection) -> bool:
    channel = await open_channel(connection)
    try:
        await channel.declare_queue(_TURN, exclusive=True, timeout=RPC_SECONDS)
    except ChannelClosed as error:
        if _LOCKED in str(error):
            return False
        raise
    await channel.close()
    return True


class _Reading:
    """One box, read from its head; on leaving what was read goes back, and is waited for until it is there again."""

    def __init__(self, connection: AbstractConnection, box: str) -> None:
        self._connection = connection
        self._box = box
        self._last = 0
        self._kept = 0
        self._channel: Any = None

    async def __aenter__(self) -> _Reading:
        with faults_told(f"cannot read {self._box}"):
            self._opened = await open_channel(self._connection)
            self._channel = await self._opened.get_underlay_channel()
        return self

    async def next(self, user: str) -> DeadTicket | None:
        with faults_told(f"cannot read {self._box}"):
            message = await self._channel.basic_get(self._box, timeout=RPC_SECONDS)
            if message.delivery.name == "Basic.GetEmpty":
                return None
            self._last = message.delivery.delivery_tag
            self._kept += 1
            return read_dead(IncomingMessage(message), self._box, user=user)

    async def remove_last(self) -> None:
        with faults_told(f"cannot remove from {self._box}"):
            await self._channel.basic_ack(self._last)
            self._last -= 1  # "all up to" must name one that is still out
            self._kept -= 1

    async def __aexit__(self, *_: object) -> None:
        with faults_told(f"cannot give back to {self._box}"):
            if self._kept:
                await self._channel.basic_nack(self._last, multiple=True, requeue=True)
            async with asyncio.timeout(RPC_SECONDS):
                while await self._count() < self._kept:  # noqa: ASYNC110 - the broker rings no bell
                    await asyncio.sleep(_PAUSE_SECONDS)
            await self._opened.close()

    async def _count(self) -> int:
        queue = await self._opened.declare_queue(self._box, passive=True, timeout=RPC_SECONDS)
        return queue.declaration_result.message_count or 0
