"""Reads the outbox as it grows, for whoever wants to hear of events beside the broker (`web.api.events`).

Promise: each event is read once, in the order of the numbers; one that is committed after events with higher numbers (where
several processes write at once) is still found within the last `_OVERLAP` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from gateway.store.database import Database
from gateway.store.schema import outbox

_AT_A_TIME = 100
_OVERLAP = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxEvent:
    """One row, published or not."""

    number: int
    type: str
    subject: str
    body: bytes


class OutboxReader:
    """Reads each event once, also one that is committed after events with higher numbers (where several write at once)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last = 0
        self._seen: set[int] = set()

    async def begin(self, after: int | None) -> None:
        def work(connection: sa.Connection) -> tuple[int, list[int]]:
            last = _last_number(connection)
            if after is not None:  # a number from before the store began anew would be waited for in vain
                last = min(after, last)
            return last, _numbers_behind(connection, last - _OVERLAP, limit=_OVERLAP)

        self._last, known = await self._database.read(work)
        self._seen = {number for number in known if number <= self._last}

    async def read(self) -> list[OutboxEvent]:
        """The next events, at most some; nothing where there are none."""

        def work(connection: sa.Connection) -> list[OutboxEvent]:
            window = _numbers_behind(connection, self._last - _OVERLAP, limit=_OVERLAP + _AT_A_TIME)
            return _events(connection, [number for number in window if number not in self._seen][:_AT_A_TIME])

        found = await self._database.read(work)
        self._seen |= {event.number for event in found}
        self._last = max([self._last, *(event.number for event in found)])
        self._seen = {number for number in self._seen if number > self._last - _OVERLAP}
        return found


def _last_number(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.max(outbox.c.id))).scalar() or 0


def _numbers_behind(connection: sa.Connection, number: int, *, limit: int) -> list[int]:
    query = sa.select(outbox.c.id).where(outbox.c.id > number).order_by(outbox.c.id).limit(limit)
    return list(connection.execute(query).scalars())


def _events(connection: sa.Connection, numbers: Sequence[int]) -> list[OutboxEvent]:
    columns = (outbox.c.id.label("number"), outbox.c.type, outbox.c.subject, outbox.c.body)
    query = sa.select(*columns).where(outbox.c.id.in_(numbers)).order_by(outbox.c.id)
    return [OutboxEvent(**row) for row in connection.execute(query).mappings()] if numbers else []
