"""Planning what people are told by mail: rows written in the transaction of the fact they tell, due at once or later.

The verbs of `store.mails` and `store.emails` call these; `store.notices` decides, when a row is due, whether it is still true
and still within what one person may be sent a day.
Promises: a notice's id follows from what it tells (mail or email, recipient, reason, stage, and who is told), so the same
thing is planned once however often it is recorded; who must not be told has a line in the mail's story that says why.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from gateway.contract.events import EventType
from gateway.mail.addresses import Address
from gateway.mail.disposition import Disposition
from gateway.mail.secret_address import redacted
from gateway.store.database import insert_absent
from gateway.store.journal import Fact, Journal
from gateway.store.schema import as_json, mails, notices

DEFAULT_DELAYS = (900.0, 4 * 3600.0)
_NAMESPACE = uuid.UUID("0199b0a6-5c1f-7d3e-8a44-3d0f6a1c9e27")
_OURS = "ours"  # a delay is always a fault of ours, whichever: one notice across an outage and what follows it
_TOLD_TO_REQUESTERS: tuple[EventType, ...] = (
    "email.failed",
    "email.expired",
    "email.suppressed",
    "email.dead",
    "email.unknown",
)


class State(StrEnum):
    """A notice's way: planned → chosen → told; else gathered for a digest, or moot (no longer true, or too much)."""

    PLANNED = "planned"
    CHOSEN = "chosen"
    GATHERED = "gathered"
    UNNOTED = "unnoted"  # told, by a digest or by the outage ledger; the mail's story does not say so yet
    TOLD = "told"
    MOOT = "moot"


class Stage(StrEnum):
    """What a notice tells; a delay has a number: `delayed-1` after the first wait."""

    DELAYED = "delayed"
    FAILED = "failed"
    PARTIAL = "partial"
    HELD = "held"
    ASKED = "asked"  # an app's people hear what became of its email
    DIGEST = "digest"


def delay_stage(number: int) -> str:
    return f"{Stage.DELAYED}-{number}"


def notice_id(subject: str, recipient: str, *, reason: str, stage: str, addressee: str = "") -> str:
    """The id of the notice, and of the email that carries it.

    A delivery goes by mail id and recipient: with the store away it has no other name.
    """
    return str(uuid.uuid5(_NAMESPACE, "\n".join((subject, recipient, reason, stage, addressee))))


def delay_notice_id(mail_id: str, rcpt_to: str, number: int) -> str:
    return notice_id(mail_id, rcpt_to, reason=_OURS, stage=delay_stage(number))


def addressee_of(mailbox: str) -> str:
    """Whom the daily limits count: an address in one spelling."""
    return Address(mailbox=mailbox).key


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidings:
    """What became of one delivery and may be told: whitelisted facts only."""

    mail_id: str
    rcpt_to: str
    stage: Stage
    facts: Mapping[str, Any] = field(default_factory=dict)


def plan(connection: sa.Connection, journal: Journal, now: datetime, tidings: Tidings) -> None:
    """Plans the notice for the sender of a mail, or writes why nobody is told."""
    mail = _mail(connection, tidings.mail_id)
    if mail.untold:
        _note_untold(connection, journal, now, tidings, mail.untold)
        return
    reason = str(tidings.stage)
    row = _row_of_mail(mail, tidings.rcpt_to, reason=reason, stage=tidings.stage)
    insert_absent(connection, notices, row | {"facts": dict(tidings.facts), "due_at": now})


def plan_delays(
    connection: sa.Connection, journal: Journal, now: datetime, tidings: Tidings, delays: Sequence[float]
) -> None:
    """Plans what the sender hears while his mail waits, counted from its arrival; repeated, it changes nothing."""
    mail = _mail(connection, tidings.mail_id)
    if mail.untold:
        if not tidings.facts.get("again"):
            _note_untold(connection, journal, now, tidings, mail.untold)
        return
    for number, seconds in enumerate(delays, 1):
        row = _row_of_mail(mail, tidings.rcpt_to, reason=_OURS, stage=delay_stage(number))
        due_at = mail.received_at + timedelta(seconds=seconds)
        insert_absent(connection, notices, row | {"facts": {}, "due_at": due_at})


def plan_for_requesters(connection: sa.Connection, now: datetime, row: sa.Row[Any], event: EventType) -> None:
    """Plans a word to each address in an email's `notify`, where this is something they wait to hear."""
    if event not in _TOLD_TO_REQUESTERS:
        return
    for mailbox in row.notify or ():
        reason, addressee = event.partition(".")[2], addressee_of(mailbox)
        identity = notice_id(row.email_id, row.recipient, reason=reason, stage=Stage.ASKED, addressee=addressee)
        facts = {"disposition": Disposition(row.disposition), "attempts": row.attempts, "at": now}
        facts |= {"reply": _reply(row), "relay": row.relay}
        values = {
            "id": identity,
            "subject": row.email_id,
            "kind": "email",
            "recipient": row.recipient,
            "addressee": addressee,
            "stage": Stage.ASKED,
            "reason": reason,
            "facts": as_json(facts),
            "state": State.PLANNED,
            "due_at": now,
        }
        insert_absent(connection, notices, values)


def _reply(row: sa.Row[Any]) -> str:
    return " ".join(str(part) for part in (row.reply_code, row.reply_enhanced, row.reply_text) if part)


def _mail(connection: sa.Connection, mail_id: str) -> Any:
    query = sa.select(mails.c.id, mails.c.mail_from, mails.c.received_at, mails.c.untold).where(mails.c.id == mail_id)
    return connection.execute(query).one()


def _row_of_mail(mail: Any, rcpt_to: str, *, reason: str, stage: str) -> dict[str, Any]:
    return {
        "id": notice_id(mail.id, rcpt_to, reason=reason, stage=stage),
        "subject": mail.id,
        "kind": "mail",
        "recipient": rcpt_to,
        "addressee": addressee_of(mail.mail_from),
        "stage": stage,
        "reason": reason,
        "state": State.PLANNED,
    }


def _note_untold(connection: sa.Connection, journal: Journal, now: datetime, tidings: Tidings, why: str) -> None:
    data = {"of": str(tidings.stage), "why": why}
    fact = Fact(subject=tidings.mail_id, step="nobody_told", recipient=redacted(tidings.rcpt_to), data=data)
    journal.note(connection, now, fact)
