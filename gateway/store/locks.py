"""What keeps verbs apart on a database with several writers; on SQLite, where they take turns, it does nothing.

A verb that reads a row to change it reads it `for_change`: it waits for whoever has it, then sees what that one made of it.
Rows fetched as work for anybody (`for_work`) leave out what another fetches just now.  A rule that spans rows which may not
exist yet (one copy of a mail, one thread of a subject) is kept by holding its name until the commit.
Order, so that nobody waits in a circle: the recipient's row, names, the subject's row (its sequence).
"""

from __future__ import annotations

from typing import Any, TypeVar

import sqlalchemy as sa

from gateway.store.schema import clean_text

S = TypeVar("S", bound=sa.Select[Any])


def for_change(query: S, table: sa.Table) -> S:
    """The query, its rows of `table` locked until the commit."""
    return query.with_for_update(of=table, key_share=True)


def for_work(query: S, table: sa.Table) -> S:
    """The query without the rows of `table` that somebody else has locked; its own are locked until the commit."""
    return query.with_for_update(of=table, key_share=True, skip_locked=True)


def hold_name(connection: sa.Connection, *parts: str) -> None:
    """Waits until no other transaction holds the name, and holds it until the commit."""
    if connection.dialect.name == "postgresql":
        name = clean_text("\x1f".join(parts))
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(name, 0))))
