"""Whose turn it is: work that one process at a time does for all that share the database (the events relay).

A turn is held until a moment of the database's clock and renewed before it; who dies loses it when that has passed, who
stops cleanly gives it back.  Limits: a process that was stopped may for a moment believe in a turn it has lost, so what is
done in turns must bear being done twice.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa

from gateway.store.database import insert_absent
from gateway.store.schema import turns


def take_turn(connection: sa.Connection, name: str, holder: str, *, now: datetime, seconds: float) -> bool:
    """Takes a turn that is free or renews one's own; False while it is another's."""
    values = {"holder": holder, "until": now + timedelta(seconds=seconds)}
    if insert_absent(connection, turns, values | {"name": name}):
        return True
    is_mine_or_free = sa.or_(turns.c.holder == holder, turns.c.until <= now)
    return (
        connection.execute(sa.update(turns).where(turns.c.name == name, is_mine_or_free).values(values)).rowcount == 1
    )


def give_back(connection: sa.Connection, name: str, holder: str) -> None:
    """Frees one's own turn."""
    connection.execute(sa.delete(turns).where(turns.c.name == name, turns.c.holder == holder))
