"""How a recipient's row of the ledger changes inside a verb's transaction, and how that is told.

The steps that verbs of `store.emails` share: each changes the row only while it is what was read (`change`), or while the claim
holds (`change_claimed`), else ClaimLost; line and event are written beside it.  Nothing here begins or ends a transaction.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.contract.events import EventType
from gateway.errors import ClaimLost
from gateway.mail.disposition import Disposition
from gateway.reply import Reply
from gateway.store import email_rows as rows
from gateway.store import notice_plans, serial
from gateway.store.email_rows import Row
from gateway.store.journal import Fact, Journal
from gateway.store.ledger import Claim
from gateway.store.schema import as_json, email_recipients


class RowChanges:
    """The steps, written into one journal."""

    def __init__(self, journal: Journal, *, unknown_wait: timedelta) -> None:
        """`unknown_wait`: how long an unknown outcome waits for a late word before it is sent again."""
        self._journal = journal
        self._unknown_wait = unknown_wait

    def take(self, connection: sa.Connection, now: datetime, row: Row, *, ticket_id: str, until: datetime) -> Claim:
        token = secrets.token_hex(16)
        attempt, copy = row.attempts + 1, row.copies + 1
        claimed_from = row.claimed_from if row.disposition == Disposition.SENDING else row.disposition
        held = {"claim_token": token, "claim_until": until, "claimed_from": claimed_from, "dot_sent_at": None}
        values = held | {"disposition": Disposition.SENDING, "ticket_id": ticket_id, "updated_at": now}
        self.change(connection, row, values)
        claim = Claim(
            email_id=row.email_id, recipient=row.recipient, token=token, until=until, attempt=attempt, copy=copy
        )
        self.note(connection, now, claim, "claimed", {"attempt": attempt, "copy": copy})
        return claim

    def send_back(self, connection: sa.Connection, now: datetime, row: Row) -> None:
        """A row that was made due out of turn waits again."""
        waits = {"disposition": Disposition.PENDING, "reason": serial.WAITS, "ticket_id": ""}
        self.change(connection, row, ended(now) | waits)
        data = {"serial_key": row.serial_key, "position": row.serial_position}
        fact = Fact(subject=row.email_id, step="sent_back", recipient=row.recipient, data=data)
        self._journal.note(connection, now, fact)

    def become_unknown(self, connection: sa.Connection, now: datetime, row: Row, *, reason: str) -> None:
        due = now + self._unknown_wait if row.on_unknown == "resend" else None
        outcome = {"disposition": Disposition.UNKNOWN, "reason": reason, "attempts": row.attempts + 1}
        self.change(connection, row, ended(now) | outcome | {"next_attempt_at": due})
        self.tell(connection, now, rows.row_of(connection, row.email_id, row.recipient), "email.unknown")

    def expire(self, connection: sa.Connection, now: datetime, row: Row) -> None:
        reason = f"{row.disposition} until its time ran out" + (f": {row.reason}" if row.reason else "")
        self.change(connection, row, ended(now) | {"disposition": Disposition.EXPIRED, "reason": reason})
        self.tell(connection, now, rows.row_of(connection, row.email_id, row.recipient), "email.expired")

    def change(self, connection: sa.Connection, row: Row, values: dict[str, Any]) -> None:
        """Compare-and-set: raises ClaimLost when the row is not what it was when it was read."""
        table = email_recipients.c
        same = (
            table.email_id == row.email_id,
            table.recipient == row.recipient,
            table.disposition == row.disposition,
            table.claim_token.is_not_distinct_from(row.claim_token),
        )
        if connection.execute(sa.update(email_recipients).where(*same).values(values)).rowcount != 1:
            raise ClaimLost(f"{row.email_id} to {row.recipient} changed meanwhile")

    def note(self, connection: sa.Connection, now: datetime, claim: Claim, step: str, data: dict[str, Any]) -> int:
        fact = Fact(subject=claim.email_id, step=step, recipient=claim.recipient, data=data)
        return self._journal.note(connection, now, fact)

    def tell(
        self,
        connection: sa.Connection,
        now: datetime,
        row: Row,
        event: EventType | None,
        *,
        step: str = "",
        by: str = "",
    ) -> None:
        """Notes what a row became, as a line of the timeline and, where there is one for it, as an event."""
        fact = Fact(
            subject=row.email_id,
            step=step or row.disposition,
            recipient=row.recipient,
            event=event,
            data=_outcome_data(row) | ({"by": by} if by else {}),
        )
        self._journal.note(connection, now, fact)
        if event is not None:
            notice_plans.plan_for_requesters(connection, now, row, event)


_CLAIMED = sa.update(email_recipients).where(
    email_recipients.c.email_id == sa.bindparam("email"),
    email_recipients.c.recipient == sa.bindparam("to"),
    email_recipients.c.claim_token == sa.bindparam("token"),
)


def change_claimed(connection: sa.Connection, claim: Claim, values: dict[str, Any]) -> Row:
    """Changes the row while the claim holds and returns it as it is then; raises ClaimLost."""
    mine = {"email": claim.email_id, "to": claim.recipient, "token": claim.token}
    if connection.execute(_CLAIMED.values(values), mine).rowcount != 1:
        raise ClaimLost(f"the claim on {claim.email_id} to {claim.recipient} is gone")
    return rows.row_of(connection, claim.email_id, claim.recipient)


def ended(now: datetime) -> dict[str, Any]:
    """The columns of a claim that is over."""
    return {
        "claim_token": None,
        "claim_until": None,
        "claimed_from": None,
        "next_attempt_at": None,
        "updated_at": now,
    }


def given_up(row: Row, now: datetime) -> dict[str, Any]:
    """What a row becomes when its abandoned claim is taken off it; nothing where there is none."""
    return ended(now) | {"disposition": row.claimed_from} if row.disposition == Disposition.SENDING else {}


def not_taken() -> dict[str, Any]:
    """A dot that the relay said no to is no copy."""
    table = email_recipients.c
    copies = sa.case((table.dot_sent_at.is_not(None), table.copies - 1), else_=table.copies)
    return {"copies": copies, "dot_sent_at": None}


def reply_values(reply: Reply) -> dict[str, Any]:
    return {"reply_code": reply.code, "reply_enhanced": reply.enhanced_status, "reply_text": reply.text}


def _outcome_data(row: Row) -> dict[str, Any]:
    reply = rows.reply_of(row)
    data = as_json(
        {
            "disposition": row.disposition,
            "reason": row.reason,
            "relay": row.relay,
            "reply": str(reply) if reply else "",
            "enhanced_status": row.reply_enhanced,
            "attempts": row.attempts,
            "copies": row.copies,
            "next_attempt_at": row.next_attempt_at,
            "message_id": row.message_id,
        }
    )
    return {key: value for key, value in data.items() if value not in (None, "")}
