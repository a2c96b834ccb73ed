"""Who may ask, and indexes that lists are read along."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from gateway.store.schema import Text, UtcDateTime

revision = "0003"
down_revision = "0002"

_LISTED = (("emails", ("accepted_at",)), ("mails", ("received_at",)), ("posts", ("mailbox", "created_at")))


def upgrade() -> None:
    """Makes the tables of users and keys, and lets the lists' indexes end with the id, which makes their order total."""
    for table, columns in _LISTED:
        op.drop_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table)
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}_id"), table, [*columns, "id"])
    op.create_index(op.f("ix_posts_created_at_id"), "posts", ["created_at", "id"])
    _make_users()
    op.create_table(
        "api_keys",
        sa.Column("prefix", Text(), nullable=False),
        sa.Column("secret_hash", Text(), nullable=False),
        sa.Column("app", Text(), server_default="", nullable=False),
        sa.Column("scopes", Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("revoked_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("prefix", name=op.f("pk_api_keys")),
    )


def _make_users() -> None:
    op.create_table(
        "users",
        sa.Column("name", Text(), nullable=False),
        sa.Column("password_hash", Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_users")),
    )
    op.create_table(
        "sessions",
        sa.Column("token_hash", Text(), nullable=False),
        sa.Column("user_name", Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["user_name"], ["users.name"], name=op.f("fk_sessions_user_name")),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_user_name"), "sessions", ["user_name"])
    op.create_index(op.f("ix_sessions_seen_at"), "sessions", ["seen_at"])
    op.create_table(
        "invitations",
        sa.Column("id", Text(), nullable=False),
        sa.Column("user_name", Text(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("used_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitations")),
    )
