"""Blobs: octets too large for a row, named by their digest; attachments and the raw form of large mails and emails.

`put` returns when the octets are on disk under their name (written aside, fsynced, renamed, folders fsynced).  A put of
what is there already renews its age, so that a collector never takes what somebody just relied on.
Promises: `get` returns exactly what was put or raises; a fault of the disk is StoreUnavailable.
Limits: octets pass through memory whole; the file store is for one machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from gateway.errors import BlobDamaged, StoreUnavailable
from gateway.runtime import failpoint

T = TypeVar("T")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_UNFINISHED = "tmp"


class BlobStore(Protocol):
    """Content-addressed storage; a digest is `sha256:` and 64 hexadecimal digits."""

    async def put(self, octets: bytes) -> str:
        """Keeps the octets durably and returns their digest; raises StoreUnavailable."""
        ...

    async def get(self, digest: str) -> bytes:
        """The octets, proved against the digest; raises StoreUnavailable when missing or damaged."""
        ...

    async def exists(self, digest: str) -> bool: ...

    async def is_there(self) -> bool:
        """Whether the store itself is there; a folder is not, while it is not mounted or nothing was ever put."""
        ...

    async def size(self, digest: str) -> int | None:
        """How many octets there are, None where there is no such blob."""
        ...


class FileBlobStore:
    """Blobs as files: `<folder>/<first two digits>/<64 digits>`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, octets: bytes) -> str:
        return await self._in_thread(lambda: self._put(octets))

    async def get(self, digest: str) -> bytes:
        return await self._in_thread(lambda: self._get(digest))

    async def exists(self, digest: str) -> bool:
        return await self.size(digest) is not None

    async def is_there(self) -> bool:
        return await self._in_thread(self._folder.is_dir)

    async def size(self, digest: str) -> int | None:
        return await self._in_thread(lambda: _size(self._path(digest)))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise StoreUnavailable(f"blobs: {error}") from error

    def _path(self, digest: str) -> Path:
        match = _DIGEST.fullmatch(digest)
        if not match:
            raise ValueError(f"{digest!r} is not a digest")
        return self._folder / match[1][:2] / match[1]

    def _put(self, octets: bytes) -> str:
        digest = digest_of(octets)
        path = self._path(digest)
        if _size(path) == len(octets) and path.read_bytes() == octets:  # one that rotted is written anew
            os.utime(path)
            # Another process may have renamed it and not yet synced the folder: our promise needs that, too.
            _sync_folder(path.parent)
            return digest
        _make_folder(path.parent)
        _make_folder(self._folder / _UNFINISHED)
        self._write(path, octets)
        return digest

    def _write(self, path: Path, octets: bytes) -> None:
        number, name = tempfile.mkstemp(dir=self._folder / _UNFINISHED)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(octets)
                file.flush()
                os.fsync(file.fileno())
            failpoint("blobs.before_rename")
            os.rename(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
        _sync_folder(path.parent)
        failpoint("blobs.after_rename")

    def _get(self, digest: str) -> bytes:
        octets = self._path(digest).read_bytes()
        if digest_of(octets) != digest:
            raise BlobDamaged(f"blobs: {digest} is damaged on disk")
        return octets


def digest_of(octets: bytes) -> str:
    """The name of these octets."""
    return "sha256:" + hashlib.sha256(octets).hexdigest()


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
