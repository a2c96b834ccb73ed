"""Bells over LISTEN and NOTIFY: who waits for news of the store hears of other processes' commits.

NOTIFY is sent beside the recording transactions, not in them: within one it makes every commit of the database wait for
the one before it.  Rings gather while one is on its way, so that a busy process sends few.
Promises: a bell that can no longer hear raises StoreUnavailable from `wait`, so that its owner hangs a new one.
Limits: a process that dies between commit and ring rings nobody; the waiter's poll is the promise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg

from gateway.errors import StoreUnavailable
from gateway.store.postgresql_url import PostgresAddress

CHANNEL = "gateway"
_CLOSE_SECONDS = 2.0


class PostgresBell:
    """One waiter's bell, on a connection of its own."""

    def __init__(self, address: PostgresAddress) -> None:
        self._address = address
        self._rung = asyncio.Event()
        self._connection: asyncpg.Connection[Any] | None = None

    async def hang(self) -> None:
        """Starts to hear; raises StoreUnavailable."""
        try:
            self._connection = await asyncpg.connect(
                self._address.dsn,
                timeout=self._address.connect_seconds,
                command_timeout=self._address.connect_seconds,
                server_settings={"application_name": "gateway bell"},
            )
            self._connection.add_termination_listener(lambda _: self._rung.set())
            await self._connection.add_listener(CHANNEL, lambda *_: self._rung.set())
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            await self.take_down()
            raise StoreUnavailable(f"database: cannot hang a bell: {error or type(error).__name__}") from error

    async def take_down(self) -> None:
        """Closes; idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=_CLOSE_SECONDS)
            if not connection.is_closed():
                connection.terminate()

    async def wait(self, timeout_seconds: float) -> bool:
        """Waits for a ring since the last wait, at most so long; True when it rang, StoreUnavailable when it is deaf."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._rung.wait()
        if self._connection is None or self._connection.is_closed():
            raise StoreUnavailable("database: the connection of a bell was lost")
        was_rung = self._rung.is_set()
        self._rung.clear()
        return was_rung


class Ringer:
    """Sends the rings of one process, one after another; what is rung meanwhile is one ring."""

    def __init__(self, send: Callable[[], Awaitable[None]]) -> None:
        self._send = send
        self._is_due = False
        self._sending: asyncio.Task[None] | None = None

    def ring(self) -> None:
        """Rings soon."""
        self._is_due = True
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._ring_until_quiet())

    async def close(self) -> None:
        """Sends the last ring."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=_CLOSE_SECONDS)
            self._sending.cancel()

    async def _ring_until_quiet(self) -> None:
        while self._is_due:
            self._is_due = False
            # Broad: bells are comfort and the waiter polls; a fault shows at the next write, where it matters.
            with suppress(Exception):
                await self._send()
