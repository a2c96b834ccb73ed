"""How a fact is written: rows, timeline line and outbox event in one transaction, between two places to die at.

Every verb of `store.emails` and `store.mails` goes through `Journal.record`, so that none can do half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from gateway.contract.events import CloudEvent, EventType, event_source, sequence_text
from gateway.mail.ids import new_id
from gateway.runtime import Clock, failpoint
from gateway.store import outbox, timeline
from gateway.store.database import Database
from gateway.store.schema import clean_json, emails, mails, posts

T = TypeVar("T")
_RAISE_SEQUENCE = {
    kind: sa.update(table)
    .where(table.c.id == sa.bindparam("the_id"))
    .values(sequence=table.c.sequence + 1)
    .returning(table.c.sequence)
    for kind, table in {"mail": mails, "email": emails, "post": posts}.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that became true of a subject; `event` names the event that tells it, if others hear of it.

    `kind` says what the subject is where the event's name does not: mail, email or post.
    """

    subject: str
    step: str
    recipient: str = ""
    event: EventType | None = None
    kind: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """Writes facts."""

    def __init__(self, database: Database, *, clock: Clock, hostname: str) -> None:
        self._database = database
        self._clock = clock
        self._source = event_source(hostname)

    async def record(self, name: str, work: Callable[[sa.Connection, datetime], T], *, size: int = 0) -> T:
        """Runs `work(connection, now)` in one transaction; dies on demand before the commit and after it."""

        def recorded(connection: sa.Connection) -> T:
            result = work(connection, self._clock())
            failpoint(f"store.{name}.before")
            return result

        result = await self._database.write(recorded, size=size)
        failpoint(f"store.{name}.after")
        return result

    def note(self, connection: sa.Connection, now: datetime, fact: Fact) -> int:
        """Writes the timeline line of a fact, and its event with the subject's next sequence number; returns the line's."""
        number = timeline.append(connection, fact.subject, fact.step, at=now, recipient=fact.recipient, data=fact.data)
        if fact.event is not None:
            self.announce(connection, now, fact, sequence=_next_sequence(connection, fact))
        return number

    def announce(self, connection: sa.Connection, now: datetime, fact: Fact, *, sequence: int) -> None:
        """Puts the event of a fact into the outbox."""
        assert fact.event is not None
        event = CloudEvent(
            id=new_id(),
            source=self._source,
            type=fact.event,
            subject=fact.subject,
            time=now,
            sequence=sequence_text(sequence),
            data=clean_json(({"recipient": fact.recipient} if fact.recipient else {}) | dict(fact.data)),
        )
        outbox.add(connection, event)


def _next_sequence(connection: sa.Connection, fact: Fact) -> int:
    assert fact.event is not None
    statement = _RAISE_SEQUENCE[fact.kind or fact.event.partition(".")[0]]
    return int(connection.execute(statement, {"the_id": fact.subject}).scalar_one())
