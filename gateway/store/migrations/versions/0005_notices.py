"""What people are told by mail: the notices, and what a mail or an email must remember for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from gateway.store.schema import Json, Text, UtcDateTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Mails ingested before this version have nobody proven behind them: their senders stay untold."""
    op.add_column("mails", sa.Column("untold", Text(), server_default="", nullable=False))
    op.add_column("mails", sa.Column("language", Text(), server_default="", nullable=False))
    op.add_column("mails", sa.Column("message_id", Text(), server_default="", nullable=False))
    op.execute("UPDATE mails SET untold = 'it came before notices were sent'")
    op.add_column("emails", sa.Column("notify", Json(), nullable=True))
    op.create_table(
        "notices",
        sa.Column("id", Text(), nullable=False),
        sa.Column("subject", Text(), nullable=False),
        sa.Column("kind", Text(), nullable=False),
        sa.Column("recipient", Text(), server_default="", nullable=False),
        sa.Column("addressee", Text(), nullable=False),
        sa.Column("stage", Text(), nullable=False),
        sa.Column("reason", Text(), server_default="", nullable=False),
        sa.Column("facts", Json(), nullable=False),
        sa.Column("state", Text(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.Column("told_by", Text(), server_default="", nullable=False),
        sa.Column("told_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notices")),
    )
    named = ["addressee", "state", "stage", "told_at"]
    op.create_index(op.f("ix_notices_addressee_state_stage_told_at"), "notices", named)
    op.create_index(op.f("ix_notices_state_due_at"), "notices", ["state", "due_at"])
    op.create_index(op.f("ix_notices_told_by"), "notices", ["told_by"])
