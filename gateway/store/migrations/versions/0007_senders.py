"""Who a sender really is: registered people, what was found out about each mail, and requests to confirm held ones."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from gateway.store.schema import Json, Text, UtcDateTime

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Adds two tables and three columns."""
    op.create_table(
        "people",
        sa.Column("id", Text(), nullable=False),
        sa.Column("address", Text(), nullable=False),
        sa.Column("address_key", Text(), nullable=False),
        sa.Column("name", Text(), server_default="", nullable=False),
        sa.Column("handle", Text(), nullable=False),
        sa.Column("added_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_people")),
        sa.UniqueConstraint("address_key", name=op.f("uq_people_address_key")),
        sa.UniqueConstraint("handle", name=op.f("uq_people_handle")),
    )
    op.create_table(
        "confirmations",
        sa.Column("id", Text(), nullable=False),
        sa.Column("person_id", Text(), nullable=False),
        sa.Column("state", Text(), nullable=False),
        sa.Column("opened_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("asked_at", UtcDateTime(), nullable=True),
        sa.Column("closed_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_confirmations")),
    )
    op.create_index(op.f("ix_confirmations_person_id_state"), "confirmations", ["person_id", "state"])
    op.create_index(op.f("ix_confirmations_state_expires_at"), "confirmations", ["state", "expires_at"])
    op.add_column("mails", sa.Column("authentication", Json(), server_default="{}", nullable=False))
    op.add_column("deliveries", sa.Column("person_id", Text(), server_default="", nullable=False))
    op.add_column("deliveries", sa.Column("confirmation_id", Text(), server_default="", nullable=False))
    op.create_index(op.f("ix_deliveries_confirmation_id"), "deliveries", ["confirmation_id"])
