"""The publishing side of a connection: one channel, many confirms in flight, answers to what was asked.

Promises: `publish` returns when the broker has confirmed, which for quorum queues means a majority has it on disk; a message
that leads to no queue, is refused (queue full) or stays unconfirmed is QueueUnavailable.  While the broker takes nothing
(`connection.blocked`) publishing fails at once.  An unanswered confirm gives the connection up: the next node may answer.
Limit: messages with the same id go one after another, since the library finds a returned message by its id alone.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import PublishError

from gateway.errors import QueueUnavailable
from gateway.queue.amqp_faults import RPC_SECONDS, faults_told, is_blocked, open_channel
from gateway.queue.amqp_link import Link

CONFIRM_SECONDS = 10.0
BLOCKED = "RabbitMQ takes nothing for now: an alarm of memory or disk"
REPLY_TO = "amq.rabbitmq.reply-to"
_DRAINED_BYTES = 64 * 1024


class Unroutable(QueueUnavailable):
    """The message led to no queue."""


class Publisher:
    """Publishes on one channel of the link's connection, opened anew when either is lost."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._channel: Any = None
        self._opened: AbstractChannel | None = None  # keeps the channel's callbacks alive
        self._connection: AbstractConnection | None = None
        self._opening = asyncio.Lock()
        self._under_way: dict[str, asyncio.Future[None]] = {}
        self._answers: dict[str, asyncio.Future[bytes]] = {}
        self._hears: Any = None

    async def publish(self, message: Message, *, exchange: str, key: str, is_mandatory: bool = True) -> None:
        """Returns when it is confirmed; raises QueueUnavailable, in any doubt too."""
        connection = self._link.get()
        if await is_blocked(connection):
            raise QueueUnavailable(BLOCKED)
        channel = await self._open_channel(connection)
        async with self._turn(message.message_id or ""):
            try:
                with faults_told(f"not confirmed by {exchange or key}"):
                    await channel.basic_publish(
                        message.body,
                        exchange=exchange,
                        routing_key=key,
                        properties=message.properties,
                        mandatory=is_mandatory,
                        timeout=CONFIRM_SECONDS,
                        wait=len(message.body) > _DRAINED_BYTES,
                    )
            except QueueUnavailable as error:
                if isinstance(error.__cause__, PublishError):
                    raise Unroutable(
                        f"RabbitMQ has no queue for {key} at {exchange or 'the default exchange'}"
                    ) from error
                if isinstance(error.__cause__, TimeoutError) and not await is_blocked(connection):
                    self._link.drop(connection, str(error))
                raise

    @asynccontextmanager
    async def hearing(self, correlation_id: str) -> AsyncIterator[asyncio.Future[bytes]]:
        """The answer to a question published on this channel with `reply_to` REPLY_TO."""
        channel = await self._open_channel(self._link.get())
        async with self._opening:
            if self._hears is not channel:
                with faults_told("cannot hear answers"):
                    await channel.basic_consume(REPLY_TO, self._hear, no_ack=True, timeout=RPC_SECONDS)
                self._hears = channel
        future = self._answers[correlation_id] = asyncio.get_running_loop().create_future()
        try:
            yield future
        finally:
            del self._answers[correlation_id]

    async def _hear(self, message: Any) -> None:
        future = self._answers.get(message.header.properties.correlation_id)
        if future is not None and not future.done():
            future.set_result(message.body)

    async def _open_channel(self, connection: AbstractConnection) -> Any:
        if self._is_of(connection):
            return self._channel
        async with self._opening:
            if not self._is_of(connection):
                with faults_told("cannot open a channel"):
                    async with asyncio.timeout(RPC_SECONDS):
                        self._opened = await open_channel(connection, confirms=True)
                        self._channel = await self._opened.get_underlay_channel()
                self._connection = connection
            return self._channel

    def _is_of(self, connection: AbstractConnection) -> bool:
        return self._connection is connection and self._channel is not None and not self._channel.is_closed

    @asynccontextmanager
    async def _turn(self, id: str) -> AsyncIterator[None]:
        while (before := self._under_way.get(id)) is not None:
            await asyncio.wait([before])
        mine = self._under_way[id] = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            del self._under_way[id]
            mine.set_result(None)


def question_id() -> str:
    return str(uuid.uuid4())
