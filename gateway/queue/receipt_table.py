"""The table of receipts in an SQLite file, one function per fact, each inside a transaction; see `queue.receipts`.

An id that has its receipt keeps it as it is: the same request sent again, or a replay, promises nothing new.
Numbers rise while there are any, so that a reader who begins at one moment is not disturbed by what comes later.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.sqlite_file import Connection

Promise = tuple[str, str, int]  # kind, id, recipients

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_NAMES = ("number", "kind", "id", "recipients", "dropped", "kept_at")
_SCHEMA = """CREATE TABLE IF NOT EXISTS receipts (number INTEGER PRIMARY KEY, id TEXT NOT NULL,
    kind TEXT NOT NULL, recipients INTEGER NOT NULL, dropped INTEGER NOT NULL DEFAULT 0, kept_at INTEGER NOT NULL,
    UNIQUE (id, kind)) STRICT"""
_INSERT = "INSERT INTO receipts (kind, id, recipients, kept_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"


def create(connection: Connection) -> None:
    connection.execute(_SCHEMA)


def keep(connection: Connection, promises: Iterable[Promise], now: datetime) -> None:
    kept_at = (now - _EPOCH) // _SECOND
    for promise in promises:
        connection.execute(_INSERT, (*promise, kept_at))


def take_over(connection: Connection, receipts: Iterable[tuple[str, str, int, int, datetime]]) -> int:
    """Receipts of another file as they are (kind, id, recipients, dropped, kept_at); returns how many were new here."""
    statement = """INSERT INTO receipts (kind, id, recipients, dropped, kept_at) VALUES (?, ?, ?, ?, ?)
        ON CONFLICT DO NOTHING"""
    rows = [(*rest, (kept_at - _EPOCH) // _SECOND) for *rest, kept_at in receipts]
    return sum(connection.execute(statement, row).rowcount for row in rows)


def forget(connection: Connection, until: int) -> None:
    connection.execute("DELETE FROM receipts WHERE number <= ?", (until,))


def note_dropped(connection: Connection, promise: Promise) -> None:
    kind, id, recipients = promise
    statement = "UPDATE receipts SET dropped = dropped + ? WHERE id = ? AND kind = ?"
    connection.execute(statement, (recipients, id, kind))


def last(connection: Connection) -> int:
    number: int | None = connection.execute("SELECT max(number) FROM receipts").fetchone()[0]
    return number or 0


def page(connection: Connection, *, after: int, until: int, limit: int) -> list[dict[str, Any]]:
    statement = f"SELECT {', '.join(_NAMES)} FROM receipts WHERE number > ? AND number <= ? ORDER BY number LIMIT ?"
    rows = connection.execute(statement, (after, until, limit)).fetchall()
    return [dict(zip(_NAMES, row, strict=True)) | {"kept_at": _EPOCH + row[-1] * _SECOND} for row in rows]


def prune(connection: Connection, before: datetime, limit: int) -> int:
    """Receipts come in the order of their time, so that the oldest are the first."""
    statement = """DELETE FROM receipts WHERE kept_at < ? AND
        number IN (SELECT number FROM receipts ORDER BY number LIMIT ?)"""
    return connection.execute(statement, ((before - _EPOCH) // _SECOND, limit)).rowcount
