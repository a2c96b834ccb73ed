"""Who may ask, and indexes that lists are read along."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

_LISTED = (("emails", ("accepted_at",)), ("mails", ("received_at",)), ("posts", ("mailbox", "created_at")))


def upgrade() -> None:
    """Lets the lists' indexes end with the id, which makes their order total."""
    for table, columns in _LISTED:
        op.drop_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table)
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}_id"), table, [*columns, "id"])
    op.create_index(op.f("ix_posts_created_at_id"), "posts", ["created_at", "id"])
