"""The sweeper: ends what expired, and issues a new ticket for a row whose ticket is provably gone.

The ledger is the truth, the queue its clock: a crash between record and publish, a lost queue or a `send_at` that has come
leaves a due row without a ticket.  A row is re-issued only when its queues have consumed a younger ticket or are empty, so
a queue that is merely behind gets nothing twice.  The new ticket is named in the ledger first (compare-and-set), then
published: two sweepers never issue two current tickets.  Rows that never had a ticket go first, then urgent before bulk.
A row whose ticket became a dead letter gets none: it is recorded `dead`.  Where the next email of a serial key could go and
nobody started it (the one before expired, or its worker died), it is started.  Receipts past their time are forgotten here, too.
Limits: an old ticket that comes after all finds itself no longer current and goes; among more than a thousand dead
letters the youngest are not looked through.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Protocol

from gateway.mail.ids import new_id
from gateway.maillog import MailLog
from gateway.outbound.retry_ticket import retry_ticket, ticket_id_of
from gateway.queue.broker import DeadTicket
from gateway.queue.receipts import KEPT_DAYS, Receipts
from gateway.queue.ticket import STREAM_QUEUES, Ticket, retry_queue
from gateway.runtime import Clock, Stop, failpoint, utc_now
from gateway.store.ledger import Ledger, RecipientRecord

OVERDUE_SECONDS = 120
INTERVAL_SECONDS = 10
PRUNED_ROWS = 500
PRUNED_BITES = 40


class Queue(Protocol):
    """What the sweeper needs of the broker."""

    async def publish(self, tickets: Sequence[Ticket]) -> None: ...

    async def has_consumed_past(self, queue: str, published_at: datetime) -> bool: ...

    def all_dead(self) -> AsyncIterator[DeadTicket]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What one round did."""

    expired: int
    reissued: int


async def sweep(
    ledger: Ledger,
    broker: Queue,
    *,
    stop: Stop,
    clock: Clock = utc_now,
    log: MailLog | None = None,
    interval_seconds: float = INTERVAL_SECONDS,
    overdue_seconds: float = OVERDUE_SECONDS,
    receipts: Receipts | None = None,
) -> None:
    """Sweeps every `interval_seconds` until `stop`; a round that fails is told and the next one comes."""
    log = log or MailLog()
    while not await stop.wait(interval_seconds):
        try:
            swept = await sweep_once(ledger, broker, clock=clock, overdue_seconds=overdue_seconds)
            if receipts is not None:
                await prune_receipts(receipts, clock() - timedelta(days=KEPT_DAYS))
        except Exception as error:  # noqa: BLE001  # broad: one row nobody foresaw must not end all sweeping
            log.service_failed("sweeper", error=error)
            continue
        if swept.expired or swept.reissued:
            log.service("sweeper", "swept", expired=swept.expired, reissued=swept.reissued)


async def sweep_once(
    ledger: Ledger, broker: Queue, *, clock: Clock = utc_now, overdue_seconds: float = OVERDUE_SECONDS
) -> Swept:
    """One round; raises StoreUnavailable or QueueUnavailable."""
    expired = await ledger.sweep_expired()
    for serial_key in await ledger.stalled_keys():
        await ledger.start_turn(serial_key)
    rows = await ledger.overdue(older_than_seconds=overdue_seconds)
    never_had_one = [row for row in rows if not row.ticket_id]  # `send_at` has come, or their turn, or a release
    reissued = await reissue(never_had_one, ledger, broker)
    for stream, home in STREAM_QUEUES.items():
        late = [row for row in rows if row.ticket_id and row.stream == stream]
        lost = await _lost(late, home, broker, now=clock(), overdue_seconds=overdue_seconds)
        reissued += await reissue(await _unburied(lost, ledger, broker), ledger, broker)
    return Swept(expired=expired, reissued=reissued)


async def prune_receipts(receipts: Receipts, before: datetime) -> None:
    """Forgets receipts older than that, in small bites: nobody's publish waits long for one."""
    for _ in range(PRUNED_BITES):
        if await receipts.prune(before, limit=PRUNED_ROWS) < PRUNED_ROWS:
            return


async def reissue(rows: Sequence[RecipientRecord], ledger: Ledger, broker: Queue) -> int:
    """Gives each row a new current ticket, named in the ledger first; returns how many were published."""
    tickets = []
    for row in rows:
        ticket_id = new_id()
        if await ledger.reissue(row, ticket_id=ticket_id):
            tickets.append(_ticket(row, ticket_id))
    failpoint("sweeper.reissued")
    if tickets:
        await broker.publish(tickets)
    return len(tickets)


async def _lost(
    rows: Sequence[RecipientRecord], home: str, broker: Queue, *, now: datetime, overdue_seconds: float
) -> list[RecipientRecord]:
    """Those of a stream's rows whose ticket is gone: its queues are past the time when it should have come."""
    latest_birth = now - timedelta(seconds=overdue_seconds)  # one issued since has not had its chance
    due = sorted(
        (
            (_due_since(row, now) or latest_birth, row)
            for row in rows
            if (_born_at(row, now) or latest_birth) <= latest_birth
        ),
        key=itemgetter(0),
    )
    moments = [since for since, _ in due]
    for queue in (home, retry_queue(home)):  # a request's ticket that had to wait is in the retry queue, too
        moments = moments[: await _count_past(broker, queue, moments)]
    return [row for _, row in due[: len(moments)]]


async def _count_past(broker: Queue, queue: str, moments: Sequence[datetime]) -> int:
    """How many of the moments, oldest first, a queue has consumed past: one question where it is past all of them."""
    low, high = 0, len(moments)
    probe = high - 1
    while low < high:
        if await broker.has_consumed_past(queue, moments[probe]):
            low = probe + 1
        else:
            high = probe
        probe = (low + high) // 2
    return low


async def _unburied(rows: Sequence[RecipientRecord], ledger: Ledger, broker: Queue) -> list[RecipientRecord]:
    """The rows whose ticket is no dead letter; the others are recorded dead: a new ticket would end like the old one."""
    if not rows:
        return []
    wanted = {row.ticket_id for row in rows}
    reasons = {id: letter.reason async for letter in broker.all_dead() if (id := ticket_id_of(letter.ticket)) in wanted}
    for row in rows:
        if row.ticket_id in reasons:
            reason = f"its ticket died: {reasons[row.ticket_id]}"
            await ledger.record_dead(row.email_id, reason=reason, ticket_id=row.ticket_id)
    return [row for row in rows if row.ticket_id not in reasons]


def _due_since(row: RecipientRecord, now: datetime) -> datetime | None:
    return max(filter(None, [_born_at(row, now), row.next_attempt_at]), default=None)


def _born_at(row: RecipientRecord, now: datetime) -> datetime | None:
    """When the row's ticket was made, read from its UUIDv7; None where that cannot be known.

    A request's own ticket has the app's id, and a ticket's name may be anybody's invention: then it proves nothing.
    """
    if row.ticket_id == row.email_id:
        return None
    try:
        value = uuid.UUID(row.ticket_id)
        born = datetime.fromtimestamp((value.int >> 80) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return born if value.version == 7 and born <= now else None


def _ticket(row: RecipientRecord, ticket_id: str) -> Ticket:
    return retry_ticket(
        email_id=row.email_id,
        recipient=row.recipient,
        ticket_id=ticket_id,
        stream=row.stream,
        attempt=row.attempts,
        due_at=None,
    )
