"""Order per key: an email's position in its key, and how far each key has come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from gateway.store.schema import Number, Text

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """No email of an older version has a key: they were rejected."""
    op.add_column("emails", sa.Column("serial_position", Number, nullable=True))
    op.create_index(
        op.f("ix_emails_serial_key_serial_position"),
        "emails",
        ["serial_key", "serial_position"],
        unique=True,
        sqlite_where=sa.text("serial_key IS NOT NULL"),
        postgresql_where=sa.text("serial_key IS NOT NULL"),
    )
    op.create_table(
        "serial_keys",
        sa.Column("serial_key", Text(), nullable=False),
        sa.Column("last", Number, server_default="0", nullable=False),
        sa.Column("turn", Number, server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("serial_key", name=op.f("pk_serial_keys")),
    )
    op.create_index(
        op.f("ix_serial_keys_unfinished"),
        "serial_keys",
        ["serial_key"],
        sqlite_where=sa.text("turn <= last"),
        postgresql_where=sa.text("turn <= last"),
    )
