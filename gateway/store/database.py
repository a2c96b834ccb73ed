"""The seam to the database: work is a plain function on a SQLAlchemy Core connection, run in one transaction.

Every verb of the store is such work, so the same verbs run on SQLite and on PostgreSQL (`store.postgresql`).
Promises: `write` returns after a durable commit; a database that does not answer is StoreUnavailable, soon, and is used
again as soon as it is back; errors of the work itself reach the caller as they are.  After any error nothing of the work
happened, save that StoreUnavailable may hide a commit whose answer was lost.
Limits: work must fetch its results and never ends the transaction itself; it may run more than once, each time on a
transaction in which nothing of it happened yet, so all it does outside of its connection must bear that.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from gateway.errors import Problem, SettingsError, StorageFault, StoreUnavailable
from gateway.runtime import Stop, utc_now
from gateway.sqlite_file import SqliteFile
from gateway.store.postgresql_url import SCHEMES as POSTGRESQL_SCHEMES
from gateway.store.postgresql_url import parse_postgresql_url

if TYPE_CHECKING:
    from gateway.sqlite_file import Connection

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

_SQLITE_ERROR = 1  # the statement's own fault, not the file's


class Bell(Protocol):
    """Wakes its waiter after commits; what was rung before the wait is not lost."""

    async def wait(self, timeout_seconds: float) -> bool: ...


async def ring_or_stop(bell: Bell, stop: Stop, timeout_seconds: float) -> None:
    """Waits for the next commit or the wish to stop, at most so long."""
    ringing = asyncio.ensure_future(bell.wait(timeout_seconds))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((ringing, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (ringing, stopping):
            task.cancel()
        heard, _ = await asyncio.gather(ringing, stopping, return_exceptions=True)
    if isinstance(heard, Exception):
        raise heard


class Database(Protocol):
    """What the verbs of the store need of a database engine."""

    async def write(self, work: Work[T], *, rings: bool = True, size: int = 0) -> T:
        """Runs `work` in one transaction and returns its result after the commit.

        `rings=False` wakes nobody; `size` is how many bytes it will write, where that is many.
        """
        ...

    async def read(self, work: Work[T]) -> T:
        """Runs `work` on one snapshot that holds the last commit."""
        ...

    def bell(self) -> AbstractAsyncContextManager[Bell]:
        """A bell that rings after commits of any process."""
        ...

    def clock(self) -> datetime:
        """The time that all processes on this database agree on: claims and due times are told by it."""
        ...

    async def close(self) -> None: ...


class SqliteDatabase:
    """A database in one SQLite file, shared by the processes of one machine."""

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path)
        self._kept = threading.local()

    async def open(self) -> None:
        with _fault_is_unavailability():
            await self._file.open()

    async def close(self) -> None:
        await self._file.close()

    async def write(self, work: Work[T], *, rings: bool = True, size: int = 0) -> T:
        with _fault_is_unavailability():
            return await self._file.write(lambda raw: self._run(raw, work), rings=rings, size=size)

    async def read(self, work: Work[T]) -> T:
        with _fault_is_unavailability():
            return await self._file.read(lambda raw: self._run(raw, work))

    @asynccontextmanager
    async def bell(self) -> AsyncIterator[Bell]:
        with _fault_is_unavailability():
            async with self._file.bell() as bell:
                yield bell

    def clock(self) -> datetime:
        return utc_now()

    def _run(self, raw: Connection, work: Work[T]) -> T:
        try:
            return work(self._connection(raw))
        except sa.exc.DBAPIError as error:
            # The file's own thread must see its fault bare, to open the file anew.
            if error.orig is not None and _blames_the_file(error):
                raise error.orig from None
            raise

    def _connection(self, raw: Connection) -> sa.Connection:
        """The SQLAlchemy side of this thread's connection, which lives as long as that does.

        Transactions are the file's business: SQLAlchemy is kept from sending BEGIN, COMMIT or ROLLBACK of its own.
        """
        known, connection = getattr(self._kept, "pair", (None, None))
        if known is not raw or connection is None:
            engine = sa.create_engine(
                "sqlite://",
                creator=lambda: raw,
                poolclass=StaticPool,
                pool_reset_on_return=None,
                skip_autocommit_rollback=True,
            )
            connection = engine.connect()
            self._kept.pair = (raw, connection)
        return connection


async def open_database(url: str, *, known: str = "") -> Database:
    """Opens the database a URL names and brings its schema up to date; raises SettingsError or StoreUnavailable.

    `known` names what knows that a ledger must be in it: without one nothing is made, for that would hide what is lost.
    """
    from gateway.store.migrations import HEAD, current_version, upgrade
    from gateway.store.moving import refuse_moved

    database = await open_as_it_is(url, known=known)
    try:
        version = await current_version(database)
        if known and version is None:
            raise _gone("its database is empty", known)
        if version != HEAD:
            await _upgraded(upgrade(database))
        await refuse_moved(database)
    except BaseException:
        await database.close()
        raise
    return database


async def _upgraded(upgrade: Awaitable[None]) -> None:
    try:
        await upgrade
    except StoreUnavailable as fault:
        told = f"{fault}: its schema is older and was not led up; `gateway db upgrade` takes the time it needs"
        raise StoreUnavailable(told) from fault


async def open_as_it_is(url: str, *, patiently: bool = False, known: str = "") -> Database:
    """Opens the database a URL names and leaves its schema alone; `patiently` lets one statement last an hour.

    A file that is not there is made, unless `known` names what knows that one must be there.
    """
    path = file_of(url)
    if path is not None:
        if known and not path.exists():
            raise _gone(f"its file is gone: {path}", known)
        file = SqliteDatabase(path)
        await file.open()
        return file
    from gateway.store.postgresql import PATIENT, Limits, PostgresDatabase

    server = PostgresDatabase(parse_postgresql_url(url), limits=PATIENT if patiently else Limits())
    await server.open()
    return server


def _gone(what: str, known: str) -> StoreUnavailable:
    return StoreUnavailable(f"{what}; put it back, or remove {known}, which knows a ledger, to begin with nothing")


def file_of(url: str) -> Path | None:
    """The file of a sqlite:/// URL, None for a server's; raises SettingsError for a URL that names no database we have."""
    scheme = urlsplit(url).scheme
    if scheme in POSTGRESQL_SCHEMES:
        parse_postgresql_url(url)
        return None
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return Path(unquote(url.removeprefix("sqlite:///")))
    text = f"{scheme or 'this'} is not a database this version has; it has sqlite:///PATH and postgresql://…"
    raise SettingsError([Problem("database_url", text)])


def absent_insert(connection: sa.Connection, table: sa.Table) -> Any:
    """The statement that inserts rows whose keys are not taken yet."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        return postgresql_insert(table).on_conflict_do_nothing()
    from sqlalchemy.dialects.sqlite import insert as sqlite_insert

    return sqlite_insert(table).on_conflict_do_nothing()


def insert_absent(connection: sa.Connection, table: sa.Table, *rows: dict[str, Any]) -> int:
    """Inserts the rows whose keys are not taken yet; returns how many were inserted."""
    statement = absent_insert(connection, table)
    return sum(connection.execute(statement, row).rowcount for row in rows)


def _blames_the_file(error: sa.exc.DBAPIError) -> bool:
    if isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError | sa.exc.DataError):
        return False
    return getattr(error.orig, "sqlite_errorcode", _SQLITE_ERROR) & 0xFF != _SQLITE_ERROR


@contextmanager
def _fault_is_unavailability() -> Iterator[None]:
    try:
        yield
    except StorageFault as error:
        raise StoreUnavailable(str(error)) from error
