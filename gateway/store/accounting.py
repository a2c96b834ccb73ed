"""What the store can say of ids somebody else counted: how many recipients it has of each, and how many it should have.

Reads only.  A mail knows its recipients by its envelope, which its receipt has counted; an email by the line of its
acceptance in the timeline; a post has none.  A request that was refused is accounted for by its rejection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from gateway.mail.disposition import CANNOT_RENDER, GAVE_UP, SAME_FAULT, Disposition
from gateway.store.database import Database
from gateway.store.schema import deliveries, email_recipients, emails, mails, posts, rejections, timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One subject in the store: rows it has, rows it should have (0: not known), rows that only a ticket carries on."""

    rows: int
    expected: int = 0
    unworked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldFaults:
    """What waits for a person because of a fault: recipients of email that cannot be rendered, mails no mailbox can take."""

    templates: int
    mailboxes: int


class Accounting:
    """The counting side of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def standings(self, kind: str, ids: Sequence[str]) -> dict[str, Standing]:
        """What is known of these mails, emails or posts; ids the store has never seen are left out."""
        look = {"mail": _of_mails, "email": _of_emails, "post": _of_posts}[kind]
        return await self._database.read(lambda connection: look(connection, ids))

    async def count(self) -> int:
        """How many mails, emails, posts of apps and rejected requests there are."""
        return await self._database.read(_count)

    async def held_faults(self) -> HeldFaults:
        """How much is held because a template or a mailbox is broken."""
        return await self._database.read(_held_faults)


def _of_mails(connection: sa.Connection, ids: Sequence[str]) -> dict[str, Standing]:
    count = sa.func.count(deliveries.c.id)
    pending = count.filter(deliveries.c.disposition == Disposition.PENDING)
    query = sa.select(mails.c.id, count, pending).outerjoin(deliveries, deliveries.c.mail_id == mails.c.id)
    rows = connection.execute(query.where(mails.c.id.in_(ids)).group_by(mails.c.id))
    return {mail_id: Standing(rows=count, unworked=waiting) for mail_id, count, waiting in rows}


def _of_emails(connection: sa.Connection, ids: Sequence[str]) -> dict[str, Standing]:
    query = sa.select(emails.c.id, sa.func.count(email_recipients.c.recipient)).outerjoin(
        email_recipients, email_recipients.c.email_id == emails.c.id
    )
    counts = connection.execute(query.where(emails.c.id.in_(ids)).group_by(emails.c.id)).all()
    lines = sa.select(timeline.c.subject, timeline.c.data).where(timeline.c.subject.in_(ids))
    told = connection.execute(lines.where(timeline.c.step == "accepted"))
    named = {email_id: len(data.get("recipients", ())) for email_id, data in told}
    found = {id: Standing(rows=count, expected=named.get(id, 1)) for id, count in counts}
    return _of_rejections(connection, ids) | found


def _of_posts(connection: sa.Connection, ids: Sequence[str]) -> dict[str, Standing]:
    rows = connection.execute(sa.select(posts.c.id).where(posts.c.id.in_(ids))).scalars()
    return _of_rejections(connection, ids) | {post_id: Standing(rows=1) for post_id in rows}


def _of_rejections(connection: sa.Connection, ids: Sequence[str]) -> dict[str, Standing]:
    query = sa.select(rejections.c.request_id).where(rejections.c.request_id.in_(ids)).distinct()
    return {request_id: Standing(rows=1) for request_id in connection.execute(query).scalars()}


def _count(connection: sa.Connection) -> int:
    own = sa.select(sa.func.count()).select_from(posts).where(posts.c.mail_id.is_(None))
    refused = sa.select(rejections.c.request_id).distinct().subquery()
    known = sa.select(sa.func.count()).select_from(refused)
    # An id that was rejected once and taken by another request is one subject.
    taken = sa.union(sa.select(emails.c.id), sa.select(posts.c.id))
    known = known.where(refused.c.request_id.not_in(taken))
    queries = [sa.select(sa.func.count()).select_from(table) for table in (mails, emails)]
    return sum(int(connection.execute(query).scalar_one()) for query in [*queries, own, known])


def _held_faults(connection: sa.Connection) -> HeldFaults:
    email, mail = email_recipients.c, deliveries.c
    broken = sa.and_(email.disposition == Disposition.HELD, email.reason.startswith(CANNOT_RENDER))
    failing = sa.or_(*(mail.reason.startswith(fault) for fault in (SAME_FAULT, GAVE_UP)))
    stuck = sa.and_(mail.disposition == Disposition.HELD, failing)
    counts = [
        connection.execute(sa.select(sa.func.count()).select_from(table).where(which)).scalar_one()
        for table, which in ((email_recipients, broken), (deliveries, stuck))
    ]
    return HeldFaults(templates=counts[0], mailboxes=counts[1])
