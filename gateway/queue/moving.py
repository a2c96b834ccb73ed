"""Takes a queue on SQLite to pieces, for `gateway move`: everything in it, a batch at a time, each ticket exactly once.

A batch is claimed (`batch`), laid aside where it goes (`Staging`), taken away here (`remove`), and let go there (`released`).
The file itself remembers which of these was last done, so that whoever was killed anywhere is gone on from:

    filling   what lies aside is a copy of what is still here: throw it away, begin the batch anew
    filled    what lies aside is nowhere else: let it go
    idle      nothing lies aside

Counts are kept by queue, over all runs.  Order: by queue, each in the order in which it would be worked.
Limits: answers that nobody came for stay; nobody else may have the queue open, which is asked before every batch.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import TracebackType

from gateway.errors import PermanentFailure, QueueUnavailable, StorageFault
from gateway.queue import receipt_table
from gateway.queue import sqlite_tables as tables
from gateway.queue.receipts import SqliteReceipts
from gateway.queue.sqlite import Life
from gateway.queue.ticket import Ticket
from gateway.runtime import Clock, failpoint, utc_now
from gateway.sqlite_file import Connection, SqliteFile

BATCH_TICKETS = 200
BATCH_BYTES = 8 * 1024 * 1024
_MOVING = """CREATE TABLE IF NOT EXISTS moving (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID"""
_CARRIED = """CREATE TABLE IF NOT EXISTS carried (queue TEXT PRIMARY KEY, tickets INTEGER NOT NULL)
    STRICT, WITHOUT ROWID"""
_FOR_EVER = 2**62
_NO_REPLIES = "NOT (queue >= 'reply.' AND queue < 'reply/')"


class Stage(StrEnum):
    """What was last done with the batch under way."""

    IDLE = "idle"
    FILLING = "filling"
    FILLED = "filled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A ticket with all that its queue knows of it; a dead letter says when and why it died, and in which box it lies."""

    number: int
    ticket: Ticket
    published_at: datetime
    deliveries: int
    box: str = ""
    reason: str = ""
    died_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a file still holds: tickets by queue, and whether a move of it has begun and not ended."""

    tickets: dict[str, int]
    is_under_way: bool

    def __bool__(self) -> bool:
        return bool(self.tickets) or self.is_under_way


async def what_is_left(path: Path) -> Left:
    """What the queue in a file holds, whoever else uses it; raises QueueUnavailable."""
    try:
        async with SqliteFile(path, prepare=_prepare) as file:
            return await file.read(_left)
    except StorageFault as error:
        raise QueueUnavailable(str(error)) from error


class MovingQueue:
    """The queue in the file, held by this process; open it with `async with`."""

    def __init__(self, path: Path, *, to: str, clock: Clock = utc_now) -> None:
        """`to` names where it goes, without secrets: a move that has begun goes on to the same place."""
        self._path = path
        self._to = to
        self._clock = clock
        self._file = SqliteFile(path, prepare=_prepare)
        self._life = Life(path.with_name(path.name + ".lives"), of=path)
        self.receipts = SqliteReceipts(self._file)
        self.name = ""

    async def __aenter__(self) -> MovingQueue:
        if not self._path.exists():
            raise PermanentFailure(f"{self._path} is not there")
        try:
            await self._file.open()
            self._life.begin()
            self._refuse_company()
            self.name = await self._file.write(self._begin)
        except (StorageFault, OSError) as error:
            await self.close()
            raise QueueUnavailable(str(error)) from error
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._file.close()
        self._life.end()

    async def subscriptions(self) -> dict[str, list[str]]:
        """The patterns of each subscriber, by its queue."""
        return await self._file.read(_subscriptions)

    async def counts(self) -> dict[str, int]:
        """The tickets that are here, by the queue or the box of dead letters."""
        return await self._file.read(_counts)

    async def carried(self) -> dict[str, int]:
        """The tickets that were taken away by this move so far, in all its runs."""
        return await self._file.read(lambda connection: dict(connection.execute("SELECT * FROM carried").fetchall()))

    async def stage(self) -> Stage:
        return await self._file.read(lambda connection: Stage(_value(connection, "stage") or Stage.IDLE))

    async def batch(self) -> list[Parcel]:
        """Claims what goes next; none when nothing is left but what was claimed and not removed."""
        self._refuse_company()
        return await self._file.write(partial(_claim_batch, holder=self._life.name))

    async def remove(self, parcels: Sequence[Parcel]) -> None:
        """They lie aside where they go: here they are no more."""
        failpoint("move.staged")
        await self._file.write(partial(_remove, parcels=parcels, holder=self._life.name))
        failpoint("move.removed")

    async def released(self) -> None:
        """Nothing lies aside any more."""
        await self._file.write(lambda connection: _set(connection, "stage", Stage.IDLE))

    def _begin(self, connection: Connection) -> str:
        """Begins the move, or takes it up where it was; returns its name."""
        tables.reap(connection, self._life.is_over, tables.micros(self._clock()))
        begun = _value(connection, "to")
        if begun not in ("", self._to) and _value(connection, "stage") not in ("", Stage.IDLE):
            raise PermanentFailure(f"{self._path}: a move to {begun} has begun; end that one first")
        if begun != self._to:
            connection.execute("DELETE FROM carried")
            _set(connection, "name", uuid.uuid4().hex[:12])
            _set(connection, "to", self._to)
        return _value(connection, "name")

    def _refuse_company(self) -> None:
        """Whoever has it open may still put something in, or work on something."""
        if others := self._life.others():
            text = f"{self._path} is open in {len(others)} other process{'es' if len(others) > 1 else ''}"
            raise QueueUnavailable(f"{text}: stop the gateway, and the apps that use this queue, first")


def _prepare(connection: Connection) -> None:
    tables.create_schema(connection)
    connection.execute(_MOVING)
    connection.execute(_CARRIED)


def _value(connection: Connection, name: str) -> str:
    row = connection.execute("SELECT value FROM moving WHERE name = ?", (name,)).fetchone()
    return str(row[0]) if row else ""


def _set(connection: Connection, name: str, value: str) -> None:
    connection.execute(
        "INSERT INTO moving VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (name, value)
    )


def _subscriptions(connection: Connection) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for queue, pattern in connection.execute("SELECT queue, pattern FROM subscriptions ORDER BY queue, pattern"):
        found.setdefault(queue, []).append(pattern)
    return found


def _counts(connection: Connection) -> dict[str, int]:
    return dict(
        connection.execute(f"SELECT queue, count(*) FROM tickets WHERE {_NO_REPLIES} GROUP BY queue").fetchall()
    )


def _left(connection: Connection) -> Left:
    lies_aside = _value(connection, "stage") == Stage.FILLED
    owes_receipts = _value(connection, "to") != "" and receipt_table.last(connection) > 0
    return Left(tickets=_counts(connection), is_under_way=lies_aside or owes_receipts)


def _claim_batch(connection: Connection, *, holder: str) -> list[Parcel]:
    free = f"SELECT queue FROM tickets WHERE token IS NULL AND {_NO_REPLIES} ORDER BY queue LIMIT 1"
    found = connection.execute(free).fetchone()
    if found is None:
        return []
    parcels: list[Parcel] = []
    size = 0
    for parcel in _free(connection, found[0]):
        size += len(parcel.ticket.body)
        if parcels and size > BATCH_BYTES:
            break
        parcels.append(parcel)
    claim = f"UPDATE tickets SET token = ?, holder = ?, lease_until = {_FOR_EVER} WHERE number = ?"
    connection.executemany(claim, [(holder, holder, parcel.number) for parcel in parcels])
    _set(connection, "stage", Stage.FILLING)
    return parcels


def _free(connection: Connection, queue: str) -> Iterator[Parcel]:
    rows = connection.execute(
        f"""SELECT {tables.COLUMNS}, died_in, reason, ready_at FROM tickets JOIN bodies USING (number)
            WHERE queue = ? AND token IS NULL ORDER BY ready_at, number LIMIT {BATCH_TICKETS}""",
        (queue,),
    )
    for *values, died_in, reason, ready_at in rows:
        row = tables.read_row(tuple(values))
        parcel = Parcel(
            number=row.number,
            ticket=row.ticket,
            published_at=tables.moment(row.published_at),
            deliveries=row.deliveries,
        )
        if died_in is None:
            yield parcel
        else:
            ticket = replace(row.ticket, queue=died_in)
            yield replace(parcel, ticket=ticket, box=queue, reason=reason or "", died_at=tables.moment(ready_at))


def _remove(connection: Connection, *, parcels: Sequence[Parcel], holder: str) -> None:
    for parcel in parcels:
        mine = (parcel.number, holder)
        if connection.execute("DELETE FROM tickets WHERE number = ? AND token = ?", mine).rowcount != 1:
            raise QueueUnavailable(f"ticket {parcel.ticket.id} was taken meanwhile: the next run begins its batch anew")
        queue = parcel.box or parcel.ticket.queue
        more = "INSERT INTO carried VALUES (?, 1) ON CONFLICT DO UPDATE SET tickets = tickets + 1"
        connection.execute(more, (queue,))
    _set(connection, "stage", Stage.FILLED)
