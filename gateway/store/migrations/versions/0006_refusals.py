"""What became of requests that failed, for apps to read."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Publishes the refusals."""
    op.execute("CREATE VIEW published_refusals AS SELECT request_id AS id, app, reason, rejected_at FROM rejections")
