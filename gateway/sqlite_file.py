"""One SQLite file shared by several processes: commits in turn, in groups, durable; bells tell who waits for news.

The one home of stdlib sqlite3.  `queue.sqlite` keeps its tickets here, `store.outage` its notices.
Every write transaction **and** every checkpoint runs inside `flock(<file>.turn)`: no commit beside a checkpoint (SQLite
before 3.51.3 can corrupt a WAL when they race), and waiting is fair.  One writer thread per process gathers what is
offered meanwhile into one BEGIN IMMEDIATE … COMMIT.  Readers have a thread and a connection of their own.
Promises: `write` returns after a COMMIT with synchronous=FULL; a fault of file or disk is StorageFault, soon, for every
offer of that batch, and the file is opened anew for the next one; it is created by `open` only, never again after that.
Limits: local file systems; a process must not fork and go on using it; work must not end the transaction itself or
return cursors; a read may hold its snapshot `READ_SECONDS`, since it keeps the WAL from starting over.
BUGS: a read that computes without touching SQL is not interrupted.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from gateway.errors import StorageFault
from gateway.sqlite_bells import Belfry, Bell
from gateway.sqlite_turn import Turn, bytes_in_wal

Connection = sqlite3.Connection
T = TypeVar("T")
Prepare = Callable[[Connection], None]

MAX_OFFERS = 200
MAX_BATCH_BYTES = 8 * 1024 * 1024
CHECKPOINT_FROM_BYTES = 16 * 1024 * 1024
CHECKPOINT_INSIST_BYTES = 40 * 1024 * 1024
CHECKPOINT_AGAIN_BYTES = 4 * 1024 * 1024
BUSY_SECONDS = 5.0
GLANCE_SECONDS = 0.05
LINGER_SECONDS = 0.01
READ_SECONDS = 5.0
PATIENCE_SECONDS = 15.0
_BRIEFLY_SECONDS = 0.3

_FAULTS = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)


class SqliteFile:
    """The file as one process sees it, on one event loop; an async context manager."""

    def __init__(self, path: Path, *, prepare: Prepare | None = None) -> None:
        """`prepare` creates what is missing: it runs in the turn, in a transaction, each time the writer opens the file."""
        self.path = path
        self._belfry = Belfry(path.with_name(path.name + ".bells"), of=path)
        self._writer = _Writer(path, prepare, self._belfry)
        self._reader = _Reader(path)
        self._process = 0

    async def open(self) -> None:
        """Opens or creates the file and proves it durable (WAL, synchronous FULL); raises StorageFault."""
        try:
            self._belfry.open()
        except OSError as error:
            raise _fault(self.path, error) from error
        self._process = os.getpid()
        self._writer.start(asyncio.get_running_loop())
        self._reader.start(asyncio.get_running_loop())
        try:
            await self.write(lambda connection: None, rings=False)
        except BaseException:
            await self._close(_BRIEFLY_SECONDS)  # a thread that waits for the turn may wait for ever
            raise

    async def close(self) -> None:
        """Runs what was offered, then closes; idempotent."""
        await self._close(PATIENCE_SECONDS)

    async def _close(self, patience_seconds: float) -> None:
        if self._process == os.getpid():
            self._process = 0
            await asyncio.to_thread(self._reader.end, patience_seconds)
            await asyncio.to_thread(self._writer.end, patience_seconds)
            self._belfry.close()

    async def __aenter__(self) -> SqliteFile:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def write(self, work: Callable[[Connection], T], *, rings: bool = True, size: int = 0) -> T:
        """Runs `work` in the next batch and returns its result after the COMMIT.

        What `work` raises undoes `work` alone and is raised here; a fault of the file is StorageFault.  `rings=False`
        wakes nobody; `size` is how many bytes it will write, where that is many.
        """
        return await self._answer_to(self._writer, _Offer(work=work, future=self._future(), rings=rings, size=size))

    def write_soon(self, work: Callable[[Connection], T], *, rings: bool = False) -> asyncio.Future[T]:
        """Lets `work` ride in the next batch, which comes within `LINGER_SECONDS`; the future tells how it went."""
        offer = _Offer(work=work, future=self._future(), rings=rings, waits=False)
        self._writer.offer(offer)
        return offer.future

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` on one snapshot that holds the last commit, beside the writer."""
        return await self._answer_to(self._reader, _Offer(work=work, future=self._future()))

    def bell(self) -> Bell:
        """A bell that rings after commits of any process; enter it before looking, then look, then wait."""
        return Bell(self._belfry)

    def _future(self) -> asyncio.Future[Any]:
        if self._process != os.getpid():
            raise StorageFault(f"{self.path}: not open in this process")
        return asyncio.get_running_loop().create_future()

    async def _answer_to(self, thread: _Worker, offer: _Offer[T]) -> T:
        thread.offer(offer)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS) as patience:
                return await offer.future
        except TimeoutError:
            if patience.expired():
                raise StorageFault(f"{self.path}: no answer within {PATIENCE_SECONDS:.0f} s") from None
            raise


async def table_names(path: Path) -> set[str]:
    """The tables in a file; none when there is no such file."""
    if not path.exists():
        return set()
    async with SqliteFile(path) as file:
        rows = await file.read(lambda connection: connection.execute("SELECT name FROM sqlite_master").fetchall())
    return {name for (name,) in rows}


@dataclass(slots=True, eq=False, kw_only=True)
class _Offer(Generic[T]):
    """Work on its way to a thread; cancelling the future withdraws it as long as it has not begun."""

    work: Callable[[Connection], T]
    future: asyncio.Future[T]
    waits: bool = True
    rings: bool = False
    size: int = 0
    result: T | None = None
    error: BaseException | None = None

    def answer(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)  # type: ignore[arg-type]  # None where T is None


class _Worker:
    """A thread with a queue of offers, and the way back to the event loop."""

    def __init__(self, name: str, link: _Link) -> None:
        self._name = name
        self._link = link
        self._offers: queue.SimpleQueue[_Offer[Any] | None] = queue.SimpleQueue()
        self._ending = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ending = False
        # Daemon: a disk that hangs in fsync must not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def offer(self, offer: _Offer[Any]) -> None:
        self._offers.put(offer)

    def end(self, patience_seconds: float) -> None:
        self._offers.put(None)
        self._thread.join(patience_seconds)

    def _run(self) -> None:
        raise NotImplementedError

    def _answer(self, offers: list[_Offer[Any]]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(_answer_all, offers)


def _answer_all(offers: list[_Offer[Any]]) -> None:
    for offer in offers:
        offer.answer()


class _Writer(_Worker):
    """Gathers offers, commits them together in the turn, answers, rings, and checkpoints when the WAL is large."""

    def __init__(self, path: Path, prepare: Prepare | None, belfry: Belfry) -> None:
        super().__init__(f"write {path.name}", _Link(path, prepare=prepare))
        self._path = path
        self._belfry = belfry
        self._checkpoint_from = CHECKPOINT_FROM_BYTES

    def _run(self) -> None:
        while not self._ending:
            if batch := self._gather():
                self._commit(batch)
        self._link.close()

    def _gather(self) -> list[_Offer[Any]]:
        """Waits for an offer somebody waits for, or a little while for company for those nobody waits for."""
        batch: list[_Offer[Any]] = []
        deadline: float | None = None
        while True:
            try:
                offer = self._offers.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return batch
            if offer is None:
                self._ending = True
                return batch
            batch.append(offer)
            if offer.waits or len(batch) >= MAX_OFFERS:
                return batch
            deadline = deadline or time.monotonic() + LINGER_SECONDS

    def _gather_more(self, batch: list[_Offer[Any]]) -> None:
        """Takes what was offered while we waited for the turn."""
        size = sum(offer.size for offer in batch)
        with suppress(queue.Empty):
            while not self._ending and len(batch) < MAX_OFFERS and size < MAX_BATCH_BYTES:
                offer = self._offers.get_nowait()
                if offer is None:
                    self._ending = True
                else:
                    batch.append(offer)
                    size += offer.size

    def _commit(self, batch: list[_Offer[Any]]) -> None:
        wal_bytes = 0
        try:
            with self._link.held():
                self._gather_more(batch)
                if self._transact(self._link.connection(), batch):
                    wal_bytes = bytes_in_wal(self._path, at_least=self._checkpoint_from)
                if wal_bytes:
                    self._tell(batch)  # committed: nobody waits for the checkpoint
                    self._checkpoint(wal_bytes)
        # Broad: this thread must outlive every fault, and whoever offered something is told of it.
        except BaseException as error:  # noqa: BLE001
            if not wal_bytes:
                self._fail(batch, error)
        if not wal_bytes:
            self._tell(batch)

    def _transact(self, connection: Connection, batch: list[_Offer[Any]]) -> bool:
        """Runs the batch in one transaction; True when it changed anything."""
        before = connection.total_changes
        connection.execute("BEGIN IMMEDIATE")
        for offer in batch:
            if not offer.future.cancelled():
                _run_in_savepoint(connection, offer)
        connection.execute("COMMIT")
        return connection.total_changes != before

    def _fail(self, batch: list[_Offer[Any]], error: BaseException) -> None:
        for offer in batch:
            offer.error = offer.error or _fault(self._path, error)

    def _tell(self, batch: list[_Offer[Any]]) -> None:
        self._answer(batch)
        if any(offer.rings and offer.error is None for offer in batch):
            self._belfry.ring()

    def _checkpoint(self, wal_bytes: int) -> None:
        """Starts the WAL over; a reader in the way is waited for only when the WAL has grown beyond the ordinary."""
        connection = self._link.connection()
        patience_seconds = BUSY_SECONDS if wal_bytes >= CHECKPOINT_INSIST_BYTES else GLANCE_SECONDS
        connection.execute(f"PRAGMA busy_timeout={patience_seconds * 1000:.0f}")
        was_busy = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]
        connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000:.0f}")
        self._checkpoint_from = wal_bytes + CHECKPOINT_AGAIN_BYTES if was_busy else CHECKPOINT_FROM_BYTES


def _run_in_savepoint(connection: Connection, offer: _Offer[Any]) -> None:
    connection.execute("SAVEPOINT offer")
    try:
        offer.result = offer.work(connection)
    # Broad, panics of extension modules included: one caller's mistake must not undo the others' work.
    except BaseException as error:
        if _is_fault(error):
            raise
        connection.execute("ROLLBACK TO offer")
        offer.error = error
    connection.execute("RELEASE offer")


class _Reader(_Worker):
    """Runs reads one after another, each on a snapshot of its own that ends with it."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"read {path.name}", _Link(path, query_only=True))
        self._path = path

    def _run(self) -> None:
        while (offer := self._offers.get()) is not None:
            if not offer.future.cancelled():
                self._read(offer)
                self._answer([offer])
        self._link.close()

    def _read(self, offer: _Offer[Any]) -> None:
        try:
            if not self._link.is_usable:
                with self._link.held():  # the first connection to a WAL may have to recover it
                    self._link.connection()
            connection = self._link.connection()
            deadline = time.monotonic() + READ_SECONDS
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            connection.execute("BEGIN")
            try:
                offer.result = offer.work(connection)
            except BaseException:
                self._roll_back(connection)
                raise
            connection.execute("ROLLBACK")
        # Broad: this thread must outlive what it is given; the caller hears of it.
        except BaseException as error:  # noqa: BLE001
            offer.error = error
            if _is_fault(error) or isinstance(error, OSError):
                self._link.close()
                offer.error = _fault(self._path, error)

    def _roll_back(self, connection: Connection) -> None:
        """Ends a read that failed; what fails here must not hide why."""
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        if connection.in_transaction:
            self._link.close()


class _Link:
    """One thread's connection: opened in the turn, and anew when the file failed, went away or was replaced."""

    def __init__(self, path: Path, *, prepare: Prepare | None = None, query_only: bool = False) -> None:
        self._path = path
        self._prepare = prepare
        self._query_only = query_only
        self._may_create = not query_only
        self._connection: Connection | None = None
        self._identity = (0, 0)
        self._turn = Turn(path.with_name(path.name + ".turn"), of=path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the turn; the connection does not survive an error in it."""
        with self._turn:
            try:
                yield
            except BaseException:
                self._drop()
                raise

    @property
    def is_usable(self) -> bool:
        return self._connection is not None and self._identity == _identity(self._path)

    def connection(self) -> Connection:
        """The connection; called in the turn, unless it is known to be usable. Raises sqlite3.Error or OSError."""
        if self._connection is None or not self.is_usable:
            self._drop()
            self._connection = self._connect()
            self._identity, self._may_create = _identity(self._path), False
        return self._connection

    def _drop(self) -> None:
        """Forgets the connection; in the turn, because the last one to close checkpoints."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):  # it is dropped because it is broken
                connection.close()

    def close(self) -> None:
        """Closes in the turn; where the turn cannot be had the connection is left to the end of the process."""
        if self._connection is not None:
            with suppress(OSError), self._turn:
                self._drop()
        self._turn.close()

    def _connect(self) -> Connection:
        uri = f"{self._path.absolute().as_uri()}?mode={'rwc' if self._may_create else 'rw'}"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, cached_statements=256)
        try:
            _make_durable(connection)
            if self._query_only:
                connection.execute("PRAGMA query_only=ON")
            if self._prepare is not None:
                _prepare(connection, self._prepare)
            if self._may_create:
                _sync_folder(self._path.absolute().parent)
        except BaseException:
            connection.close()
            raise
        return connection


def _make_durable(connection: Connection) -> None:
    """Demands what a kept promise needs, and proves it: SQLite answers a pragma it cannot grant with the old value."""
    journal_mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute(f"PRAGMA journal_size_limit={2 * CHECKPOINT_FROM_BYTES}")
    connection.execute("PRAGMA foreign_keys=ON")
    synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
    if journal_mode != "wal" or synchronous < 2:
        raise StorageFault(f"journal_mode is {journal_mode}, synchronous is {synchronous}; durable is wal and 2")


def _prepare(connection: Connection, prepare: Prepare) -> None:
    connection.execute("BEGIN IMMEDIATE")
    prepare(connection)
    if connection.in_transaction:
        connection.execute("COMMIT")


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _identity(path: Path) -> tuple[int, int]:
    """What tells the file from another of its name; it is only looked at: closing it would drop SQLite's locks."""
    try:
        facts = os.stat(path)
    except OSError:
        return (-1, -1)
    return (facts.st_dev, facts.st_ino)


def _is_fault(error: BaseException) -> bool:
    """Whether file or disk are to blame, not the statement."""
    if isinstance(error, sqlite3.Error):
        return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _FAULTS
    return isinstance(error, StorageFault)


def _fault(path: Path, error: BaseException) -> StorageFault:
    return StorageFault(f"{path}: {error or type(error).__name__}")
