"""Reconcile: proves by counting that everything we said we keep is there, or names what is not.

    accepted = accounted + missing        accounted: in the store, still a ticket, a dead letter, or thrown away by a person

Right while traffic flows, by the order of the reads.  Work goes receipt → ticket → store and is recorded before its ticket
goes, so: receipts first, up to the youngest of this moment; then what the store does not account for is looked for among
the tickets; then what no ticket stands for is looked up in the store once more.  What was in neither, in this order, is lost.
A mail that is pending lives by a ticket, too: without one nobody would ever work it, and it is named.  (For email the
sweeper makes a new ticket.)  As a replay may begin between two reads, the last two are done twice.
`extra` is what the store has without a receipt: notices, which begin there; older than they are kept, taken in by another
host, or published by an app itself on an engine where only the gateway keeps receipts (RabbitMQ); a lower bound while traffic
flows, and harmless.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol

from gateway.queue.receipts import Kind, Receipt, Receipted, Receipts
from gateway.store.accounting import Standing

PAGE_ROWS = 500
LOOKS = 2


class Books(Protocol):
    """What reconcile asks of the store: `store.accounting.Accounting`."""

    async def standings(self, kind: str, ids: Sequence[str]) -> Mapping[str, Standing]: ...

    async def count(self) -> int: ...


class NoBooks:
    """The store where there is none: it has nothing yet, and of what must have gone there it cannot be asked."""

    async def standings(self, kind: str, ids: Sequence[str]) -> Mapping[str, Standing]:
        return {}

    async def count(self) -> int:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """One receipt nothing is left of, or too little."""

    kind: Kind
    id: str
    kept_at: str
    finding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The sum: every receipt is accounted for, or missing."""

    accepted: int
    missing: tuple[Missing, ...]
    extra: int

    @property
    def is_balanced(self) -> bool:
        return not self.missing

    def as_row(self) -> dict[str, Any]:
        accounted = self.accepted - len(self.missing)
        ids = [item.id for item in self.missing]
        return {"accepted": self.accepted, "accounted": accounted, "missing": ids, "extra": self.extra}


async def reconcile(queue: Receipted, books: Books) -> Balance:
    """Counts; raises QueueUnavailable or StoreUnavailable when one of the two cannot be asked."""
    in_store = await books.count()
    until = await queue.receipts.last()
    accepted = found = 0
    doubtful: list[Receipt] = []
    async for page in _pages(queue.receipts, until):
        standings = await _standings(books, page)
        accepted += len(page)
        found += len(standings)
        doubtful += [receipt for receipt in page if not _is_settled(receipt, standings.get(receipt.name))]
    missing: list[Missing] = []
    for _ in range(LOOKS):
        queued = await queue.still_queued({receipt.name for receipt in doubtful}) if doubtful else set()
        doubtful = [receipt for receipt in doubtful if receipt.name not in queued]
        standings = await _standings(books, doubtful)
        doubtful = [receipt for receipt in doubtful if not _is_settled(receipt, standings.get(receipt.name))]
        missing = [_missing(receipt, standings.get(receipt.name)) for receipt in doubtful]
    return Balance(accepted=accepted, missing=tuple(missing), extra=max(0, in_store - found))


async def _pages(receipts: Receipts, until: int) -> AsyncIterator[list[Receipt]]:
    after = 0
    while page := await receipts.page(after=after, until=until, limit=PAGE_ROWS):
        yield page
        after = page[-1].number


async def _standings(books: Books, receipts: Iterable[Receipt]) -> dict[tuple[Kind, str], Standing]:
    found: dict[tuple[Kind, str], Standing] = {}
    by_kind = attrgetter("kind")
    for kind, group in groupby(sorted(receipts, key=by_kind), key=by_kind):
        ids = [receipt.id for receipt in group]
        for start in range(0, len(ids), PAGE_ROWS):
            known = await books.standings(kind, ids[start : start + PAGE_ROWS])
            found |= {(kind, id): standing for id, standing in known.items()}
    return found


def _is_settled(receipt: Receipt, standing: Standing | None) -> bool:
    """Whether the store (and what a person threw away) accounts for every recipient without the help of a ticket."""
    if standing is None:
        return receipt.dropped >= max(receipt.recipients, 1)
    return not standing.unworked and standing.rows + receipt.dropped >= _expected(receipt, standing)


def _expected(receipt: Receipt, standing: Standing) -> int:
    return max(receipt.recipients, standing.expected, 1)


def _missing(receipt: Receipt, standing: Standing | None) -> Missing:
    if standing is None:
        finding = "neither in the store nor in the queue"
    elif standing.rows + receipt.dropped < _expected(receipt, standing):
        finding = f"the store has {standing.rows} of {_expected(receipt, standing)} recipients, the queue none"
    else:
        finding = f"{standing.unworked} pending, and no ticket will work it: gateway replay {receipt.id}"
    return Missing(kind=receipt.kind, id=receipt.id, kept_at=receipt.kept_at.isoformat(), finding=finding)
