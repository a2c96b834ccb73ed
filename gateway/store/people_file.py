"""The snapshot of people: a small file in data_dir, so that doors and ingest say who may write while the database is away.

Written whole, readable by its owner only; read again when it has changed.
Promises: a file that is missing or damaged leaves the last good snapshot in force.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gateway.mail.people import People, Person
from gateway.whole_file import write_whole


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
        write_whole(self._path, json.dumps([asdict(person) for person in people], ensure_ascii=False).encode())
