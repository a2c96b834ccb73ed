"""The timeline: every step in the life of a mail, an email or a post, in the order it was recorded.

Lines are written inside the transactions of the verbs, never by themselves; `gateway show` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from gateway.store.schema import emails, mails, posts, rejections, timeline

MAX_FOUND = 10
_LETTERS = frozenset("0123456789abcdef-")
_INSERT = sa.insert(timeline)


def append(
    connection: sa.Connection, subject: str, step: str, *, at: datetime, recipient: str = "", data: Mapping[str, Any]
) -> int:
    """Writes one line and returns its number."""
    values = {"subject": subject, "step": step, "at": at, "recipient": recipient, "data": dict(data)}
    key = connection.execute(_INSERT, values).inserted_primary_key
    return int(key[0]) if key else 0


def story(connection: sa.Connection, subject: str) -> list[dict[str, Any]]:
    """The lines of one subject, oldest first, ready for JSON."""
    query = sa.select(timeline).where(timeline.c.subject == subject).order_by(timeline.c.id)
    return [
        {"at": row.at.isoformat(), "step": row.step, "recipient": row.recipient, "data": row.data}
        for row in connection.execute(query)
    ]


def find(connection: sa.Connection, prefix: str) -> list[tuple[str, str]]:
    """The (kind, id) of mails, emails and posts whose id begins with `prefix`, at most `MAX_FOUND`.

    A request that never became an email is found as an email.
    """
    prefix = prefix.strip().lower()
    if not prefix or not set(prefix) <= _LETTERS:
        return []
    found: dict[str, str] = {}
    for kind, column in (
        ("mail", mails.c.id),
        ("email", emails.c.id),
        ("post", posts.c.id),
        ("email", rejections.c.request_id),
    ):
        query = sa.select(column).distinct().where(begins_with(column, prefix)).order_by(column).limit(MAX_FOUND)
        for identity in connection.execute(query).scalars():
            found.setdefault(identity, kind)
    return [(kind, identity) for identity, kind in sorted(found.items())][:MAX_FOUND]


def begins_with(column: sa.ColumnElement[str], prefix: str) -> sa.ColumnElement[bool]:
    """Whether an id begins so: a range that its index can serve."""
    if not set(prefix.lower()) <= _LETTERS:
        return sa.literal(0) == 1  # not sa.false(), which would take every other condition with it
    # "g" comes right behind every letter of an id.
    return sa.and_(column >= prefix.lower(), column < prefix.lower() + "g")
