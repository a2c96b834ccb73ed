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
import fcntl
import os
import queue
import socket
import sqlite3
import stat
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from gateway.errors import StorageFault

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
_SOCKET_PATH_BYTES = 107

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
        self._belfry = _Belfry(path.with_name(path.name + ".bells"), of=path)
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

    def __init__(self, path: Path, prepare: Prepare | None, belfry: _Belfry) -> None:
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
                    wal_bytes = _wal_bytes(self._path, at_least=self._checkpoint_from)
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
        self._turn = _Turn(path.with_name(path.name + ".turn"), of=path)

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


def open_beside(path: Path, of: Path) -> int:
    """Opens a file that belongs to the file `of`; one made here is given to that one's owner."""
    flags = os.O_RDWR | os.O_CLOEXEC
    with suppress(FileExistsError):
        # Exclusive, so that root gives away only what it has made itself, not what a link of that name leads to.
        number = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o660)
        _give_to_owner(number, of)
        return number
    return os.open(path, flags | os.O_CREAT, 0o660)  # it may be gone again meanwhile


def make_folder_beside(folder: Path, of: Path) -> None:
    """Makes the folder if it is missing; one made here is given to the owner of the file `of`."""
    with suppress(FileExistsError):
        folder.mkdir()
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _give_to_owner(number, of)
        finally:
            os.close(number)


def _give_to_owner(made: int, of: Path) -> None:
    """Whoever may write the file must be able to use what stands beside it, also when root looked in first."""
    with suppress(OSError):
        facts, mine = os.stat(of), os.fstat(made)
        shared = (0o060 if facts.st_mode & 0o020 else 0) | (0o006 if facts.st_mode & 0o002 else 0)
        executable = 0o111 if stat.S_ISDIR(mine.st_mode) else 0
        if shared:
            os.fchmod(made, stat.S_IMODE(mine.st_mode) | shared | executable & (shared >> 1 | shared >> 2))
        if (facts.st_uid, facts.st_gid) != (mine.st_uid, mine.st_gid):
            os.fchown(made, facts.st_uid, facts.st_gid)


class _Turn:
    """The turnstile: whoever holds it may commit, checkpoint, open and close. Not re-entrant; one per thread."""

    def __init__(self, path: Path, *, of: Path) -> None:
        self._path = path
        self._of = of
        self._number = -1

    def __enter__(self) -> None:
        while True:
            if self._number < 0:
                self._number = open_beside(self._path, self._of)
            fcntl.flock(self._number, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._number), os.stat(self._path)):
                    return
            self.close()  # the folder was replaced under us: others hold their turns at the new file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.flock(self._number, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._number >= 0:
            os.close(self._number)
            self._number = -1


def _wal_bytes(path: Path, *, at_least: int) -> int:
    """The bytes of the WAL's current round if they reach `at_least`, else 0.

    The file keeps its size when the WAL starts over; a frame belongs to the round when its salts are the header's
    (SQLite file format, section 4.1), and those come first, so they are counted by halving.
    """
    try:
        number = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        size = os.fstat(number).st_size
        if size < at_least:
            return 0
        header = os.pread(number, 32, 0)
        frame_bytes = 24 + int(struct.unpack(">I", header[8:12])[0])
        low, high = 0, (size - 32) // frame_bytes
        while low < high:
            middle = (low + high) // 2
            if os.pread(number, 8, 32 + middle * frame_bytes + 8) == header[16:24]:
                low = middle + 1
            else:
                high = middle
    finally:
        os.close(number)
    used = 32 + low * frame_bytes
    return used if used >= at_least else 0


def _is_fault(error: BaseException) -> bool:
    """Whether file or disk are to blame, not the statement."""
    if isinstance(error, sqlite3.Error):
        return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _FAULTS
    return isinstance(error, StorageFault)


def _fault(path: Path, error: BaseException) -> StorageFault:
    return StorageFault(f"{path}: {error or type(error).__name__}")


class _Belfry:
    """The folder of bells beside the file: a datagram socket for each process that waits."""

    def __init__(self, folder: Path, *, of: Path) -> None:
        self._folder = folder
        self._of = of
        self._number = -1
        self._voice: socket.socket | None = None

    def open(self) -> None:
        make_folder_beside(self._folder, self._of)
        self._number = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._voice = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def close(self) -> None:
        if self._voice is not None:
            self._voice.close()
            self._voice = None
            os.close(self._number)

    def hang(self, name: str) -> socket.socket:
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            bell.bind(self._address(name))
            self._give_to_owner(name)
        except BaseException:
            bell.close()
            raise
        return bell

    def _give_to_owner(self, name: str) -> None:
        with suppress(OSError):
            facts = os.stat(self._of)
            if facts.st_uid != os.geteuid():
                os.chown(self._folder / name, facts.st_uid, facts.st_gid, follow_symlinks=False)

    def take_down(self, name: str) -> None:
        with suppress(OSError):  # gone already
            os.unlink(self._folder / name)

    def ring(self) -> None:
        """Rings every bell; bells are comfort, the caller's poll is the promise, so nothing is raised."""
        with suppress(OSError):
            for name in os.listdir(self._folder):
                self._ring_one(name)

    def _ring_one(self, name: str) -> None:
        assert self._voice is not None
        try:
            self._voice.sendto(b"\0", self._address(name))
        except BlockingIOError:
            pass  # its buffer is full of rings: it will wake
        except ConnectionRefusedError:
            self._bury(name)
        except OSError:
            pass  # somebody else's bell, or gone meanwhile

    def _bury(self, name: str) -> None:
        # A bell being hung refuses, too, between the making of its file and the end of bind().
        with suppress(OSError):
            if time.time() - os.stat(self._folder / name).st_mtime > 1:
                os.unlink(self._folder / name)

    def _address(self, name: str) -> str:
        direct = str(self._folder / name)
        if len(os.fsencode(direct)) <= _SOCKET_PATH_BYTES:
            return direct
        return f"/proc/self/fd/{self._number}/{name}"


class Bell:
    """Wakes one waiter about 1 ms after a commit of any process. Rings are not counted; one kept over is not lost."""

    def __init__(self, belfry: _Belfry) -> None:
        self._belfry = belfry
        self._name = f"{os.getpid()}.{uuid.uuid4().hex[:12]}"
        self._rung = asyncio.Event()

    async def __aenter__(self) -> Bell:
        try:
            self._socket = self._belfry.hang(self._name)
        except OSError as error:
            raise StorageFault(f"cannot hang a bell: {error}") from error
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._hear)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        self._belfry.take_down(self._name)

    def ring(self) -> None:
        """Wakes the waiter from within its own loop."""
        self._rung.set()

    async def wait(self, timeout_seconds: float) -> bool:
        """Waits for a ring since the last wait, at most so long; True when it rang."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._rung.wait()
        except TimeoutError:
            return False
        self._rung.clear()
        return True

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            while self._socket.recv(1):
                pass
        self._rung.set()
