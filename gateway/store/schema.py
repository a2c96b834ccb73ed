"""The tables of the store, portable between SQLite and PostgreSQL, and the value types they are made of.

Each subject (a mail, an email, a post) has a `sequence`, raised in the transaction that records a fact of it: the number
its events carry.  Octets stand apart from the rows that lists read; what is large stands in the blob store and its
digest here.  `store.migrations` makes these tables; a test proves that both say the same.
Limits: text loses NUL and lone surrogates on its way in, because PostgreSQL and UTF-8 know neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

MAX_ROW_BYTES = 256 * 1024


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """A moment with an offset; on SQLite text of one width in UTC, so that comparing text compares moments."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(sa.Text())
        return dialect.type_descriptor(sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no offset")
        moment = value.astimezone(UTC)
        return moment.isoformat(timespec="microseconds") if dialect.name == "sqlite" else moment

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        return datetime.fromisoformat(value) if isinstance(value, str) else value


class Text(sa.types.TypeDecorator[str]):
    """Text that any peer may have written: without NUL, always encodable, compared by its octets on every engine."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(sa.Text(collation="C") if dialect.name == "postgresql" else sa.Text())

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else clean_text(value)


class Json(sa.types.TypeDecorator[Any]):
    """A small JSON object with clean text in it."""

    impl = sa.JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(postgresql.JSONB() if dialect.name == "postgresql" else sa.JSON())

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return clean_json(value)


def clean_text(text: str) -> str:
    """The text without NUL and lone surrogates."""
    if text.isascii():
        return text.replace("\x00", "")
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def clean_json(value: Any) -> Any:
    """The value with clean text in it."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_json(item) for item in value]
    return value


def as_json(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row ready for JSON: moments as RFC 3339 text."""
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in row.items()}


Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, Text, nullable=False, server_default="")


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default="0")


def _reply() -> list[sa.Column[Any]]:
    return [sa.Column("reply_code", sa.Integer), _text("reply_enhanced"), _text("reply_text")]


meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

mails = sa.Table(
    "mails",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("recorded_at", UtcDateTime, nullable=False),
    _text("mail_from"),
    _text("door"),
    _text("client"),
    _text("helo"),
    _text("tls"),
    _text("auth"),
    sa.Column("size", Number, nullable=False),
    sa.Column("sha256", Text, nullable=False),
    _text("content_key"),
    _text("subject"),
    _count("sequence"),
    _text("untold"),
    _text("language"),
    _text("message_id"),
    sa.Column("authentication", Json, nullable=False, server_default="{}"),
    sa.Column("by_trusted_host", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index(None, "received_at", "id"),
    sa.Index(None, "content_key"),
)

mail_octets = sa.Table(
    "mail_octets",
    metadata,
    sa.Column("mail_id", Text, sa.ForeignKey("mails.id"), primary_key=True),
    sa.Column("blob", Text),
    sa.Column("octets", sa.LargeBinary),
    sa.Index(None, "blob"),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("mail_id", Text, sa.ForeignKey("mails.id"), nullable=False),
    sa.Column("rcpt_to", Text, nullable=False),
    _count("position"),
    sa.Column("disposition", Text, nullable=False),
    _text("reason"),
    _text("mailbox"),
    sa.Column("post_id", Text),
    sa.Column("duplicate_of", Text),
    _count("attempts"),
    sa.Column("next_attempt_at", UtcDateTime),
    *_reply(),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    _text("person_id"),
    _text("confirmation_id"),
    sa.UniqueConstraint("mail_id", "rcpt_to"),
    sa.Index(None, "disposition", "next_attempt_at"),
    sa.Index(None, "confirmation_id"),
)

people = sa.Table(
    "people",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("address", Text, nullable=False),
    sa.Column("address_key", Text, nullable=False, unique=True),
    _text("name"),
    sa.Column("handle", Text, nullable=False, unique=True),
    sa.Column("added_at", UtcDateTime, nullable=False),
)

confirmations = sa.Table(
    "confirmations",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("person_id", Text, nullable=False),
    sa.Column("state", Text, nullable=False),
    sa.Column("opened_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("asked_at", UtcDateTime),
    sa.Column("closed_at", UtcDateTime),
    sa.Index(None, "person_id", "state"),
    sa.Index(None, "state", "expires_at"),
)

posts = sa.Table(
    "posts",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("mailbox", Text, nullable=False),
    sa.Column("kind", Text, nullable=False),
    sa.Column("mail_id", Text, sa.ForeignKey("mails.id")),
    _text("author"),
    _text("author_address"),
    _text("title"),
    sa.Column("created_at", UtcDateTime, nullable=False),
    _count("sequence"),
    _text("text"),
    sa.Column("html", Text),
    _text("app"),
    _text("content_hash"),
    _text("quoted"),
    _text("address"),
    _text("thread_id"),
    _text("message_id"),
    _text("subject_key"),
    _text("author_key"),
    sa.Index(None, "created_at", "id"),
    sa.Index(None, "mailbox", "created_at", "id"),
    sa.Index(None, "mail_id"),
    sa.Index(None, "thread_id"),
    sa.Index(None, "message_id"),
    sa.Index(None, "author_key", "subject_key"),
)

attachments = sa.Table(
    "attachments",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("post_id", Text, sa.ForeignKey("posts.id"), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    _text("filename"),
    _text("content_type"),
    _text("sniffed"),
    sa.Column("size", Number, nullable=False),
    sa.Column("sha256", Text, nullable=False),
    _text("content_id"),
    sa.Column("inline", sa.Boolean, nullable=False),
    _text("caption"),
    _text("photo"),
    _text("refusal"),
    sa.UniqueConstraint("post_id", "position"),
    sa.Index(None, "sha256"),
)

renditions = sa.Table(
    "renditions",
    metadata,
    sa.Column("attachment_id", Text, sa.ForeignKey("attachments.id"), primary_key=True),
    sa.Column("kind", Text, primary_key=True),
    sa.Column("sha256", Text, nullable=False),
    _text("content_type"),
    sa.Column("size", Number, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Index(None, "sha256"),
)

emails = sa.Table(
    "emails",
    metadata,
    sa.Column("id", Text, primary_key=True),
    _text("app"),
    sa.Column("content_hash", Text, nullable=False),
    _text("template"),
    _text("subject"),
    sa.Column("stream", Text, nullable=False),
    sa.Column("on_unknown", Text, nullable=False),
    sa.Column("serial_key", Text),
    sa.Column("message_id", Text, nullable=False),
    _text("return_path"),
    sa.Column("accepted_at", UtcDateTime, nullable=False),
    sa.Column("send_at", UtcDateTime),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    _count("sequence"),
    _text("reply_to"),
    sa.Column("notify", Json),
    sa.Column("serial_position", Number),
    sa.Index(None, "accepted_at", "id"),
    sa.Index(None, "message_id"),
    sa.Index(
        None,
        "serial_key",
        "serial_position",
        unique=True,
        sqlite_where=sa.text("serial_key IS NOT NULL"),
        postgresql_where=sa.text("serial_key IS NOT NULL"),
    ),
)

serial_keys = sa.Table(
    "serial_keys",
    metadata,
    sa.Column("serial_key", Text, primary_key=True),
    sa.Column("last", Number, nullable=False, server_default="0"),
    sa.Column("turn", Number, nullable=False, server_default="1"),
    sa.Index(
        "ix_serial_keys_unfinished",
        "serial_key",
        sqlite_where=sa.text("turn <= last"),
        postgresql_where=sa.text("turn <= last"),
    ),
)

email_octets = sa.Table(
    "email_octets",
    metadata,
    sa.Column("email_id", Text, sa.ForeignKey("emails.id"), primary_key=True),
    sa.Column("kind", Text, primary_key=True),
    sa.Column("size", Number, nullable=False),
    sa.Column("blob", Text),
    sa.Column("octets", sa.LargeBinary),
    sa.Index(None, "blob"),
)

email_attachments = sa.Table(
    "email_attachments",
    metadata,
    sa.Column("email_id", Text, sa.ForeignKey("emails.id"), primary_key=True),
    sa.Column("blob", Text, primary_key=True),
    sa.Index(None, "blob"),
)

email_recipients = sa.Table(
    "email_recipients",
    metadata,
    sa.Column("email_id", Text, sa.ForeignKey("emails.id"), primary_key=True),
    sa.Column("recipient", Text, primary_key=True),
    _count("position"),
    sa.Column("disposition", Text, nullable=False),
    _text("reason"),
    _count("attempts"),
    _count("copies"),
    sa.Column("next_attempt_at", UtcDateTime),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    _text("ticket_id"),
    sa.Column("claim_token", Text),
    sa.Column("claim_until", UtcDateTime),
    sa.Column("claimed_from", Text),
    sa.Column("dot_sent_at", UtcDateTime),
    _text("relay"),
    *_reply(),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Index(None, "disposition", "next_attempt_at"),
    sa.Index(None, "disposition", "expires_at"),
    sa.Index(None, "disposition", "claim_until"),
)

rejections = sa.Table(
    "rejections",
    metadata,
    sa.Column("request_id", Text, primary_key=True),
    sa.Column("app", Text, primary_key=True),
    sa.Column("fingerprint", Text, primary_key=True),
    sa.Column("reason", Text, nullable=False),
    sa.Column("problems", Json, nullable=False),
    sa.Column("rejected_at", UtcDateTime, nullable=False),
    sa.Index(None, "rejected_at"),
)

notices = sa.Table(
    "notices",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("subject", Text, nullable=False),
    sa.Column("kind", Text, nullable=False),
    _text("recipient"),
    sa.Column("addressee", Text, nullable=False),
    sa.Column("stage", Text, nullable=False),
    _text("reason"),
    sa.Column("facts", Json, nullable=False),
    sa.Column("state", Text, nullable=False),
    sa.Column("due_at", UtcDateTime, nullable=False),
    _text("told_by"),
    sa.Column("told_at", UtcDateTime),
    sa.Index(None, "state", "due_at"),
    sa.Index(None, "addressee", "state", "stage", "told_at"),
    sa.Index(None, "told_by"),
)

timeline = sa.Table(
    "timeline",
    metadata,
    sa.Column("id", Number, primary_key=True),
    sa.Column("subject", Text, nullable=False),
    _text("recipient"),
    sa.Column("step", Text, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("data", Json, nullable=False),
    sa.Index(None, "subject", "id"),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("name", Text, primary_key=True),
    sa.Column("password_hash", Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("token_hash", Text, primary_key=True),
    sa.Column("user_name", Text, sa.ForeignKey("users.name"), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("seen_at", UtcDateTime, nullable=False),
    sa.Index(None, "user_name"),
    sa.Index(None, "seen_at"),
)

invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("user_name", Text, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("used_at", UtcDateTime),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("prefix", Text, primary_key=True),
    sa.Column("secret_hash", Text, nullable=False),
    _text("app"),
    sa.Column("scopes", Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("revoked_at", UtcDateTime),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", Number, primary_key=True),
    sa.Column("event_id", Text, nullable=False, unique=True),
    sa.Column("type", Text, nullable=False),
    sa.Column("subject", Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("published_at", UtcDateTime),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index(
        "ix_outbox_unpublished",
        "id",
        sqlite_where=sa.text("published_at IS NULL"),
        postgresql_where=sa.text("published_at IS NULL"),
    ),
    sa.Index(
        "ix_outbox_published_at",
        "published_at",
        sqlite_where=sa.text("published_at IS NOT NULL"),
        postgresql_where=sa.text("published_at IS NOT NULL"),
    ),
)

blobs = sa.Table(
    "blobs",
    metadata,
    sa.Column("digest", Text, primary_key=True),
    sa.Column("size", Number, nullable=False),
    sa.Column("put_at", UtcDateTime, nullable=False),
    sa.Column("octets", sa.LargeBinary, nullable=False),
)

dead_ticket_blobs = sa.Table(
    "dead_ticket_blobs",
    metadata,
    sa.Column("ticket_id", Text, primary_key=True),
    sa.Column("blob", Text, primary_key=True),
    sa.Column("seen_at", UtcDateTime, nullable=False),
    sa.Index(None, "blob"),
)

turns = sa.Table(
    "turns",
    metadata,
    sa.Column("name", Text, primary_key=True),
    sa.Column("holder", Text, nullable=False),
    sa.Column("until", UtcDateTime, nullable=False),
)
