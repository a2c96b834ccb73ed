"""Who is at work in `data_dir`: every running gateway shares the lock `gateway.lock`, whoever needs the house empty has it alone.

The kernel lets go of it with the process.  Limit: it tells of this host's processes only, by their `data_dir`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.errors import TransientFailure
from gateway.sqlite_turn import open_beside

_LOCK = "gateway.lock"


@contextmanager
def at_work(data_dir: Path) -> Iterator[None]:
    """Held by a running gateway; raises TransientFailure while a move has the house to itself."""
    with _locked(data_dir, fcntl.LOCK_SH, "`gateway move` is at work in {}: it says when it is done"):
        yield


@contextmanager
def emptied(data_dir: Path) -> Iterator[None]:
    """Held by whoever needs that no gateway runs; raises TransientFailure while one does."""
    with _locked(data_dir, fcntl.LOCK_EX, "a gateway, or another move, is running in {}: stop it first"):
        yield


@contextmanager
def _locked(data_dir: Path, kind: int, refusal: str) -> Iterator[None]:
    data_dir.mkdir(parents=True, exist_ok=True)
    number = open_beside(data_dir / _LOCK, data_dir)
    try:
        try:
            fcntl.flock(number, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransientFailure(refusal.format(data_dir)) from None
        yield
    finally:
        os.close(number)
