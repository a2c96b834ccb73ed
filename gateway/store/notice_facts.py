"""What a notice may say: read from the rows when it is chosen, whitelisted, ready for JSON; never params, never bodies.

`is_still_true` asks whether what was planned still holds: who was held may be released, who was delayed delivered.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from gateway.mail.disposition import Disposition
from gateway.store.notice_plans import Stage
from gateway.store.schema import as_json, deliveries, emails, mails, notices

MAX_NAMED = 100
_WHILE = {
    Stage.DELAYED: (Disposition.PENDING,),
    Stage.HELD: (Disposition.HELD, Disposition.DEAD),
    Stage.FAILED: (Disposition.FAILED,),
    Stage.PARTIAL: (Disposition.DELIVERED,),
}
_OF_MAIL = (
    sa.select(
        notices.c.stage,
        mails.c.received_at,
        mails.c.subject,
        mails.c.language,
        mails.c.message_id,
        deliveries.c.disposition,
        deliveries.c.attempts,
        deliveries.c.next_attempt_at,
        deliveries.c.updated_at,
        deliveries.c.reply_code,
        deliveries.c.reply_enhanced,
        deliveries.c.reply_text,
    )
    .join_from(notices, mails, mails.c.id == notices.c.subject)
    .join(deliveries, sa.and_(deliveries.c.mail_id == mails.c.id, deliveries.c.rcpt_to == notices.c.recipient))
)


def is_still_true(connection: sa.Connection, identity: str) -> bool:
    """Whether what the notice tells is still so; what an app's people wait to hear always is."""
    row = connection.execute(_OF_MAIL.where(notices.c.id == identity)).first()
    if row is None:
        return _kind(connection, identity) == "email"
    wanted = _WHILE.get(Stage(row.stage.partition("-")[0]))
    return wanted is not None and row.disposition in wanted


def frozen(connection: sa.Connection, identity: str, planned: dict[str, Any]) -> dict[str, Any]:
    """Everything the notice says, as it is now."""
    row = connection.execute(sa.select(notices.c.stage, notices.c.kind).where(notices.c.id == identity)).one()
    if row.stage == Stage.DIGEST:
        return _digest(connection, identity)
    return planned | (_mail(connection, identity) if row.kind == "mail" else _email(connection, identity))


def _kind(connection: sa.Connection, identity: str) -> str:
    return str(connection.execute(sa.select(notices.c.kind).where(notices.c.id == identity)).scalar_one())


def _mail(connection: sa.Connection, identity: str) -> dict[str, Any]:
    row = connection.execute(_OF_MAIL.where(notices.c.id == identity)).one()
    names = ("received_at", "subject", "language", "message_id", "attempts", "next_attempt_at")
    reply = " ".join(str(part) for part in (row.reply_code, row.reply_enhanced, row.reply_text) if part)
    facts = {name: getattr(row, name) for name in names} | {"last_attempt_at": row.updated_at}
    return as_json(facts) | {"status": row.reply_enhanced, "reply": reply}


def _email(connection: sa.Connection, identity: str) -> dict[str, Any]:
    query = sa.select(emails.c.template, emails.c.app, emails.c.accepted_at).join_from(
        notices, emails, emails.c.id == notices.c.subject
    )
    return as_json(connection.execute(query.where(notices.c.id == identity)).mappings().one())


def _digest(connection: sa.Connection, identity: str) -> dict[str, Any]:
    """The notices gathered under a digest, the first hundred by name."""
    mine = notices.c.told_by == identity
    query = (
        sa.select(notices.c.stage, notices.c.recipient, notices.c.subject.label("id"), notices.c.reason)
        .add_columns(mails.c.subject, mails.c.language, mails.c.received_at, emails.c.accepted_at)
        .join_from(notices, mails, mails.c.id == notices.c.subject, isouter=True)
        .join(emails, emails.c.id == notices.c.subject, isouter=True)
        .where(mine)
        .order_by(notices.c.told_at, notices.c.id)
        .limit(MAX_NAMED)
    )
    rows = [as_json(row) for row in connection.execute(query).mappings()]
    count = connection.execute(sa.select(sa.func.count()).select_from(notices).where(mine)).scalar_one()
    return {"gathered": rows, "count": count, "language": rows[0]["language"] or "" if rows else ""}
