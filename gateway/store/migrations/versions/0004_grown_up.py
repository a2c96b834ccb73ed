"""What apps may read (views), blobs in the database, who names a blob besides the rows that hold one, whose turn it is.

An email accepted before gets rows for the blobs its request attaches, so that they are never taken for forgotten.  Limit: a
request larger than a row stands in the blob store, where a migration does not look; attaching the same file again helps.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from gateway.store.schema import Number, Text, UtcDateTime

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "blobs",
        sa.Column("digest", Text(), nullable=False),
        sa.Column("size", Number, nullable=False),
        sa.Column("put_at", UtcDateTime(), nullable=False),
        sa.Column("octets", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blobs")),
    )
    op.create_table(
        "email_attachments",
        sa.Column("email_id", Text(), nullable=False),
        sa.Column("blob", Text(), nullable=False),
        sa.ForeignKeyConstraint(["email_id"], ["emails.id"], name=op.f("fk_email_attachments_email_id")),
        sa.PrimaryKeyConstraint("email_id", "blob", name=op.f("pk_email_attachments")),
    )
    op.create_index(op.f("ix_email_attachments_blob"), "email_attachments", ["blob"])
    op.create_table(
        "dead_ticket_blobs",
        sa.Column("ticket_id", Text(), nullable=False),
        sa.Column("blob", Text(), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("ticket_id", "blob", name=op.f("pk_dead_ticket_blobs")),
    )
    op.create_index(op.f("ix_dead_ticket_blobs_blob"), "dead_ticket_blobs", ["blob"])
    op.create_table(
        "turns",
        sa.Column("name", Text(), nullable=False),
        sa.Column("holder", Text(), nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_turns")),
    )
    for table in ("mail_octets", "email_octets"):
        op.create_index(op.f(f"ix_{table}_blob"), table, ["blob"])
    for name, select in _VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {select}")
    _note_attached_blobs(op.get_bind())


def _note_attached_blobs(connection: sa.Connection) -> None:
    octets = sa.table("email_octets", sa.column("email_id"), sa.column("kind"), sa.column("octets"))
    noted = sa.table("email_attachments", sa.column("email_id"), sa.column("blob"))
    query = sa.select(octets.c.email_id, octets.c.octets).where(
        octets.c.kind == "request", octets.c.octets.is_not(None)
    )
    for email_id, request in connection.execute(query).all():
        attached = json.loads(bytes(request)).get("attachments") or []
        for blob in sorted({item["blob"] for item in attached if item.get("blob")}):
            connection.execute(sa.insert(noted), {"email_id": email_id, "blob": blob})


_VIEWS = {
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
}
