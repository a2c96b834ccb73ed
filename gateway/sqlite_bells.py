"""Bells beside an SQLite file: whoever waits for news of it hangs one, and every process rings them all after its commits.

A bell is a datagram socket in the folder `<file>.bells`.  Limits: bells are comfort, the waiter's poll is the promise; local
file systems only.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from gateway.errors import StorageFault
from gateway.sqlite_turn import make_folder_beside

_SOCKET_PATH_BYTES = 107


class Belfry:
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

    def __init__(self, belfry: Belfry) -> None:
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
