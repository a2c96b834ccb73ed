"""The file of our signing keys: one key a line in hexadecimal, the newest first.

Made at the first start, readable by its owner only; of two processes that start together one makes it, both read it.
Rotation is an edit: a new line on top signs from the next start on, lines below still prove what they signed.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

_KEY_BYTES = 32
_OTHERS = 0o077


def read_keys(path: Path) -> list[bytes]:
    """The keys of the file, made where there is none; raises ValueError for a file that is not fit to be trusted."""
    if not path.exists():
        _make(path)
    if path.stat().st_mode & _OTHERS:
        raise ValueError(f"{path} can be read by others: chmod 600 {path}")
    try:
        keys = [bytes.fromhex(line) for line in path.read_text("ascii").split()]
    except ValueError:
        raise ValueError(f"{path} holds something that is no key") from None
    if not keys or any(len(key) < _KEY_BYTES for key in keys):
        raise ValueError(f"{path} needs keys of {2 * _KEY_BYTES} hexadecimal digits, one a line")
    return keys


def new_key() -> bytes:
    """A key that signed nothing yet."""
    return secrets.token_bytes(_KEY_BYTES)


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(number, "w") as file:
            file.write(new_key().hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first: its key is everybody's
            os.link(name, path)
    finally:
        os.unlink(name)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
