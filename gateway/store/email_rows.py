"""How the ledger's rows are read: as records for outbound work, as lines and stories for people.

`store.emails` changes them; nothing here writes.  What is read to be changed is read with `to_change` (see `store.locks`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from gateway.mail.disposition import Disposition
from gateway.reply import Reply
from gateway.store import timeline
from gateway.store.ledger import RecipientRecord
from gateway.store.locks import for_change, for_work
from gateway.store.schema import as_json, email_recipients, emails, rejections, serial_keys

Row = sa.Row[Any]
WAITING = (Disposition.PENDING, Disposition.DELAYED)
_STREAMS = ("urgent", "normal", "bulk")
ROWS = sa.select(
    email_recipients,
    emails.c.stream,
    emails.c.on_unknown,
    emails.c.send_at,
    emails.c.serial_key,
    emails.c.serial_position,
    emails.c.message_id,
    emails.c.notify,
).join_from(email_recipients, emails, email_recipients.c.email_id == emails.c.id)

_TURN = emails.alias("turn")
# The email whose turn it is in the key of the one a query is about.
WAITS_FOR = (
    sa.select(_TURN.c.id)
    .where(
        serial_keys.c.serial_key == emails.c.serial_key,
        _TURN.c.serial_key == serial_keys.c.serial_key,
        _TURN.c.serial_position == serial_keys.c.turn,
    )
    .correlate(emails)
    .scalar_subquery()
    .label("waits_for")
)

_ROW = ROWS.where(
    email_recipients.c.email_id == sa.bindparam("email"), email_recipients.c.recipient == sa.bindparam("to")
)
_ROW_TO_CHANGE = for_change(_ROW, email_recipients)


def rows_of(connection: sa.Connection, email_id: str, *, to_change: bool = False) -> list[Row]:
    """The recipients' rows of one email, in the envelope's order."""
    query = ROWS.where(email_recipients.c.email_id == email_id).order_by(email_recipients.c.position)
    return list(connection.execute(for_change(query, email_recipients) if to_change else query))


def row_of(connection: sa.Connection, email_id: str, recipient: str, *, to_change: bool = False) -> Row:
    query = _ROW_TO_CHANGE if to_change else _ROW
    row = connection.execute(query, {"email": email_id, "to": recipient}).first()
    if row is None:
        raise LookupError(f"no email {email_id} to {recipient}")
    return row


def is_abandoned(row: Row, now: datetime) -> bool:
    """Whether its claim ran out before the final dot: free again."""
    return bool(row.disposition == Disposition.SENDING and row.claim_until <= now and row.dot_sent_at is None)


def is_lost_after_dot(row: Row, now: datetime) -> bool:
    """Whether its claim ran out after the final dot: nobody knows what became of it."""
    return bool(row.disposition == Disposition.SENDING and row.claim_until <= now and row.dot_sent_at is not None)


def is_due(row: Row, now: datetime) -> bool:
    if row.disposition in (*WAITING, Disposition.UNKNOWN):
        return row.next_attempt_at is not None and row.next_attempt_at <= now
    return is_abandoned(row, now)


def has_no_turn_yet(row: Row) -> bool:
    """Whether it waits for the turn of its email in its serial key."""
    return bool(row.disposition == Disposition.PENDING and row.next_attempt_at is None)


def told_reason(row: Row) -> str:
    """Its reason; of one that waits for its turn also behind which email, where it stands, and in which key."""
    if row.serial_position is None or not has_no_turn_yet(row):
        return str(row.reason)
    waits = "goes next" if row.waits_for in (None, row.email_id) else f"waits for {row.waits_for}"
    return f"{waits}, position {row.serial_position} of key {row.serial_key}"


def is_worked(row: Row) -> bool:
    """Whether a ticket goes on with it: not final, and no person's turn."""
    if row.disposition == Disposition.UNKNOWN:
        return row.next_attempt_at is not None
    return row.disposition in (*WAITING, Disposition.SENDING)


def overdue_rows(connection: sa.Connection, *, now: datetime, before: datetime, limit: int) -> list[Row]:
    """Rows without a ticket that are due, then rows due since `before`: each stream's oldest, urgent streams first."""
    table = email_recipients.c
    waits = table.disposition.in_((*WAITING, Disposition.UNKNOWN))
    ticketless = sa.and_(waits, table.ticket_id == "", table.next_attempt_at <= now)
    late = sa.and_(waits, table.ticket_id != "", table.next_attempt_at <= before)
    abandoned = sa.and_(
        table.disposition == Disposition.SENDING, table.claim_until <= before, table.dot_sent_at.is_(None)
    )
    found: list[Row] = []
    for which in (ticketless, sa.or_(late, abandoned)):
        for stream in _STREAMS:
            query = ROWS.where(which, emails.c.stream == stream).order_by(table.next_attempt_at).limit(limit)
            found += connection.execute(query)
    return found


def lost_rows(connection: sa.Connection, *, now: datetime, limit: int, to_change: bool = False) -> list[Row]:
    """Rows whose claim ran out after the final dot; to change them, only what nobody else has in hand."""
    table = email_recipients.c
    lost = (table.disposition == Disposition.SENDING, table.claim_until <= now, table.dot_sent_at.is_not(None))
    return _fetched(connection, ROWS.where(*lost).limit(limit), to_change=to_change)


def expired_rows(connection: sa.Connection, *, now: datetime, limit: int, to_change: bool = False) -> list[Row]:
    """Open, unclaimed rows past their time, as `lost_rows`; an unknown one that waits for an operator does not expire."""
    table = email_recipients.c
    ends = sa.or_(
        table.disposition.in_((*WAITING, Disposition.HELD)),
        sa.and_(table.disposition == Disposition.UNKNOWN, table.next_attempt_at.is_not(None)),
        sa.and_(table.disposition == Disposition.SENDING, table.claim_until <= now, table.dot_sent_at.is_(None)),
    )
    return _fetched(connection, ROWS.where(table.expires_at <= now, ends).limit(limit), to_change=to_change)


def _fetched(connection: sa.Connection, query: sa.Select[Any], *, to_change: bool) -> list[Row]:
    found = connection.execute(for_work(query, email_recipients) if to_change else query)
    # Everybody raises the sequences of several emails in this order, so that no two wait for each other.
    return sorted(found, key=lambda row: (row.email_id, row.position))


def reply_of(row: Row) -> Reply | None:
    if row.reply_code is None:
        return None
    return Reply(code=row.reply_code, enhanced_status=row.reply_enhanced, text=row.reply_text)


def record_of(row: Row) -> RecipientRecord:
    names = ("email_id", "recipient", "reason", "attempts", "copies", "next_attempt_at", "ticket_id")
    more = ("claim_until", "dot_sent_at", "relay", "stream")
    values = {name: getattr(row, name) for name in (*names, *more)}
    return RecipientRecord(disposition=Disposition(row.disposition), reply=reply_of(row), **values)


def email_story(connection: sa.Connection, email_id: str) -> dict[str, Any] | None:
    """Everything about one email, or about the request that never became one, ready for JSON."""
    email = connection.execute(sa.select(emails).where(emails.c.id == email_id)).mappings().first()
    steps = timeline.story(connection, email_id)
    if email is None:
        query = sa.select(rejections).where(rejections.c.request_id == email_id)
        row = connection.execute(query.order_by(rejections.c.rejected_at.desc()).limit(1)).first()
        return None if row is None else rejected_line(row) | {"timeline": steps}
    facts = as_json(email)
    for hidden in ("sequence", "content_hash"):
        del facts[hidden]
    lines = ROWS.add_columns(WAITS_FOR).where(email_recipients.c.email_id == email_id)
    told = [_recipient_told(row) for row in connection.execute(lines.order_by(email_recipients.c.position))]
    return facts | {"recipients": told, "timeline": steps}


def rejected_line(row: Row) -> dict[str, Any]:
    """What is told of a request that never became an email, in the form of the list of emails."""
    empty: dict[str, Any] = dict.fromkeys(
        ("recipient", "template", "stream", "relay", "message_id", "subject", "reply"), ""
    )
    empty |= {"serial_key": None, "serial_position": None}
    return (
        {"id": row.request_id}
        | empty
        | {"disposition": str(Disposition.REJECTED), "reason": row.reason, "attempts": 0, "copies": 0}
        | {"next_attempt_at": None, "accepted_at": row.rejected_at.isoformat(), "enhanced_status": "", "app": row.app}
    )


def _recipient_told(row: Row) -> dict[str, Any]:
    names = ("recipient", "disposition", "reason", "attempts", "copies", "relay", "next_attempt_at", "dot_sent_at")
    reply = reply_of(row)
    values = as_json({name: getattr(row, name) for name in names})
    values |= {"reason": told_reason(row), "reply": str(reply) if reply else ""}
    return {key: value for key, value in values.items() if value not in (None, "")}
