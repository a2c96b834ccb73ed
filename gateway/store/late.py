"""A database that may be away at the start: every call is StoreUnavailable until it could be opened, tried once a second.

For `gateway run`: doors answer 250 from the first moment, and whoever needs the store sits out its absence as any other
outage.  Promises: nobody sees the database before what opens it is through with it; what keeps it from opening, whatever
that is, is the text of every StoreUnavailable meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import TypeVar

from gateway.errors import GatewayError, StoreUnavailable
from gateway.store.database import Bell, Database, Work

T = TypeVar("T")
RETRY_SECONDS = 1.0


class LateDatabase:
    """A database on its way; `open_` opens the real one."""

    def __init__(self, open_: Callable[[], Awaitable[Database]], *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._open = open_
        self._retry_seconds = retry_seconds
        self._database: Database | None = None
        self._why = "not opened yet"
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> StoreUnavailable | None:
        """Tries once and goes on trying by itself where the database is away: then it says why. Raises what else there is."""
        try:
            self._database = await self._open()
        except StoreUnavailable as fault:
            self._why = str(fault)
            self._opening = asyncio.create_task(self._go_on())
            return fault
        return None

    async def _go_on(self) -> None:
        while self._database is None:
            await asyncio.sleep(self._retry_seconds)
            try:
                self._database = await self._open()
            # Broad: a database that came back with another fault is away, too, and its next state may be a good one.
            except Exception as error:  # noqa: BLE001
                self._why = str(error) if isinstance(error, GatewayError) else f"{type(error).__name__}: {error}"

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            with suppress(asyncio.CancelledError):
                await self._opening
        if self._database is not None:
            await self._database.close()

    async def write(self, work: Work[T], *, rings: bool = True, size: int = 0) -> T:
        return await self._there().write(work, rings=rings, size=size)

    async def read(self, work: Work[T]) -> T:
        return await self._there().read(work)

    @asynccontextmanager
    async def bell(self) -> AsyncIterator[Bell]:
        async with self._there().bell() as bell:
            yield bell

    def clock(self) -> datetime:
        return self._there().clock()

    def _there(self) -> Database:
        if self._database is None:
            raise StoreUnavailable(self._why)
        return self._database
