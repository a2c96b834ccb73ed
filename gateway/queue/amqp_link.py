"""One connection to RabbitMQ, kept up: URLs tried in turn, made anew when it is lost, and given up when it does not answer.

Promises: while it is down `get` fails at once, so that a caller can answer 451; a new connection is prepared (topology
declared, channels opened) before anybody gets it.  A node that is there and says nothing (stopped, cut off) is left by
`drop` after an unanswered confirm or look of the consumers' watch; heartbeats are the net below that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import aio_pika
from aio_pika.abc import AbstractConnection

from gateway.errors import GatewayError, QueueUnavailable
from gateway.queue.amqp_faults import RPC_SECONDS, faults_told, said
from gateway.queue.amqp_version import refuse_version, version_of

CONNECT_SECONDS = 5.0
HEARTBEAT_SECONDS = 10
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
Prepare = Callable[[AbstractConnection], Awaitable[None]]


class Link:
    """A connection by one of `urls`; `prepare` makes each new one ready for use."""

    def __init__(self, urls: Sequence[str], *, name: str, prepare: Prepare) -> None:
        self._urls = deque(urls)
        self._name = name
        self._prepare = prepare
        self._connection: AbstractConnection | None = None
        self._fault = "not open"
        self._attempt: asyncio.Future[AbstractConnection] | None = None
        self._lost = asyncio.Event()
        self._is_closed = False
        self._keeper: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connects, trying each URL once; raises QueueUnavailable or what preparing says of the topology."""
        await self._connect()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        self._is_closed = True  # the library may swallow a cancellation, so the keeper looks at this as well
        self._lost.set()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper], timeout=2 * CONNECT_SECONDS)
        if self._connection is not None:
            self.drop(self._connection, "closed")
        self._fault = "the queue is closed"
        self._end_attempt(QueueUnavailable(self._fault))
        if self._leaving:
            await asyncio.wait(self._leaving)

    def get(self) -> AbstractConnection:
        """The open connection; raises QueueUnavailable while there is none."""
        if self._connection is None:
            raise QueueUnavailable(self._fault)
        return self._connection

    async def wait(self) -> AbstractConnection:
        """The open connection, after the attempt under way to make one; raises QueueUnavailable when that failed."""
        if self._connection is not None:
            return self._connection
        if self._keeper is None or self._keeper.done():
            raise QueueUnavailable(self._fault)
        if self._attempt is None:
            self._attempt = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._attempt)

    def drop(self, connection: AbstractConnection, why: str) -> None:
        """Leaves a connection that does not answer or was lost; a new one is made at once."""
        if connection is not self._connection:
            return
        self._connection, self._fault = None, why
        self._urls.rotate(-1)
        self._lost.set()
        task = asyncio.create_task(_leave(connection))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _keep(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._is_closed:
            await self._lost.wait()
            try:
                await self._connect()
            # Broad: whatever a connection or its preparing raises, the next attempt may do better.
            except Exception as error:  # noqa: BLE001
                self._fault = str(error)
                self._end_attempt(QueueUnavailable(self._fault))
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)
            else:
                pause_seconds = FIRST_PAUSE_SECONDS

    async def _connect(self) -> None:
        for _ in range(len(self._urls)):
            try:
                connection = await self._connect_to(self._urls[0])
            except QueueUnavailable as error:
                fault = error
                self._urls.rotate(-1)
            else:
                break
        else:
            raise fault
        self._connection = connection
        if not self._is_closed:
            self._lost.clear()
        connection.close_callbacks.add(self._on_close)
        if _is_over(connection):  # while it was prepared
            self.drop(connection, "the connection was closed")
        if self._attempt is not None and not self._attempt.done():
            self._attempt.set_result(connection)
        self._attempt = None

    async def _connect_to(self, url: str) -> AbstractConnection:
        where = urlsplit(url).hostname or url
        with faults_told(f"RabbitMQ at {where}"):
            connection = await aio_pika.connect(
                url,
                timeout=CONNECT_SECONDS,
                heartbeat=HEARTBEAT_SECONDS,
                client_properties={"connection_name": self._name},
            )
            try:
                async with asyncio.timeout(4 * RPC_SECONDS):
                    refuse_version(version_of(connection))
                    await self._prepare(connection)
            except BaseException:
                await _leave(connection)
                raise
        return connection

    def _on_close(self, connection: AbstractConnection | None, error: BaseException | None) -> None:
        if connection is not None:
            self.drop(connection, f"the connection was lost: {said(error)}" if error else "the connection was closed")

    def _end_attempt(self, error: GatewayError) -> None:
        if self._attempt is not None and not self._attempt.done():
            self._attempt.set_exception(error)
            self._attempt.exception()  # looked at, whether anybody waits or not
        self._attempt = None


def _is_over(connection: AbstractConnection) -> bool:
    return connection.transport is None or connection.transport.connection.is_closed


async def _leave(connection: AbstractConnection) -> None:
    """Closes it, waiting a while: the library's close can neither be trusted to end nor be cancelled."""
    closing = asyncio.ensure_future(connection.close(ConnectionResetError("the connection was given up")))
    closing.add_done_callback(_look_at)
    await asyncio.wait([closing], timeout=CONNECT_SECONDS)


def _look_at(closing: asyncio.Future[None]) -> None:
    """It is given up already: what its closing raises concerns nobody."""
    if not closing.cancelled():
        closing.exception()
