"""Where answers to an email go, found by the Message-ID they answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from gateway.store.schema import Text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the column and its index."""
    op.add_column("emails", sa.Column("reply_to", Text(), server_default="", nullable=False))
    op.create_index(op.f("ix_emails_message_id"), "emails", ["message_id"])
