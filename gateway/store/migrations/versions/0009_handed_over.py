"""Whether a mail was handed over by a mail server of ours; of older mails nobody noted it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("mails", sa.Column("by_trusted_host", sa.Boolean(), server_default=sa.false(), nullable=False))
