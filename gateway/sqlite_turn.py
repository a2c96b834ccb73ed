"""What stands beside an SQLite file: the turn of its processes, and how files are made there so that its owner can use them.

`Turn` is a flock on `<file>.turn`: whoever holds it may commit, checkpoint, open and close.  `bytes_in_wal` tells its holder when
a checkpoint is due.  Limit: local file systems only.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class Turn:
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


def bytes_in_wal(path: Path, *, at_least: int) -> int:
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
