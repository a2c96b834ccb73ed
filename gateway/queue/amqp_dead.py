"""Dead letters on RabbitMQ: read one after another, and all given back unless one is taken out.

A queue cannot be looked into, so a reader takes the letters in turn and returns them at the end, in their order; while it
reads, others would see a part.  So readers take turns: the turn is an exclusive queue, which the broker deletes with its
holder's connection.  A reader that dies has taken nothing: the broker puts back what it held.
Limits: reading costs a round trip a letter; a letter is found by its number, not by place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aio_pika import IncomingMessage
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelClosed

from gateway.queue.amqp_faults import RPC_SECONDS, faults_told, open_channel
from gateway.queue.amqp_ticket import read_dead
from gateway.queue.broker import DeadTicket
from gateway.queue.topology import DEAD_BOXES

_TURN = "gateway.dead.turn"
_TURN_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_LOCKED = "RESOURCE_LOCKED"

Take = Callable[[DeadTicket], Awaitable[None]]


class DeadLetters:
    """The letters in `gateway.dead.failed` and `gateway.dead.crashed`."""

    def __init__(self, *, user: str) -> None:
        self._user = user
        self._turn = asyncio.Lock()

    async def read(self, connection: AbstractConnection, *, limit: int) -> list[DeadTicket]:
        """Up to `limit` letters of each box."""
        found: list[DeadTicket] = []
        async with self._having_turn(connection):
            for box in DEAD_BOXES:
                async with _Reading(connection, box) as reading:
                    while len(found) < 2 * limit and (letter := await reading.next(self._user)) is not None:
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
    async def _having_turn(self, connection: AbstractConnection) -> AsyncIterator[None]:
        async with self._turn:
            with faults_told("cannot read the dead letters"):
                async with asyncio.timeout(_TURN_SECONDS):
                    while not await _takes_turn(connection):  # noqa: ASYNC110 - the broker rings no bell
                        await asyncio.sleep(_PAUSE_SECONDS)
            try:
                yield
            finally:
                with faults_told("cannot end the reading of dead letters"):
                    channel = await open_channel(connection)
                    await channel.queue_delete(_TURN, timeout=RPC_SECONDS)
                    await channel.close()


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
