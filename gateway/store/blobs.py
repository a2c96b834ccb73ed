"""Blobs: octets too large for a row, named by their digest; attachments and the raw form of large mails and emails.

`put` returns when the octets are on disk under their name (written aside, fsynced, renamed, folders fsynced).  A put of
what is there already renews its age, so that a collector never takes what somebody just relied on.
Promises: `get` returns exactly what was put or raises; a fault of the disk is StoreUnavailable.
`old` and `discard` are the collector's (`store.blob_collector`): a discard beside a put of the same octets never loses them.
What a killed process left unfinished goes with what is old.
A folder without a sign of us is not the store but the place it is mounted at: what needs a blob waits (`octets_of`), and where
this house has begun a store before (`store.blob_mark`) a put is refused, lest a second one begin on the wrong disk.
Implementations: files here, `store.blobs_s3`, `store.blobs_database`; `open_blob_store` chooses by URL.
Limits: octets pass through memory whole, except in `put_stream` to files; the file store is for one machine.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar
from urllib.parse import unquote

from gateway.errors import BlobDamaged, Problem, SettingsError, StoreUnavailable
from gateway.runtime import failpoint

if TYPE_CHECKING:
    from gateway.store.database import Database

T = TypeVar("T")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
IN_DATABASE = "database:"
_UNFINISHED = "tmp"
_TURN = "collector.turn"


class BlobStore(Protocol):
    """Content-addressed storage; a digest is `sha256:` and 64 hexadecimal digits."""

    async def put(self, octets: bytes) -> str:
        """Keeps the octets durably and returns their digest; raises StoreUnavailable."""
        ...

    async def put_stream(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        """As `put` for octets that come bit by bit; returns digest and size. What the chunks raise leaves nothing behind."""
        ...

    async def get(self, digest: str) -> bytes:
        """The octets, proved against the digest; raises StoreUnavailable when missing or damaged."""
        ...

    async def exists(self, digest: str) -> bool: ...

    async def is_there(self) -> bool:
        """Whether the store itself is there; a folder is not, while it is not mounted or was never begun."""
        ...

    async def begin(self) -> None:
        """Makes what can be made of a new store, so that one in which nothing lies is told from one that is not there."""
        ...

    async def size(self, digest: str) -> int | None:
        """How many octets there are, None where there is no such blob."""
        ...

    def old(self, *, before: datetime) -> AsyncIterator[list[str]]:
        """The digests that nobody put since `before`, some at a time."""
        ...

    async def discard(self, digest: str, *, before: datetime) -> bool:
        """Deletes a blob unless somebody put it since `before`; True when it is gone for good."""
        ...


class FileBlobStore:
    """Blobs as files: `<folder>/<first two digits>/<64 digits>`; a folder that `was_begun` is never begun again."""

    def __init__(self, folder: Path, *, was_begun: Callable[[], bool] = lambda: False) -> None:
        self._folder = folder
        self._was_begun = was_begun

    async def put(self, octets: bytes) -> str:
        return await self._in_thread(lambda: self._put(octets))

    async def put_stream(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        number, name = await self._in_thread(self._new_file)
        digest, size = hashlib.sha256(), 0
        try:
            with os.fdopen(number, "wb") as file:
                async for chunk in chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    await self._in_thread(functools.partial(file.write, chunk))
                await self._in_thread(lambda: _flush(file))
            text = f"sha256:{digest.hexdigest()}"
            await self._in_thread(lambda: self._take_in(name, self._path(text)))
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
        return text, size

    async def get(self, digest: str) -> bytes:
        return await self._in_thread(lambda: self._get(digest))

    async def exists(self, digest: str) -> bool:
        return await self.size(digest) is not None

    async def is_there(self) -> bool:
        return await self._in_thread(self._is_there)

    async def begin(self) -> None:
        await self._in_thread(self._begin)

    async def size(self, digest: str) -> int | None:
        return await self._in_thread(lambda: _size(self._path(digest)))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise StoreUnavailable(f"blobs: {error}") from error

    def _path(self, digest: str) -> Path:
        bare = bare_digest(digest)
        return self._folder / bare[:2] / bare

    async def old(self, *, before: datetime) -> AsyncIterator[list[str]]:
        await self._in_thread(lambda: _sweep_unfinished(self._folder / _UNFINISHED, before.timestamp()))
        for folder in await self._in_thread(lambda: sorted(self._folder.glob("[0-9a-f][0-9a-f]"))):
            yield await self._in_thread(functools.partial(_old_in, folder, before.timestamp()))

    async def discard(self, digest: str, *, before: datetime) -> bool:
        return await self._in_thread(lambda: self._discard(self._path(digest), before.timestamp()))

    def _put(self, octets: bytes) -> str:
        digest = digest_of(octets)
        path = self._path(digest)
        if _holds(path, octets) and self._renewed(path):
            # Another process may have renamed it and not yet synced the folder: our promise needs that, too.
            _sync_folder(path.parent)
            return digest
        number, name = self._new_file()
        try:
            with os.fdopen(number, "wb") as file:
                file.write(octets)
                _flush(file)
            self._take_in(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
        return digest

    def _is_there(self) -> bool:
        """The file of the collector's turn is the sign, for it outlives every blob; blobs without it were copied here."""
        return (self._folder / _TURN).exists() or next(self._folder.glob("[0-9a-f][0-9a-f]/*"), None) is not None

    def _begin(self) -> None:
        if self._was_begun() and not self._is_there():
            raise StoreUnavailable(f"blobs: nothing is in {self._folder}, where blobs were kept: is it mounted?")
        _make_folder(self._folder)
        (self._folder / _TURN).touch(0o660)
        _sync_folder(self._folder)

    def _new_file(self) -> tuple[int, str]:
        if not (self._folder / _TURN).exists():
            self._begin()
        _make_folder(self._folder / _UNFINISHED)
        return tempfile.mkstemp(dir=self._folder / _UNFINISHED)

    def _take_in(self, name: str, path: Path) -> None:
        """Gives a finished file its name, in the place of one that is there already."""
        _make_folder(path.parent)
        failpoint("blobs.before_rename")
        with self._turn(fcntl.LOCK_SH):
            os.rename(name, path)
        _sync_folder(path.parent)
        failpoint("blobs.after_rename")

    def _renewed(self, path: Path) -> bool:
        """Renews a blob's age; False when the collector was quicker."""
        with suppress(FileNotFoundError), self._turn(fcntl.LOCK_SH):
            os.utime(path)
            return True
        return False

    def _discard(self, path: Path, before: float) -> bool:
        with suppress(FileNotFoundError), self._turn(fcntl.LOCK_EX):
            if path.stat().st_mtime < before:
                path.unlink()
                return True
        return False

    @contextmanager
    def _turn(self, kind: int) -> Iterator[None]:
        """Keeps the collector's look and deletion together, apart from who puts; made by `begin` alone."""
        number = os.open(self._folder / _TURN, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(number, kind)
            yield
        finally:
            os.close(number)

    def _get(self, digest: str) -> bytes:
        return proved(self._path(digest).read_bytes(), digest)


def open_blob_store(url: str, database: Database, *, was_begun: Callable[[], bool] = lambda: False) -> BlobStore:
    """The store a URL names: files, a bucket, or rows of the database; raises SettingsError."""
    if url == IN_DATABASE:
        from gateway.store.blobs_database import DatabaseBlobStore

        return DatabaseBlobStore(database)
    return open_own_blob_store(url, was_begun=was_begun)


def open_own_blob_store(url: str, *, was_begun: Callable[[], bool] = lambda: False) -> BlobStore:
    """The store a URL names, which stands on its own; raises SettingsError."""
    if url.startswith("s3://"):
        from gateway.store.blobs_s3 import S3BlobStore

        return S3BlobStore(url)
    if url.startswith("file:///"):
        return FileBlobStore(Path(unquote(url.removeprefix("file://"))), was_begun=was_begun)
    text = f"{url.split(':')[0]!r} names no blob store: there are file:///PATH, s3://BUCKET/PREFIX and {IN_DATABASE}"
    raise SettingsError([Problem("blobs_url", text)])


class Shelves(Protocol):
    """What is asked of a store by those who need a blob."""

    async def get(self, digest: str) -> bytes: ...

    async def exists(self, digest: str) -> bool: ...

    async def is_there(self) -> bool: ...


async def octets_of(blobs: Shelves, digest: str) -> bytes | None:
    """The octets, None where a store that is there lacks them; raises StoreUnavailable, also while the store is not there.

    Only None says that the blob is lost: a folder that is mounted late lacks them all.
    """
    try:
        return await blobs.get(digest)
    except BlobDamaged:
        raise
    except StoreUnavailable:
        if not await is_lacking(blobs, digest):
            raise
        return None


async def is_lacking(blobs: Shelves, digest: str) -> bool:
    """Whether a store that is there lacks a blob; raises StoreUnavailable while the store is not there."""
    if await blobs.exists(digest):
        return False
    if not await blobs.is_there():
        raise StoreUnavailable(f"blobs: the store is not there, nor is {digest}")
    return True


async def gathered(chunks: AsyncIterator[bytes]) -> bytes:
    """The octets of a stream, for a store that takes them whole."""
    return b"".join([chunk async for chunk in chunks])


def digest_of(octets: bytes) -> str:
    """The name of these octets."""
    return "sha256:" + hashlib.sha256(octets).hexdigest()


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def bare_digest(digest: str) -> str:
    """The 64 digits; raises ValueError for what is no digest and might name anything."""
    match = _DIGEST.fullmatch(digest)
    if not match:
        raise ValueError(f"{digest!r} is not a digest")
    return match[1]


def proved(octets: bytes, digest: str) -> bytes:
    """The octets, if they are what their name says; raises BlobDamaged."""
    if digest_of(octets) != digest:
        raise BlobDamaged(f"blobs: {digest} is damaged")
    return octets


def _sweep_unfinished(folder: Path, before: float) -> None:
    """Deletes what processes killed in the midst of a put left behind that long ago."""
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()


def _old_in(folder: Path, before: float) -> list[str]:
    with os.scandir(folder) as found:
        names = [item.name for item in found if item.stat().st_mtime < before]
    return [digest for name in sorted(names) if _DIGEST.fullmatch(digest := f"sha256:{name}")]


def _holds(path: Path, octets: bytes) -> bool:
    """Whether these octets lie there; a rotten file, or one that the collector takes meanwhile, holds them not."""
    with suppress(FileNotFoundError):
        return _size(path) == len(octets) and path.read_bytes() == octets
    return False


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _make_folder(folder: Path) -> None:
    """Makes a folder that survives a power cut, its parents likewise."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
