"""The pulse of the gateway: what came and went in the last hour, and what is open now.  For the overview; nothing here writes.

Slots count arrivals in `SLOTS` equal parts of the last hour, oldest first.  `recent` is what became of those arrivals so far;
`open` is everything that is not final, however old.
Limits: the last hour is counted row by row (by index); who asks often keeps the answer for a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.mail.disposition import Disposition
from gateway.store.schema import deliveries, email_recipients, emails, mails

SLOTS = 12
HOUR = timedelta(hours=1)
_OPEN = tuple(item for item in Disposition if not item.is_final)


@dataclass(frozen=True, slots=True, kw_only=True)
class WayPulse:
    """One of the two ways: arrivals by slot, their dispositions so far, all that is open by disposition."""

    slots: tuple[int, ...]
    recent: Mapping[str, int]
    open: Mapping[str, int]

    @property
    def arrived(self) -> int:
        return sum(self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayPulse:
    """What one relay did in the last hour, and the last thing it said."""

    relay: str
    recent: Mapping[str, int]
    last_reply: str
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """Both ways at one moment."""

    at: datetime
    mails: WayPulse
    emails: WayPulse


def pulse(connection: sa.Connection, now: datetime) -> Pulse:
    """Feels it."""
    return Pulse(
        at=now,
        mails=WayPulse(
            slots=_slots(connection, mails.c.received_at, now),
            recent=_recent(connection, deliveries.c.disposition, deliveries.c.mail_id == mails.c.id, now),
            open=_open(connection, deliveries.c.disposition),
        ),
        emails=WayPulse(
            slots=_slots(connection, emails.c.accepted_at, now),
            recent=_recent(connection, email_recipients.c.disposition, email_recipients.c.email_id == emails.c.id, now),
            open=_open(connection, email_recipients.c.disposition),
        ),
    )


def relays(connection: sa.Connection, now: datetime) -> list[RelayPulse]:
    """What each relay said to the emails of the last hour, the busiest first."""
    table = email_recipients.c
    of_late = sa.and_(emails.c.accepted_at > now - HOUR, table.email_id == emails.c.id, table.relay != "")
    counts: dict[str, dict[str, int]] = {}
    query = sa.select(table.relay, table.disposition, sa.func.count()).where(of_late)
    for relay, disposition, count in connection.execute(query.group_by(table.relay, table.disposition)):
        counts.setdefault(relay, {})[disposition] = count
    found = [_relay(connection, relay, recent, of_late) for relay, recent in counts.items()]
    return sorted(found, key=lambda item: -sum(item.recent.values()))


def _relay(
    connection: sa.Connection, relay: str, recent: Mapping[str, int], of_late: sa.ColumnElement[bool]
) -> RelayPulse:
    table = email_recipients.c
    columns = (table.reply_code, table.reply_enhanced, table.reply_text, table.updated_at)
    newest = sa.select(*columns).where(of_late, table.relay == relay).order_by(table.updated_at.desc()).limit(1)
    row = connection.execute(newest).one()
    words = (str(part) for part in (row.reply_code or "", row.reply_enhanced, row.reply_text) if part)
    return RelayPulse(relay=relay, recent=recent, last_reply=" ".join(words), last_at=row.updated_at)


def _slots(connection: sa.Connection, moment: sa.Column[Any], now: datetime) -> tuple[int, ...]:
    width = HOUR / SLOTS
    starts = [now - HOUR + width * number for number in range(SLOTS)]
    in_slot = [sa.and_(moment > start, moment <= start + width) for start in starts]
    sums = [sa.func.coalesce(sa.func.sum(sa.case((which, 1), else_=0)), 0) for which in in_slot]
    query = sa.select(*sums).where(moment > starts[0], moment <= now)
    return tuple(int(count) for count in connection.execute(query).one())


def _recent(
    connection: sa.Connection, disposition: sa.Column[Any], joined: sa.ColumnElement[bool], now: datetime
) -> dict[str, int]:
    parent = mails if disposition.table is deliveries else emails
    moment = mails.c.received_at if parent is mails else emails.c.accepted_at
    query = sa.select(disposition, sa.func.count()).select_from(parent).join(disposition.table, joined)
    rows = connection.execute(query.where(moment > now - HOUR, moment <= now).group_by(disposition))
    return {row[0]: row[1] for row in rows}


def _open(connection: sa.Connection, disposition: sa.Column[Any]) -> dict[str, int]:
    query = sa.select(disposition, sa.func.count()).where(disposition.in_(_OPEN)).group_by(disposition)
    return {row[0]: row[1] for row in connection.execute(query)}
