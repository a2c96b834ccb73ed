"""Receipts: what we promised to keep, written where the promise was made, so that `gateway reconcile` can count it later.

A receipt stands for one mail, email or post (not for a ticket: a mail of 300 recipients has three of those), and is kept by
whoever says "kept": doors and clients, by publishing a fresh ticket.  Retries, replays and suspects keep none.
The seam is beside the broker (`Receipted`): an engine with a file of its own writes receipts in the commit that keeps the
tickets (`queue.sqlite`); one without is handed a file of this host (`ReceiptFile`) and calls `keep` **after** its tickets
are confirmed and **before** publish returns.  A crash in between leaves a ticket without a receipt, which nobody was
promised: harmless.
`dropped` counts the recipients that a person threw away before the store had them.  Limit: receipts live `KEPT_DAYS`, longer
than an email may.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeVar, runtime_checkable

from gateway.errors import QueueUnavailable, StorageFault
from gateway.queue import receipt_table as table
from gateway.queue.ticket import EMAIL_QUEUES, MAIL_INBOUND, POST_CREATE, Ticket, fresh_queue, home_queue
from gateway.sqlite_file import SqliteFile

T = TypeVar("T")
Kind = Literal["mail", "email", "post"]
Name = tuple[Kind, str]

KEPT_DAYS = 8
_KIND_OF: dict[str, Kind] = {MAIL_INBOUND: "mail", POST_CREATE: "post"}
_KIND_OF |= dict.fromkeys(EMAIL_QUEUES, "email")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One mail, email or post that was kept; `recipients` is 0 where whoever kept it could not know."""

    number: int
    kind: Kind
    id: str
    recipients: int
    dropped: int
    kept_at: datetime

    @property
    def name(self) -> Name:
        return self.kind, self.id


class Receipts(Protocol):
    """What is asked of the receipts, wherever an engine keeps them.  Every method may raise QueueUnavailable."""

    async def last(self) -> int:
        """The number of the youngest receipt, 0 when there is none: everything promised before has one up to it."""
        ...

    async def page(self, *, after: int, until: int, limit: int) -> list[Receipt]:
        """Receipts numbered above `after` up to `until`, the oldest first."""
        ...

    async def prune(self, before: datetime, *, limit: int) -> int:
        """Forgets at most `limit` receipts older than that; returns how many."""
        ...


@runtime_checkable
class Receipted(Protocol):
    """An engine whose publish keeps receipts; beside the `Broker` contract, which does not know of them."""

    @property
    def receipts(self) -> Receipts: ...

    async def still_queued(self, names: Set[Name]) -> set[Name]:
        """Those that a ticket stands for now, dead letters included; raises QueueUnavailable.

        An engine that cannot look through its queues answers with all it cannot prove to be gone.
        """
        ...


def kind_of(queue: str) -> Kind | None:
    """What the tickets of a queue (or of its retry queue) stand for; None where no promise hangs on them."""
    return _KIND_OF.get(fresh_queue(queue))


def promises_of(tickets: Iterable[Ticket]) -> list[table.Promise]:
    """The receipts that publishing these tickets means: one for each id, with the number of its recipients."""
    found: dict[Name, set[str]] = {}
    for ticket in tickets:
        kind = _KIND_OF.get(ticket.queue)
        if kind is not None:
            named = ticket.headers.get("rcpt_to") if kind == "mail" else None
            found.setdefault((kind, ticket.id), set()).update(map(str, named or ()))
    return [(kind, id, len(recipients)) for (kind, id), recipients in found.items()]


def dropped_of(ticket: Ticket) -> table.Promise | None:
    """What a person throws away with a dead letter; None when no promise hung on it."""
    kind = kind_of(home_queue(ticket))
    if kind is None:
        return None
    named = ticket.headers.get("rcpt_to") if kind == "mail" else None
    return kind, ticket.id, max(len(set(map(str, named or ()))), 1)


class SqliteReceipts:
    """The receipts in an open SQLite file: the queue's own, or a `ReceiptFile`."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    async def last(self) -> int:
        return await self._asked(self._file.read(table.last))

    async def page(self, *, after: int, until: int, limit: int) -> list[Receipt]:
        rows = await self._asked(self._file.read(partial(table.page, after=after, until=until, limit=limit)))
        return [Receipt(**row) for row in rows]

    async def prune(self, before: datetime, *, limit: int) -> int:
        return await self._asked(self._file.write(partial(table.prune, before=before, limit=limit), rings=False))

    async def take_over(self, receipts: Sequence[Receipt]) -> int:
        """Keeps the receipts of another file as they are; returns how many were not here yet."""
        rows = [(item.kind, item.id, item.recipients, item.dropped, item.kept_at) for item in receipts]
        return await self._asked(self._file.write(partial(table.take_over, receipts=rows), rings=False))

    async def forget(self, until: int) -> None:
        """Forgets the receipts up to that number: they were taken over elsewhere."""
        await self._asked(self._file.write(partial(table.forget, until=until), rings=False))

    async def _asked(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except StorageFault as error:
            raise QueueUnavailable(str(error)) from error


class ReceiptFile(SqliteReceipts):
    """Receipts in a file of this host, for an engine that keeps its tickets elsewhere; an async context manager."""

    def __init__(self, path: Path) -> None:
        super().__init__(SqliteFile(path, prepare=table.create))

    async def __aenter__(self) -> ReceiptFile:
        await self._asked(self._file.open())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._file.close()

    async def keep(self, tickets: Sequence[Ticket], now: datetime) -> None:
        """Called between the engine's confirm and the return of publish; raises QueueUnavailable."""
        promises = promises_of(tickets)
        if promises:
            await self._asked(self._file.write(partial(table.keep, promises=promises, now=now), rings=False))

    async def note_dropped(self, ticket: Ticket) -> None:
        """A person threw this dead letter away."""
        promise = dropped_of(ticket)
        if promise is not None:
            await self._asked(self._file.write(partial(table.note_dropped, promise=promise), rings=False))
