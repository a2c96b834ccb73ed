"""Order per key: which email of a serial key has its turn, and how the next one gets it.

A key's emails are numbered where they are accepted (`emails.serial_position`).  Its row in `serial_keys` holds the `last`
number given and whose `turn` it is: everything below is final, and final stays final.  Until its turn an email's rows are
pending without a time and without a ticket; `start_turn` makes them due once what stood before is final, and the sweeper
starts a turn that nobody started.  `claim` asks `may_go`, so that nothing (an operator's release, say) overtakes.
Promises: of two transactions that number or start one key the second sees what the first did, because both lock its row; an
email that is held, dead or unknown keeps the turn until it is final.
Order of locks: the key's row, then recipients' rows; who has a recipient's row only reads the key's.
Limits: `send_at` holds back what stands behind it, too; the keys are the same for all apps.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from gateway.mail.disposition import Disposition
from gateway.store.database import insert_absent
from gateway.store.email_rows import Row, has_no_turn_yet, rows_of
from gateway.store.journal import Fact, Journal
from gateway.store.locks import for_change
from gateway.store.schema import email_recipients, emails, serial_keys

WAITS = "waits for its turn"
_FINAL = [disposition for disposition in Disposition if disposition.is_final]
_OPEN = email_recipients.c.disposition.not_in(_FINAL)
_WAITING = sa.and_(
    email_recipients.c.disposition == Disposition.PENDING,
    email_recipients.c.next_attempt_at.is_(None),
)


def next_position(connection: sa.Connection, serial_key: str) -> int:
    """Gives a key's next number; nobody else numbers or starts this key until the commit."""
    insert_absent(connection, serial_keys, {"serial_key": serial_key})
    raised = sa.update(serial_keys).where(serial_keys.c.serial_key == serial_key).values(last=serial_keys.c.last + 1)
    return int(connection.execute(raised.returning(serial_keys.c.last)).scalar_one())


def may_go(connection: sa.Connection, row: Row) -> bool:
    """Whether a recipient's row may be worked: its email has no key, or everything before it is final."""
    if row.serial_position is None:
        return True
    turn = sa.select(serial_keys.c.turn).where(serial_keys.c.serial_key == row.serial_key)
    return bool(connection.execute(turn).scalar_one() >= row.serial_position)


def stalled_keys(connection: sa.Connection, *, serial_key: str | None = None, limit: int = 1) -> list[str]:
    """Keys in which somebody could go on and nobody was told to; of all keys, or whether this one is such a key."""
    query = _STALLED if serial_key is None else _STALLED.where(serial_keys.c.serial_key == serial_key)
    return list(connection.execute(query.limit(limit)).scalars())


def start_turn(connection: sa.Connection, journal: Journal, now: datetime, serial_key: str) -> list[Row]:
    """Moves the turn to the first email that is not final and makes its waiting rows due; returns those rows."""
    this = sa.select(serial_keys).where(serial_keys.c.serial_key == serial_key)
    key = connection.execute(for_change(this, serial_keys)).one()
    first = connection.execute(_first_open(serial_key, key.turn)).first()
    turn = key.last + 1 if first is None else first.serial_position
    connection.execute(sa.update(serial_keys).where(serial_keys.c.serial_key == serial_key).values(turn=turn))
    if first is None:
        return []
    waiting = [row for row in rows_of(connection, first.id, to_change=True) if has_no_turn_yet(row)]
    if not waiting:
        return []
    _make_due(connection, now, waiting)
    data = {"serial_key": serial_key, "position": turn}
    journal.note(connection, now, Fact(subject=first.id, step="turn_came", data=data))
    started = {row.recipient for row in waiting}
    return [row for row in rows_of(connection, first.id) if row.recipient in started]


def _make_due(connection: sa.Connection, now: datetime, waiting: list[Row]) -> None:
    send_at = waiting[0].send_at
    is_early = send_at is not None and send_at > now
    values = {
        "next_attempt_at": send_at if is_early else now,
        "reason": "waits for send_at" if is_early else "",
        "updated_at": now,
    }
    mine = sa.and_(email_recipients.c.email_id == waiting[0].email_id, _WAITING)
    connection.execute(sa.update(email_recipients).where(mine).values(values))


def _first_open(serial_key: str, turn: int) -> sa.Select[Any]:
    query = sa.select(emails.c.id, emails.c.serial_position).where(
        emails.c.serial_key == serial_key,
        emails.c.serial_position >= turn,
        sa.exists().where(email_recipients.c.email_id == emails.c.id, _OPEN),
    )
    return query.order_by(emails.c.serial_position).limit(1)


def _has_turn(*rows: sa.ColumnElement[bool]) -> sa.Exists:
    """Whether the email whose turn it is has such rows."""
    return sa.exists().where(
        emails.c.serial_key == serial_keys.c.serial_key,
        emails.c.serial_position == serial_keys.c.turn,
        email_recipients.c.email_id == emails.c.id,
        *rows,
    )


_STALLED = sa.select(serial_keys.c.serial_key).where(
    sa.text("turn <= last"),  # as the index says it
    sa.or_(_has_turn(_WAITING), sa.not_(_has_turn(_OPEN))),
)
