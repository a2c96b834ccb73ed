"""What people decided, written into the stories: who let a mail go on, threw it away, or put a dead letter back.

`by` is who it was: a user's name, or `command` for the terminal.  A decision is a line of the timeline in the transaction of
what it changes; one that only starts work (a release, a replay) is noted before its tickets are published, because the
person has decided even when the queue then fails.
Promise: what is final already is left alone, so that every verb may be said twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from gateway.mail.disposition import Disposition
from gateway.runtime import Clock
from gateway.store.database import Database
from gateway.store.journal import Fact, Journal
from gateway.store.schema import deliveries

_DISCARDABLE = (Disposition.HELD, Disposition.DEAD)


class Decisions:
    """The verbs of operators that concern mails, and the note that any decision leaves."""

    def __init__(self, database: Database, *, clock: Clock, hostname: str) -> None:
        self._journal = Journal(database, clock=clock, hostname=hostname)

    async def record_decided(self, subject: str, step: str, *, by: str, data: Mapping[str, Any] | None = None) -> None:
        """Notes a decision in the story of a mail, an email or a post."""

        def work(connection: sa.Connection, now: datetime) -> None:
            fact = Fact(subject=subject, step=step, data={"by": by} | dict(data or {}))
            self._journal.note(connection, now, fact)

        await self._journal.record("decided", work)

    async def discard(self, mail_id: str, *, by: str, recipients: Collection[str] | None = None) -> int:
        """Ends the held and dead recipients of a mail (all, or those named) as discarded; returns how many."""

        def work(connection: sa.Connection, now: datetime) -> int:
            query = sa.select(deliveries).where(
                deliveries.c.mail_id == mail_id, deliveries.c.disposition.in_(_DISCARDABLE)
            )
            found = connection.execute(query.order_by(deliveries.c.position, deliveries.c.id)).mappings().all()
            chosen = [row for row in found if recipients is None or row["rcpt_to"] in recipients]
            return sum(self._discard(connection, now, row, by) for row in chosen)

        return await self._journal.record("discarded", work)

    def _discard(self, connection: sa.Connection, now: datetime, row: sa.RowMapping, by: str) -> int:
        reason = f"discarded by {by}"
        still = sa.and_(deliveries.c.id == row["id"], deliveries.c.disposition == row["disposition"])
        values = {"disposition": Disposition.DISCARDED, "reason": reason, "next_attempt_at": None, "updated_at": now}
        changed = connection.execute(sa.update(deliveries).where(still).values(values)).rowcount
        if changed:
            was = {"from": row["disposition"], "because": row["reason"]}
            data = {"mailbox": row["mailbox"], "reason": reason, "by": by, "delivery_id": row["id"], **was}
            fact = Fact(
                subject=row["mail_id"],
                step="discarded",
                recipient=row["rcpt_to"],
                event="mail.discarded",
                data=data,
            )
            self._journal.note(connection, now, fact)
        return changed
