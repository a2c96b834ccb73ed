"""A PostgreSQL database behind the seam of `store.database`: asyncpg under SQLAlchemy Core, a pool per process.

Work runs in READ COMMITTED and locks the rows it is about to change (`store.locks`); a read has one REPEATABLE READ snapshot.
What lost a race (deadlock, serialisation, a key taken a moment ago) runs again, and so does work whose pooled connection
turns out dead or may only read (the address has moved to another server), for then nothing of it happened.  A fault during
COMMIT is told as StoreUnavailable: nobody knows whether it took place, and every verb may be called again.  Whoever waits
for a write may be cancelled, the write goes through.
Time is the server's (`clock`), so that claims of several hosts mean the same.
Promises: `write` returns after the server's durable commit; no call lasts longer than `Limits.patience_seconds`.
Limits: durable is what the server was told it is (`synchronous_commit`, standbys); a pooler between us and the server must
be in session mode, for one in transaction mode loses bells and prepared statements.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from gateway.errors import Problem, SettingsError, StoreUnavailable
from gateway.store.postgresql_bell import CHANNEL, PostgresBell, Ringer
from gateway.store.postgresql_faults import Verdict, leave_the_standby, verdict_on
from gateway.store.postgresql_url import PostgresAddress

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection

    from gateway.store.database import Work

T = TypeVar("T")
CONNECTIONS = 8
CLOCK_SECONDS = 30.0
_TRIES = {Verdict.AGAIN: 8, Verdict.AGAIN_ONCE: 2, Verdict.LOST_CONNECTION: 2}
_STATEMENTS_KEPT = 512
_POOLED_SECONDS = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long one lock, one statement and a whole call may last, in seconds."""

    lock_seconds: float = 8.0
    statement_seconds: float = 12.0
    patience_seconds: float = 30.0


PATIENT = Limits(statement_seconds=3600.0, patience_seconds=7200.0)


class PostgresDatabase:
    """A database on a PostgreSQL server, shared by any number of processes and hosts."""

    def __init__(self, address: PostgresAddress, *, limits: Limits = Limits()) -> None:
        self._address = address
        self._limits = limits
        self._engine = self._make_engine()
        reading = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._snapshots = self._engine.execution_options(**reading)
        self._ringer = Ringer(self._notify)
        self._running: set[asyncio.Task[Any]] = set()
        self._is_open = False
        self._server_time: datetime | None = None
        self._measured_at = 0.0

    async def open(self) -> None:
        """Proves that the server is there and lets us in; raises StoreUnavailable or SettingsError."""
        self._is_open = True
        try:
            await self.read(lambda connection: connection.execute(sa.text("SELECT 1")).scalar_one())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Lets what has begun come to its end, then closes; idempotent."""
        self._is_open = False
        if self._running:
            await asyncio.wait(self._running, timeout=self._limits.patience_seconds)
        await self._ringer.close()
        await self._engine.dispose()

    async def write(self, work: Work[T], *, rings: bool = True, size: int = 0) -> T:
        result = await self._to_its_end(self._repeated(self._engine, work))
        if rings:
            self._ringer.ring()
        return result

    async def read(self, work: Work[T]) -> T:
        return await self._to_its_end(self._repeated(self._snapshots, work))

    @asynccontextmanager
    async def bell(self) -> AsyncIterator[PostgresBell]:
        bell = PostgresBell(self._address)
        await bell.hang()
        try:
            yield bell
        finally:
            await bell.take_down()

    def clock(self) -> datetime:
        """The server's time, carried on by this machine's steady clock since it was last asked."""
        if self._server_time is None:
            raise StoreUnavailable("database: its time is not known yet")
        return self._server_time + timedelta(seconds=time.monotonic() - self._measured_at)

    # how

    def _make_engine(self) -> AsyncEngine:
        engine = create_async_engine(
            "postgresql+asyncpg://",
            connect_args={
                "dsn": self._address.dsn,
                "timeout": self._address.connect_seconds,
                "command_timeout": self._limits.statement_seconds + 1,
                "server_settings": {"application_name": "gateway"},
                "prepared_statement_cache_size": _STATEMENTS_KEPT,
            },
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=self._limits.patience_seconds,
            pool_recycle=_POOLED_SECONDS,
            pool_use_lifo=True,
        )
        sa.event.listen(engine.sync_engine, "connect", self._limit)
        sa.event.listen(engine.sync_engine, "handle_error", leave_the_standby)
        return engine

    def _limit(self, connection: DBAPIConnection, _: object) -> None:
        """Tells the server how long it may take; not as the connection starts, for poolers refuse to hear it then."""
        seconds = {
            "lock_timeout": self._limits.lock_seconds,
            "statement_timeout": self._limits.statement_seconds,
            # A process that was stopped within a transaction must not keep its rows from everybody else.
            "idle_in_transaction_session_timeout": self._limits.statement_seconds,
        }
        settings = ", ".join(f"set_config('{name}', '{value * 1000:.0f}', false)" for name, value in seconds.items())
        cursor = connection.cursor()
        cursor.execute(f"SELECT {settings}")
        cursor.close()
        connection.commit()

    async def _to_its_end(self, call: Coroutine[Any, Any, T]) -> T:
        """Waits for the call; a caller that is cancelled leaves it to finish by itself."""
        if not self._is_open:
            call.close()
            raise StoreUnavailable("database: not open in this process")
        task = asyncio.create_task(call)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, so that a call nobody waits for any more is not complained about

    async def _repeated(self, engine: AsyncEngine, work: Work[T]) -> T:
        """Runs the work in a transaction, again where it lost a race; every fault of the server is StoreUnavailable."""
        attempt = 0
        try:
            async with asyncio.timeout(self._limits.patience_seconds) as patience:
                while True:
                    attempt += 1
                    try:
                        return await self._transact(engine, work)
                    except sa.exc.DBAPIError as error:
                        _raise_unless_again(error, attempt)
                    await asyncio.sleep(random.uniform(0, 0.01) * attempt)
        except TimeoutError as error:
            if not patience.expired():
                raise StoreUnavailable("database: no answer in time") from error
            raise StoreUnavailable(f"database: no answer within {self._limits.patience_seconds:.0f} s") from None

    async def _transact(self, engine: AsyncEngine, work: Work[T]) -> T:
        async with self._connected(engine) as connection:
            if time.monotonic() - self._measured_at > CLOCK_SECONDS or self._server_time is None:
                await self._read_clock(connection)
            result = await connection.run_sync(work)
            if engine is self._engine:
                await _commit(connection)
            return result

    @asynccontextmanager
    async def _connected(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """A connection out of the pool; one that was left in the middle of an answer does not go back."""
        try:
            connection = await engine.connect()
        except (OSError, sa.exc.DBAPIError, sa.exc.TimeoutError, ValueError) as error:
            raise _no_connection(error) from error
        try:
            yield connection
        except (asyncio.CancelledError, TimeoutError):
            await connection.invalidate()
            raise
        finally:
            await connection.close()

    async def _read_clock(self, connection: AsyncConnection) -> None:
        asked_at = time.monotonic()
        now = (await connection.execute(sa.select(sa.func.clock_timestamp()))).scalar_one()
        answered_at = time.monotonic()
        self._server_time, self._measured_at = now, (asked_at + answered_at) / 2

    async def _notify(self) -> None:
        async with self._connected(self._engine) as connection:
            autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await autocommit.exec_driver_sql(f"NOTIFY {CHANNEL}")


async def _commit(connection: AsyncConnection) -> None:
    try:
        await connection.commit()
    except sa.exc.DBAPIError as error:
        if verdict_on(error) in (Verdict.LOST_CONNECTION, Verdict.AWAY):
            raise _unknown_outcome(error) from error
        raise
    except TimeoutError as error:
        await connection.invalidate()
        raise _unknown_outcome(error) from error


def _raise_unless_again(error: sa.exc.DBAPIError, attempt: int) -> None:
    """Returns where the work may run once more."""
    verdict = verdict_on(error)
    if attempt < _TRIES.get(verdict, 1):
        return
    if verdict in (Verdict.WORKS_OWN, Verdict.AGAIN_ONCE):
        raise error
    raise StoreUnavailable(f"database: {_words(error)}") from error


def _no_connection(error: Exception) -> StoreUnavailable | SettingsError:
    """A server that is away is waited for; an address that no server can have is a mistake in the settings."""
    from asyncpg.exceptions import ClientConfigurationError

    cause = getattr(error, "orig", None)
    told = getattr(cause, "__cause__", None) or error
    if isinstance(told, ClientConfigurationError) or isinstance(error, ValueError):
        return SettingsError([Problem("database_url", _words(error))])
    return StoreUnavailable(f"database: {_words(error)}")


def _unknown_outcome(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"database: lost during COMMIT, which may have taken place: {_words(error)}")


def _words(error: Exception) -> str:
    """What the server said, without the statement and its values."""
    text = str(getattr(error, "orig", None) or error) or type(error).__name__
    return text.partition("\n")[0].partition(">: ")[2] or text.partition("\n")[0]
