"""How the rows of mails and deliveries are read and written; `store.mails` has the verbs, nothing here begins or ends one.

What is read to be changed is locked until the commit (`delivery_to_change`, see `store.locks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.errors import StoreUnavailable
from gateway.mail.disposition import Disposition
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.mail.loop_guard import Telling
from gateway.mail.secret_address import redacted
from gateway.store import timeline
from gateway.store.database import insert_absent
from gateway.store.locks import for_change, hold_name
from gateway.store.schema import as_json, deliveries, mail_octets, mails

DUPLICATE_DAYS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord:
    """What became of one recipient of a mail, so far."""

    id: str
    mail_id: str
    rcpt_to: str
    disposition: Disposition
    reason: str
    mailbox: str
    post_id: str | None
    attempts: int
    next_attempt_at: datetime | None


ENVELOPE = ("received_at", "mail_from", "door", "client", "helo", "tls", "auth", "by_trusted_host")
STORED = sa.select(mails, mail_octets.c.octets, mail_octets.c.blob).join_from(mails, mail_octets)


def insert_mail(
    connection: sa.Connection, envelope: Envelope, facts: dict[str, Any], kept: dict[str, bytes | str]
) -> bool:
    values = {name: getattr(envelope, name) for name in ENVELOPE} | facts | {"id": envelope.mail_id}
    is_new = bool(insert_absent(connection, mails, values))
    if is_new:
        connection.execute(sa.insert(mail_octets), kept | {"mail_id": envelope.mail_id})
        return True
    this = mails.c.id == envelope.mail_id
    if facts["subject"]:
        connection.execute(sa.update(mails).where(this, mails.c.subject == "").values(subject=facts["subject"]))
    if found := facts.get("authentication"):
        connection.execute(sa.update(mails).where(this).values(authentication=found))
    return False


def insert_deliveries(connection: sa.Connection, envelope: Envelope, now: datetime) -> list[str]:
    """Inserts what is absent; returns the recipients added."""
    common = {"mail_id": envelope.mail_id, "disposition": Disposition.PENDING, "updated_at": now}
    rows = (
        common | {"id": new_id(), "rcpt_to": rcpt_to, "position": position}
        for position, rcpt_to in enumerate(envelope.rcpt_to)
    )
    return [str(row["rcpt_to"]) for row in rows if insert_absent(connection, deliveries, row)]


def deliveries_of(
    connection: sa.Connection, mail_id: str, rcpt_to: str | None = None, *, to_change: bool = False
) -> list[DeliveryRecord]:
    names = DeliveryRecord.__dataclass_fields__
    query = sa.select(*(deliveries.c[name] for name in names)).where(deliveries.c.mail_id == mail_id)
    if rcpt_to is not None:
        query = query.where(deliveries.c.rcpt_to == rcpt_to)
    query = query.order_by(deliveries.c.position, deliveries.c.id)
    rows = connection.execute(for_change(query, deliveries) if to_change else query).mappings()
    return [DeliveryRecord(**{**row, "disposition": Disposition(row["disposition"])}) for row in rows]


def delivery_to_change(connection: sa.Connection, mail_id: str, rcpt_to: str) -> DeliveryRecord:
    """The row, to be changed."""
    found = deliveries_of(connection, mail_id, rcpt_to, to_change=True)
    if not found:
        raise LookupError(f"no delivery of mail {mail_id} to {rcpt_to}")
    return found[0]


def delivered_before(connection: sa.Connection, row: DeliveryRecord, now: datetime) -> sa.RowMapping | None:
    """The delivery of another mail that this one is a copy of: same sender, recipient and content, lately delivered."""
    this = connection.execute(sa.select(mails.c.mail_from, mails.c.content_key).where(mails.c.id == row.mail_id)).one()
    if not this.content_key:
        return None
    hold_name(connection, "copy", this.content_key, this.mail_from, row.rcpt_to)
    query = (
        sa.select(deliveries.c.mail_id, deliveries.c.post_id)
        .join_from(mails, deliveries, deliveries.c.mail_id == mails.c.id)
        .where(mails.c.content_key == this.content_key, mails.c.mail_from == this.mail_from, mails.c.id != row.mail_id)
        .where(deliveries.c.rcpt_to == row.rcpt_to, deliveries.c.disposition == Disposition.DELIVERED)
        .where(deliveries.c.updated_at >= now - timedelta(days=DUPLICATE_DAYS))
    )
    return connection.execute(query.limit(1)).mappings().first()


def update_delivery(connection: sa.Connection, row: DeliveryRecord, now: datetime, **values: Any) -> None:
    values = {"next_attempt_at": None, "updated_at": now} | values
    # On a database with several writers another one may have ended it since it was read.
    still = sa.and_(deliveries.c.id == row.id, deliveries.c.disposition == row.disposition)
    if connection.execute(sa.update(deliveries).where(still).values(values)).rowcount != 1:
        raise StoreUnavailable(f"delivery {row.id} changed meanwhile")


def telling_values(telling: Telling | None) -> dict[str, str]:
    telling = telling or Telling(untold="nobody asked whether its sender may be told")
    return {"untold": telling.untold, "language": telling.language, "message_id": telling.message_id}


def story_of(connection: sa.Connection, mail_id: str) -> dict[str, Any] | None:
    mail = connection.execute(sa.select(mails).where(mails.c.id == mail_id)).mappings().first()
    if mail is None:
        return None
    facts = {key: value for key, value in as_json(mail).items() if key not in {"sequence", "content_key"}}
    query = sa.select(deliveries).where(deliveries.c.mail_id == mail_id)
    found = connection.execute(query.order_by(deliveries.c.position, deliveries.c.id)).mappings()
    return facts | {"recipients": [_told(row) for row in found], "timeline": timeline.story(connection, mail_id)}


def _told(row: sa.RowMapping) -> dict[str, Any]:
    hidden = {"id", "mail_id", "position", "person_id"}
    shown = {key: value for key, value in as_json(row).items() if key not in hidden and value not in (None, "", 0)}
    return shown | {"rcpt_to": redacted(row["rcpt_to"])}
