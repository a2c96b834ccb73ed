"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from gateway.store.schema import Json, Number, Text, UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes every table; see `store.schema` for what they hold."""
    op.create_table(
        "emails",
        sa.Column("id", Text(), nullable=False),
        sa.Column("app", Text(), server_default="", nullable=False),
        sa.Column("content_hash", Text(), nullable=False),
        sa.Column("template", Text(), server_default="", nullable=False),
        sa.Column("subject", Text(), server_default="", nullable=False),
        sa.Column("stream", Text(), nullable=False),
        sa.Column("on_unknown", Text(), nullable=False),
        sa.Column("serial_key", Text(), nullable=True),
        sa.Column("message_id", Text(), nullable=False),
        sa.Column("return_path", Text(), server_default="", nullable=False),
        sa.Column("accepted_at", UtcDateTime(), nullable=False),
        sa.Column("send_at", UtcDateTime(), nullable=True),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("sequence", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_emails")),
    )
    op.create_index(op.f("ix_emails_accepted_at"), "emails", ["accepted_at"])
    op.create_table(
        "mails",
        sa.Column("id", Text(), nullable=False),
        sa.Column("received_at", UtcDateTime(), nullable=False),
        sa.Column("recorded_at", UtcDateTime(), nullable=False),
        sa.Column("mail_from", Text(), server_default="", nullable=False),
        sa.Column("door", Text(), server_default="", nullable=False),
        sa.Column("client", Text(), server_default="", nullable=False),
        sa.Column("helo", Text(), server_default="", nullable=False),
        sa.Column("tls", Text(), server_default="", nullable=False),
        sa.Column("auth", Text(), server_default="", nullable=False),
        sa.Column("size", Number, nullable=False),
        sa.Column("sha256", Text(), nullable=False),
        sa.Column("content_key", Text(), server_default="", nullable=False),
        sa.Column("subject", Text(), server_default="", nullable=False),
        sa.Column("sequence", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mails")),
    )
    op.create_index(op.f("ix_mails_content_key"), "mails", ["content_key"])
    op.create_index(op.f("ix_mails_received_at"), "mails", ["received_at"])
    op.create_table(
        "meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_meta")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", Number, nullable=False),
        sa.Column("event_id", Text(), nullable=False),
        sa.Column("type", Text(), nullable=False),
        sa.Column("subject", Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("published_at", UtcDateTime(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("event_id", name=op.f("uq_outbox_event_id")),
    )
    op.create_index(
        "ix_outbox_published_at",
        "outbox",
        ["published_at"],
        unique=False,
        sqlite_where=sa.text("published_at IS NOT NULL"),
        postgresql_where=sa.text("published_at IS NOT NULL"),
    )
    op.create_index(
        "ix_outbox_unpublished",
        "outbox",
        ["id"],
        unique=False,
        sqlite_where=sa.text("published_at IS NULL"),
        postgresql_where=sa.text("published_at IS NULL"),
    )
    op.create_table(
        "rejections",
        sa.Column("request_id", Text(), nullable=False),
        sa.Column("app", Text(), nullable=False),
        sa.Column("fingerprint", Text(), nullable=False),
        sa.Column("reason", Text(), nullable=False),
        sa.Column("problems", Json(), nullable=False),
        sa.Column("rejected_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "app", "fingerprint", name=op.f("pk_rejections")),
    )
    op.create_index(op.f("ix_rejections_rejected_at"), "rejections", ["rejected_at"])
    op.create_table(
        "timeline",
        sa.Column("id", Number, nullable=False),
        sa.Column("subject", Text(), nullable=False),
        sa.Column("recipient", Text(), server_default="", nullable=False),
        sa.Column("step", Text(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("data", Json(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_timeline")),
    )
    op.create_index(op.f("ix_timeline_subject_id"), "timeline", ["subject", "id"])
    op.create_table(
        "deliveries",
        sa.Column("id", Text(), nullable=False),
        sa.Column("mail_id", Text(), nullable=False),
        sa.Column("rcpt_to", Text(), nullable=False),
        sa.Column("position", sa.Integer(), server_default="0", nullable=False),
        sa.Column("disposition", Text(), nullable=False),
        sa.Column("reason", Text(), server_default="", nullable=False),
        sa.Column("mailbox", Text(), server_default="", nullable=False),
        sa.Column("post_id", Text(), nullable=True),
        sa.Column("duplicate_of", Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", UtcDateTime(), nullable=True),
        sa.Column("reply_code", sa.Integer(), nullable=True),
        sa.Column("reply_enhanced", Text(), server_default="", nullable=False),
        sa.Column("reply_text", Text(), server_default="", nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["mail_id"], ["mails.id"], name=op.f("fk_deliveries_mail_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
        sa.UniqueConstraint("mail_id", "rcpt_to", name=op.f("uq_deliveries_mail_id_rcpt_to")),
    )
    op.create_index(
        op.f("ix_deliveries_disposition_next_attempt_at"),
        "deliveries",
        ["disposition", "next_attempt_at"],
        unique=False,
    )
    op.create_table(
        "email_octets",
        sa.Column("email_id", Text(), nullable=False),
        sa.Column("kind", Text(), nullable=False),
        sa.Column("size", Number, nullable=False),
        sa.Column("blob", Text(), nullable=True),
        sa.Column("octets", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["email_id"], ["emails.id"], name=op.f("fk_email_octets_email_id")),
        sa.PrimaryKeyConstraint("email_id", "kind", name=op.f("pk_email_octets")),
    )
    op.create_table(
        "email_recipients",
        sa.Column("email_id", Text(), nullable=False),
        sa.Column("recipient", Text(), nullable=False),
        sa.Column("position", sa.Integer(), server_default="0", nullable=False),
        sa.Column("disposition", Text(), nullable=False),
        sa.Column("reason", Text(), server_default="", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("copies", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", UtcDateTime(), nullable=True),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("ticket_id", Text(), server_default="", nullable=False),
        sa.Column("claim_token", Text(), nullable=True),
        sa.Column("claim_until", UtcDateTime(), nullable=True),
        sa.Column("claimed_from", Text(), nullable=True),
        sa.Column("dot_sent_at", UtcDateTime(), nullable=True),
        sa.Column("relay", Text(), server_default="", nullable=False),
        sa.Column("reply_code", sa.Integer(), nullable=True),
        sa.Column("reply_enhanced", Text(), server_default="", nullable=False),
        sa.Column("reply_text", Text(), server_default="", nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["email_id"], ["emails.id"], name=op.f("fk_email_recipients_email_id")),
        sa.PrimaryKeyConstraint("email_id", "recipient", name=op.f("pk_email_recipients")),
    )
    op.create_index(
        op.f("ix_email_recipients_disposition_claim_until"),
        "email_recipients",
        ["disposition", "claim_until"],
        unique=False,
    )
    op.create_index(
        op.f("ix_email_recipients_disposition_expires_at"),
        "email_recipients",
        ["disposition", "expires_at"],
        unique=False,
    )
    op.create_index(
        op.f("ix_email_recipients_disposition_next_attempt_at"),
        "email_recipients",
        ["disposition", "next_attempt_at"],
        unique=False,
    )
    op.create_table(
        "mail_octets",
        sa.Column("mail_id", Text(), nullable=False),
        sa.Column("blob", Text(), nullable=True),
        sa.Column("octets", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["mail_id"], ["mails.id"], name=op.f("fk_mail_octets_mail_id")),
        sa.PrimaryKeyConstraint("mail_id", name=op.f("pk_mail_octets")),
    )
    op.create_table(
        "posts",
        sa.Column("id", Text(), nullable=False),
        sa.Column("mailbox", Text(), nullable=False),
        sa.Column("kind", Text(), nullable=False),
        sa.Column("mail_id", Text(), nullable=True),
        sa.Column("author", Text(), server_default="", nullable=False),
        sa.Column("author_address", Text(), server_default="", nullable=False),
        sa.Column("title", Text(), server_default="", nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("sequence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("text", Text(), server_default="", nullable=False),
        sa.Column("html", Text(), nullable=True),
        sa.Column("app", Text(), server_default="", nullable=False),
        sa.Column("content_hash", Text(), server_default="", nullable=False),
        sa.Column("quoted", Text(), server_default="", nullable=False),
        sa.Column("address", Text(), server_default="", nullable=False),
        sa.Column("thread_id", Text(), server_default="", nullable=False),
        sa.Column("message_id", Text(), server_default="", nullable=False),
        sa.Column("subject_key", Text(), server_default="", nullable=False),
        sa.Column("author_key", Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["mail_id"], ["mails.id"], name=op.f("fk_posts_mail_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_posts")),
    )
    op.create_index(op.f("ix_posts_author_key_subject_key"), "posts", ["author_key", "subject_key"])
    op.create_index(op.f("ix_posts_mail_id"), "posts", ["mail_id"])
    op.create_index(op.f("ix_posts_mailbox_created_at"), "posts", ["mailbox", "created_at"])
    op.create_index(op.f("ix_posts_message_id"), "posts", ["message_id"])
    op.create_index(op.f("ix_posts_thread_id"), "posts", ["thread_id"])
    op.create_table(
        "attachments",
        sa.Column("id", Text(), nullable=False),
        sa.Column("post_id", Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("filename", Text(), server_default="", nullable=False),
        sa.Column("content_type", Text(), server_default="", nullable=False),
        sa.Column("sniffed", Text(), server_default="", nullable=False),
        sa.Column("size", Number, nullable=False),
        sa.Column("sha256", Text(), nullable=False),
        sa.Column("content_id", Text(), server_default="", nullable=False),
        sa.Column("inline", sa.Boolean(), nullable=False),
        sa.Column("caption", Text(), server_default="", nullable=False),
        sa.Column("photo", Text(), server_default="", nullable=False),
        sa.Column("refusal", Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["post_id"], ["posts.id"], name=op.f("fk_attachments_post_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attachments")),
        sa.UniqueConstraint("post_id", "position", name=op.f("uq_attachments_post_id_position")),
    )
    op.create_index(op.f("ix_attachments_sha256"), "attachments", ["sha256"])
    op.create_table(
        "renditions",
        sa.Column("attachment_id", Text(), nullable=False),
        sa.Column("kind", Text(), nullable=False),
        sa.Column("sha256", Text(), nullable=False),
        sa.Column("content_type", Text(), server_default="", nullable=False),
        sa.Column("size", Number, nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["attachment_id"], ["attachments.id"], name=op.f("fk_renditions_attachment_id")),
        sa.PrimaryKeyConstraint("attachment_id", "kind", name=op.f("pk_renditions")),
    )
    op.create_index(op.f("ix_renditions_sha256"), "renditions", ["sha256"])
