"""What apps may read of the store: views that name each column, so that a new column of ours is nobody's business.

No view shows octets, params, claims or tickets.  An app's own role reads these and nothing else; the worker's role reads
and writes the tables and makes none.  `grant_statements` says so to PostgreSQL (`gateway db grants`; a file has no roles).
Promise: a column once published keeps its name and meaning.  Migrations make the views; a test proves these to be the same.
"""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa

from gateway.store import refused
from gateway.store.schema import as_json, metadata

_ROLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")

VIEWS = {
    "published_posts": (
        "SELECT id, mailbox, kind, mail_id, author, author_address, title, created_at, text, html, quoted, address,"
        " thread_id, app FROM posts"
    ),
    "published_attachments": (
        "SELECT id, post_id, position, filename, content_type, sniffed, size, sha256, content_id, inline, caption, photo,"
        " refusal FROM attachments"
    ),
    "published_renditions": ("SELECT attachment_id, kind, sha256, content_type, size, width, height FROM renditions"),
    "published_mails": (
        "SELECT mails.id, mails.received_at, mails.mail_from, deliveries.rcpt_to, deliveries.mailbox,"
        " deliveries.disposition, deliveries.reason, mails.sha256, mails.size, mails.subject, deliveries.post_id,"
        " deliveries.duplicate_of FROM mails JOIN deliveries ON deliveries.mail_id = mails.id"
    ),
    "published_emails": (
        "SELECT emails.id, emails.app, emails.template, emails.subject, emails.stream, emails.message_id,"
        " emails.accepted_at, emails.send_at, email_recipients.recipient, email_recipients.disposition,"
        " email_recipients.reason, email_recipients.attempts, email_recipients.copies, email_recipients.relay,"
        " email_recipients.reply_code, email_recipients.reply_enhanced, email_recipients.reply_text,"
        " email_recipients.next_attempt_at, email_recipients.updated_at"
        " FROM emails JOIN email_recipients ON email_recipients.email_id = emails.id"
    ),
    "published_refusals": "SELECT request_id AS id, app, reason, rejected_at FROM rejections",
}
_POSTS, _ATTACHMENTS, _REFUSALS = (
    sa.table(name, *(sa.column(column) for column in columns.split()))
    for name, columns in (
        ("published_posts", "id mailbox author author_address title created_at text html app thread_id"),
        ("published_attachments", "id post_id position filename content_type size sha256 inline caption refusal"),
        ("published_refusals", "id reason rejected_at"),
    )
)


def make_views(connection: sa.Connection) -> None:
    """Makes the views in a new database."""
    for name, select in VIEWS.items():
        connection.execute(sa.text(f"CREATE VIEW {name} AS {select}"))


def post_or_refusal(connection: sa.Connection, post_id: str) -> dict[str, Any] | None:
    """A stored post with its attachments, or why the request for it failed; None where neither is known.

    Reads the views alone, so that an app's role may.
    """
    row = connection.execute(sa.select(_POSTS).where(_POSTS.c.id == post_id)).mappings().first()
    if row is None:
        return refused.post_refusal(connection, post_id, of=_REFUSALS)
    query = sa.select(_ATTACHMENTS).where(_ATTACHMENTS.c.post_id == post_id).order_by(_ATTACHMENTS.c.position)
    attachments = [as_json(item) for item in connection.execute(query).mappings()]
    return {"id": post_id, "status": "stored"} | as_json(row) | {"attachments": attachments}


def prove(connection: sa.Connection) -> None:
    """Reads nothing from the views; raises DBAPIError where they are not there as they are here."""
    for table in (_POSTS, _ATTACHMENTS, _REFUSALS):
        connection.execute(sa.select(table).limit(0)).close()


def grant_statements(*, app_role: str, worker_role: str, schema: str = "public") -> list[str]:
    """What the owner of the tables says once, and again after an upgrade: SQL, one statement each, in one transaction.

    Whatever else the roles were granted on these tables is taken from them.  Raises ValueError for a name no role has.
    """
    app, worker, place = (_quoted(name) for name in (app_role, worker_role, schema))
    tables = ", ".join(f"{place}.{_quoted(name)}" for name in sorted(metadata.tables))
    views = ", ".join(f"{place}.{_quoted(name)}" for name in sorted(VIEWS))
    return [
        f"REVOKE CREATE ON SCHEMA {place} FROM PUBLIC, {app}, {worker}",
        f"GRANT USAGE ON SCHEMA {place} TO {app}, {worker}",
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {place} FROM PUBLIC, {app}, {worker}",
        f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {place} FROM PUBLIC, {app}, {worker}",
        f"GRANT SELECT ON {views} TO {app}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {worker}",
        f"GRANT SELECT ON {views}, {place}.alembic_version TO {worker}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {place} TO {worker}",
    ]


def _quoted(name: str) -> str:
    if not _ROLE.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a role or a schema")
    return f'"{name}"'
