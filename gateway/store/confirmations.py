"""Confirmations: requests to registered people, whether held mails that claim to be from them are theirs.

One open request a person.  It is about the mails that its question lists, so that a yes never lets through what came later and
was not seen; a page lists the later ones as well, and the next request asks about them.  States: open → answered | expired.
Promises: each verb is one transaction and may be said again; a request is opened for a held mail even when the process died
between holding and asking; at most `PER_DAY` requests a person a day, however many forgeries come (the mails stay held and
wait for the next one); what nobody answers stays held, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.mail.disposition import Disposition
from gateway.mail.ids import new_id
from gateway.mail.secret_address import redacted
from gateway.runtime import Clock
from gateway.store.database import Database
from gateway.store.journal import Fact, Journal
from gateway.store.schema import as_json, confirmations, deliveries, mails, people

OPEN, ANSWERED, EXPIRED = "open", "answered", "expired"
PER_DAY = 3
AT_ONCE = 20
LATER_LISTED = 50
_HELD = deliveries.c.disposition == Disposition.HELD


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; `mails` are the held mails it asks about, `later` those that came since: the first of them, `more` in all.

    Each has id, rcpt_to, mailbox, received_at, subject, mail_from, client, size and reason.
    """

    id: str
    state: str
    address: str
    name: str
    expires_at: datetime
    mails: tuple[dict[str, Any], ...]
    later: tuple[dict[str, Any], ...]
    more: int


class Confirmations:
    """The verbs."""

    def __init__(self, database: Database, *, clock: Clock, hostname: str, days: float) -> None:
        self._database = database
        self._days = days
        self._clock = clock
        self._journal = Journal(database, clock=clock, hostname=hostname)

    async def open_requests(self) -> list[str]:
        """Puts every held mail that is not asked about into a request; returns those whose question is not sent yet."""
        waiting = await self._database.read(_unasked_people)
        if waiting:
            await self._journal.record(
                "confirmations_opened", lambda connection, now: self._open(connection, now, waiting)
            )
        unsent = sa.select(confirmations.c.id).where(confirmations.c.state == OPEN, confirmations.c.asked_at.is_(None))
        return list(await self._database.read(lambda connection: connection.execute(unsent).scalars().all()))

    async def record_asked(self, request_id: str) -> None:
        statement = sa.update(confirmations).where(confirmations.c.id == request_id)

        def work(connection: sa.Connection, now: datetime) -> None:
            connection.execute(statement.values(asked_at=now))

        await self._journal.record("confirmation_asked", work)

    async def request(self, request_id: str) -> Request | None:
        """A request with the mails that still wait for its answer."""
        return await self._database.read(lambda connection: _request(connection, request_id))

    async def close_answered(self, request_id: str) -> bool:
        """Ends a request; False where it was not open."""

        def work(connection: sa.Connection, now: datetime) -> bool:
            return _close(connection, now, [request_id], ANSWERED) > 0

        return await self._journal.record("confirmation_answered", work)

    async def expire(self) -> int:
        """Ends what was not answered in time; its mails stay held and say so."""

        def work(connection: sa.Connection, now: datetime) -> int:
            due = sa.select(confirmations.c.id).where(confirmations.c.state == OPEN, confirmations.c.expires_at <= now)
            found = list(connection.execute(due).scalars())
            for request_id in found:
                self._note_expired(connection, now, request_id)
            return _close(connection, now, found, EXPIRED)

        late = sa.select(confirmations.c.id).where(
            confirmations.c.state == OPEN, confirmations.c.expires_at <= self._clock()
        )
        if not await self._database.read(lambda connection: connection.execute(late.limit(1)).scalar()):
            return 0
        return await self._journal.record("confirmations_expired", work)

    def _open(self, connection: sa.Connection, now: datetime, waiting: Sequence[str]) -> None:
        for person_id in waiting:
            if _opened_lately(connection, person_id, now) >= PER_DAY or _has_open(connection, person_id):
                continue
            row = {"id": new_id(), "person_id": person_id, "state": OPEN, "opened_at": now}
            row |= {"expires_at": now + timedelta(days=self._days)}
            connection.execute(sa.insert(confirmations), row)
            listed = sa.select(deliveries.c.id).where(_HELD, *_unasked(person_id)).order_by(deliveries.c.id)
            these = sa.update(deliveries).where(deliveries.c.id.in_(listed.limit(AT_ONCE).scalar_subquery()))
            connection.execute(these.values(confirmation_id=row["id"]))

    def _note_expired(self, connection: sa.Connection, now: datetime, request_id: str) -> None:
        for row in _waiting(connection, deliveries.c.confirmation_id == request_id):
            reason = f"nobody confirmed it in time; {row['reason']}"[:500]
            this = sa.and_(deliveries.c.mail_id == row["id"], deliveries.c.rcpt_to == row["rcpt_to"], _HELD)
            connection.execute(sa.update(deliveries).where(this).values(reason=reason, updated_at=now))
            recipient = redacted(row["rcpt_to"])
            self._journal.note(
                connection,
                now,
                Fact(subject=row["id"], step="unconfirmed", recipient=recipient, data={"reason": reason}),
            )


def _unasked(person_id: str | None = None) -> tuple[sa.ColumnElement[bool], ...]:
    whose = deliveries.c.person_id != "" if person_id is None else deliveries.c.person_id == person_id
    return whose, deliveries.c.confirmation_id == ""


def _unasked_people(connection: sa.Connection) -> list[str]:
    query = sa.select(deliveries.c.person_id).distinct().where(_HELD, *_unasked())
    known = query.join_from(deliveries, people, people.c.id == deliveries.c.person_id)
    return list(connection.execute(known).scalars())


def _has_open(connection: sa.Connection, person_id: str) -> bool:
    query = sa.select(confirmations.c.id).where(confirmations.c.person_id == person_id, confirmations.c.state == OPEN)
    return connection.execute(query.limit(1)).first() is not None


def _opened_lately(connection: sa.Connection, person_id: str, now: datetime) -> int:
    query = sa.select(sa.func.count()).select_from(confirmations)
    query = query.where(confirmations.c.person_id == person_id, confirmations.c.opened_at > now - timedelta(days=1))
    return int(connection.execute(query).scalar_one())


def _request(connection: sa.Connection, request_id: str) -> Request | None:
    columns = (confirmations.c.id, confirmations.c.state, confirmations.c.expires_at, people.c.address, people.c.name)
    query = sa.select(*columns, confirmations.c.person_id)
    query = query.join_from(confirmations, people, people.c.id == confirmations.c.person_id)
    row = connection.execute(query.where(confirmations.c.id == request_id)).mappings().first()
    if row is None:
        return None
    facts = {key: value for key, value in row.items() if key != "person_id"}
    listed = _waiting(connection, deliveries.c.confirmation_id == request_id)
    unasked = sa.and_(_HELD, *_unasked(row["person_id"]))
    later = _waiting(connection, unasked, at_most=LATER_LISTED)
    more = connection.execute(sa.select(sa.func.count()).select_from(deliveries).where(unasked)).scalar_one()
    return Request(**facts, mails=tuple(map(as_json, listed)), later=tuple(map(as_json, later)), more=more)


def _waiting(
    connection: sa.Connection, which: sa.ColumnElement[bool], *, at_most: int | None = None
) -> Sequence[sa.RowMapping]:
    columns = (mails.c.id, mails.c.received_at, mails.c.mail_from, mails.c.subject, mails.c.client, mails.c.size)
    query = sa.select(*columns, deliveries.c.rcpt_to, deliveries.c.mailbox, deliveries.c.reason)
    query = query.join_from(mails, deliveries, deliveries.c.mail_id == mails.c.id)
    query = query.where(_HELD, which).order_by(mails.c.received_at, mails.c.id).limit(at_most)
    return connection.execute(query).mappings().all()


def _close(connection: sa.Connection, now: datetime, ids: Sequence[str], state: str) -> int:
    if not ids:
        return 0
    this = sa.and_(confirmations.c.id.in_(ids), confirmations.c.state == OPEN)
    return int(connection.execute(sa.update(confirmations).where(this).values(state=state, closed_at=now)).rowcount)
