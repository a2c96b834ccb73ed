"""How an email gets into the ledger: its row, its octets, a row for each recipient, the fact and its event; all or nothing.

Used by `store.emails` for what apps ask, by `store.notices` for what we tell people by mail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from gateway.contract.email_send import SendEmail
from gateway.mail.addresses import parse_address
from gateway.mail.disposition import Disposition
from gateway.store import serial
from gateway.store.database import insert_absent
from gateway.store.journal import Fact, Journal
from gateway.store.schema import as_json, email_attachments, email_octets, email_recipients, emails

REQUEST, RENDERED = "request", "rendered"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEmail:
    """An email about to be accepted; `facts` are further columns of its row, `kept` the columns of its octets by kind."""

    request: SendEmail
    facts: Mapping[str, Any]
    expires_at: datetime
    ticket_id: str
    kept: Mapping[str, Mapping[str, Any]]


def insert_email(connection: sa.Connection, journal: Journal, now: datetime, new: NewEmail) -> bool:
    """Inserts it if its id is not taken; False where it is, and then nothing was written."""
    request = new.request
    values = {
        "id": request.id,
        "template": request.template or "",
        "subject": request.subject or "",
        "on_unknown": request.on_unknown,
        "serial_key": request.serial_key,
        "reply_to": next((address.mailbox for address in request.addresses("reply_to")), ""),
        "accepted_at": now,
        "send_at": request.send_at,
        "expires_at": new.expires_at,
        "notify": [parse_address(text).mailbox for text in request.notify] or None,
    }
    if not insert_absent(connection, emails, values | dict(new.facts)):
        return False
    place = _place_in_line(connection, request)
    octets = [dict(columns) | {"email_id": request.id, "kind": kind} for kind, columns in new.kept.items()]
    connection.execute(sa.insert(email_octets), octets)
    connection.execute(sa.insert(email_recipients), _recipients(new, now))
    named = sorted({item.blob for item in request.attachments if item.blob is not None})
    if named:
        connection.execute(sa.insert(email_attachments), [{"email_id": request.id, "blob": blob} for blob in named])
    data = {
        "app": new.facts["app"],
        "recipients": request.recipients(),
        "stream": new.facts["stream"],
        "template": request.template or "",
    }
    data |= as_json({"message_id": new.facts["message_id"], "send_at": request.send_at, "expires_at": new.expires_at})
    data |= place
    journal.note(connection, now, Fact(subject=request.id, step="accepted", event="email.accepted", data=data))
    return True


def _place_in_line(connection: sa.Connection, request: SendEmail) -> dict[str, Any]:
    """Gives an email of a serial key its number there; only one that is new gets one, so that no number is left out."""
    if request.serial_key is None:
        return {}
    position = serial.next_position(connection, request.serial_key)
    connection.execute(sa.update(emails).where(emails.c.id == request.id).values(serial_position=position))
    return {"serial_key": request.serial_key, "position": position}


def _recipients(new: NewEmail, now: datetime) -> Sequence[dict[str, Any]]:
    """A row per recipient; one that waits for its turn or for `send_at` has no ticket until then."""
    common = {
        "email_id": new.request.id,
        "disposition": Disposition.PENDING,
        "expires_at": new.expires_at,
        "updated_at": now,
    }
    if new.request.serial_key is not None:
        common |= {"reason": serial.WAITS, "next_attempt_at": None, "ticket_id": ""}
    elif new.request.send_at is not None and new.request.send_at > now:
        common |= {"reason": "waits for send_at", "next_attempt_at": new.request.send_at, "ticket_id": ""}
    else:
        common |= {"reason": "", "next_attempt_at": now, "ticket_id": new.ticket_id}
    return [
        common | {"recipient": recipient, "position": position}
        for position, recipient in enumerate(new.request.recipients())
    ]
