"""The sweeper: ends what expired, and issues a new ticket for a row whose ticket is provably gone.

The ledger is the truth, the queue its clock: a crash between record and publish, a lost queue or a `send_at` that has come
leaves a due row without a ticket.  A row is re-issued only when its queues have consumed a younger ticket or are empty, so
a queue that is merely behind gets nothing twice.  The new ticket is named in the ledger first (compare-and-set), then
published: two sweepers never issue two current tickets.
Limits: an old ticket that comes after all finds itself no longer current and goes.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Protocol

from gateway.errors import GatewayError
from gateway.mail.ids import new_id
from gateway.maillog import MailLog
from gateway.outbound.retry_ticket import retry_ticket
from gateway.queue.ticket import STREAM_QUEUES, Ticket, retry_queue
from gateway.runtime import Clock, Stop, failpoint, utc_now
from gateway.store.ledger import Ledger, RecipientRecord

OVERDUE_SECONDS = 120
INTERVAL_SECONDS = 10


class Queue(Protocol):
    """What the sweeper needs of the broker."""

    async def publish(self, tickets: Sequence[Ticket]) -> None: ...

    async def has_consumed_past(self, queue: str, published_at: datetime) -> bool: ...


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
) -> None:
    """Sweeps every `interval_seconds` until `stop`; a round that fails is told and the next one comes."""
    log = log or MailLog()
    while not await stop.wait(interval_seconds):
        try:
            swept = await sweep_once(ledger, broker, clock=clock, overdue_seconds=overdue_seconds)
        except (GatewayError, OSError) as error:
            log.service("sweeper", "failed", error=f"{type(error).__name__}: {error}")
            continue
        if swept.expired or swept.reissued:
            log.service("sweeper", "swept", expired=swept.expired, reissued=swept.reissued)


async def sweep_once(
    ledger: Ledger, broker: Queue, *, clock: Clock = utc_now, overdue_seconds: float = OVERDUE_SECONDS
) -> Swept:
    """One round; raises StoreUnavailable or QueueUnavailable."""
    expired = await ledger.sweep_expired()
    rows = await ledger.overdue(older_than_seconds=overdue_seconds)
    reissued = 0
    for batch in (
        [row for row in rows if not row.ticket_id],  # their `send_at` has come, or an operator released them
        await _ticketless(rows, broker, now=clock(), overdue_seconds=overdue_seconds),
    ):
        for _, of_stream in groupby(batch, key=lambda row: row.stream):
            reissued += await _reissue(list(of_stream), ledger, broker)
    return Swept(expired=expired, reissued=reissued)


async def _ticketless(
    rows: Sequence[RecipientRecord], broker: Queue, *, now: datetime, overdue_seconds: float
) -> list[RecipientRecord]:
    """The rows whose ticket is provably gone."""
    named = [row for row in rows if row.ticket_id]
    return [row for row in named if await _lost_its_ticket(row, broker, now=now, overdue_seconds=overdue_seconds)]


async def _lost_its_ticket(row: RecipientRecord, broker: Queue, *, now: datetime, overdue_seconds: float) -> bool:
    born = _born_at(row)
    if born is not None and now - born < timedelta(seconds=overdue_seconds):
        return False  # issued a moment ago: it has not had its chance
    due_since = max(filter(None, [born, row.next_attempt_at]), default=now - timedelta(seconds=overdue_seconds))
    home = STREAM_QUEUES[row.stream]
    for queue in (home, retry_queue(home)):  # a request's ticket that had to wait is in the retry queue, too
        if not await broker.has_consumed_past(queue, due_since):
            return False
    return True


def _born_at(row: RecipientRecord) -> datetime | None:
    """When the row's ticket was made, read from its UUIDv7; None for a request's own ticket, whose id is the app's."""
    if row.ticket_id == row.email_id:
        return None
    try:
        value = uuid.UUID(row.ticket_id)
    except ValueError:
        return None
    return datetime.fromtimestamp((value.int >> 80) / 1000, UTC) if value.version == 7 else None


async def _reissue(rows: Sequence[RecipientRecord], ledger: Ledger, broker: Queue) -> int:
    tickets = []
    for row in rows:
        ticket_id = new_id()
        if await ledger.reissue(row, ticket_id=ticket_id):
            tickets.append(_ticket(row, ticket_id))
    failpoint("sweeper.reissued")
    if tickets:
        await broker.publish(tickets)
    return len(tickets)


def _ticket(row: RecipientRecord, ticket_id: str) -> Ticket:
    return retry_ticket(
        email_id=row.email_id,
        recipient=row.recipient,
        ticket_id=ticket_id,
        stream=row.stream,
        attempt=row.attempts,
        due_at=None,
    )
