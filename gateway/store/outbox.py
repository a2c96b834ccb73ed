"""The outbox: events waiting in the database for the broker, written in the transactions of the facts they tell.

`events.relay_events` reads them oldest first, publishes, then marks each; none is ever passed by a high-water mark, so
an event committed late is still found.  At least once: a crash between publish and mark tells it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from gateway.contract.events import CloudEvent
from gateway.store.locks import for_work
from gateway.store.schema import outbox

_INSERT = sa.insert(outbox)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingEvent:
    """One unpublished row."""

    number: int
    event_id: str
    type: str
    body: bytes


def add(connection: sa.Connection, event: CloudEvent) -> None:
    """Puts an event into the outbox; it goes out after the commit."""
    connection.execute(
        _INSERT,
        {
            "event_id": event.id,
            "type": event.type,
            "subject": event.subject,
            "created_at": event.time,
            "body": event.to_json(),
        },
    )


def unpublished(connection: sa.Connection, *, limit: int) -> list[WaitingEvent]:
    """The oldest unpublished events."""
    query = (
        sa.select(outbox.c.id, outbox.c.event_id, outbox.c.type, outbox.c.body)
        .where(outbox.c.published_at.is_(None))
        .order_by(outbox.c.id)
        .limit(limit)
    )
    return [
        WaitingEvent(number=row.id, event_id=row.event_id, type=row.type, body=row.body)
        for row in connection.execute(query)
    ]


def mark_published(connection: sa.Connection, numbers: Sequence[int], *, at: datetime) -> None:
    """Marks events the broker has confirmed."""
    unmarked = sa.and_(outbox.c.id.in_(numbers), outbox.c.published_at.is_(None))
    connection.execute(sa.update(outbox).where(unmarked).values(published_at=at))


def forget_published(connection: sa.Connection, *, before: datetime, limit: int = 1000) -> int:
    """Deletes events published before a moment, at most `limit` at once; returns how many."""
    old = sa.select(outbox.c.id).where(outbox.c.published_at < before, outbox.c.published_at.is_not(None)).limit(limit)
    old = for_work(old, outbox)
    return connection.execute(sa.delete(outbox).where(outbox.c.id.in_(old))).rowcount
