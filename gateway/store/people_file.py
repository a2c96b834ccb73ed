"""The snapshot of people: a small file in data_dir, so that doors and ingest say who may write while the database is away.

Written whole (temporary file, fsync, rename), readable by its owner only; read again when it has changed.
Promises: a file that is missing or damaged leaves the last good snapshot in force.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gateway.mail.people import People, Person


class PeopleFile:
    """One file; `people()` is cheap enough for every RCPT."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._people = People()

    def people(self) -> People:
        """The last good snapshot."""
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                self._people = People(Person(**item) for item in json.loads(self._path.read_text("utf-8")))
                self._seen = seen
        except (OSError, ValueError, TypeError):
            pass  # the last good one stays in force
        return self._people

    def write(self, people: Sequence[Person]) -> None:
        """Replaces the snapshot, if it says anything new."""
        text = json.dumps([asdict(person) for person in people], ensure_ascii=False)
        try:
            if self._path.read_text("utf-8") == text:
                return
        except (OSError, ValueError):
            pass  # there is none, or it is damaged: it is written
        number, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self._path)
        except BaseException:
            os.unlink(name)
            raise
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
