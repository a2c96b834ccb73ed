"""A small file replaced whole: who reads it, also after a crash, finds the old one or the new one, never a piece.

Used for what other programs or processes read while we write: the recipients of Postfix, the snapshot of people, the alarm
book.  On any fault the old file stays.  Octets that many write at once have a lock of their own elsewhere.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

OURS, EVERYBODYS = 0o600, 0o644


def write_whole(path: Path, octets: bytes, *, mode: int = OURS) -> bool:
    """Puts the octets there, durably; False where they are there already. Raises OSError."""
    with suppress(FileNotFoundError):
        if path.read_bytes() == octets:
            return False
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            os.fchmod(number, mode)
            file.write(octets)
            file.flush()
            os.fsync(number)
        os.rename(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True
