"""Photos of posts: which wait for their renditions, and what became of each.  One verb per fact.

A photo's state stands in its attachment's row: '' (nothing is to be rendered), `waiting`, `rendered`, or `refused` with the
reason beside it.  Promises: a state once final is never changed and its renditions are inserted if absent, so that every
verb may be called again after a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from gateway.runtime import Clock
from gateway.store.database import Database, insert_absent
from gateway.store.journal import Fact, Journal
from gateway.store.schema import attachments, posts, renditions


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingPhoto:
    """A photo to be rendered; `sha256` names the original's blob."""

    attachment_id: str
    post_id: str
    position: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRendition:
    """A smaller picture made of a photo: `thumb` or `web`; `sha256` names its blob."""

    kind: str
    sha256: str
    content_type: str
    size: int
    width: int
    height: int


class Photos:
    """The verbs of rendering."""

    def __init__(self, database: Database, *, clock: Clock, hostname: str) -> None:
        self._database = database
        self._journal = Journal(database, clock=clock, hostname=hostname)

    async def waiting(self, attachment_id: str) -> WaitingPhoto | None:
        """The photo, None where it is unknown or has its end already."""
        query = _WAITING.where(attachments.c.id == attachment_id)
        row = await self._database.read(lambda connection: connection.execute(query).mappings().first())
        return None if row is None else WaitingPhoto(**row)

    async def record_rendered(self, photo: WaitingPhoto, made: Sequence[NewRendition]) -> bool:
        """Keeps the renditions; False where the photo had its end already."""

        def work(connection: sa.Connection, now: datetime) -> bool:
            if not _end(connection, photo, state="rendered"):
                return False
            for item in made:
                values = {name: getattr(item, name) for name in NewRendition.__dataclass_fields__}
                insert_absent(connection, renditions, values | {"attachment_id": photo.attachment_id})
            data = {"attachment_id": photo.attachment_id, "position": photo.position}
            self._journal.note(connection, now, Fact(subject=photo.post_id, step="photo_rendered", data=data))
            return True

        return await self._journal.record("photo_rendered", work)

    async def record_refused(self, photo: WaitingPhoto, reason: str) -> bool:
        """Marks a photo that cannot be rendered, and tells it; False where the photo had its end already."""

        def work(connection: sa.Connection, now: datetime) -> bool:
            if not _end(connection, photo, state="refused", reason=reason):
                return False
            data = {"attachment_id": photo.attachment_id, "position": photo.position, "reason": reason}
            fact = Fact(subject=photo.post_id, step="photo_refused", event="post.failed", data=data)
            self._journal.note(connection, now, fact)
            return True

        return await self._journal.record("photo_refused", work)


def waiting_of_mail(connection: sa.Connection, mail_id: str) -> list[str]:
    """The attachment ids of the photos of a mail's posts that wait, in order."""
    query = _WAITING.join(posts, posts.c.id == attachments.c.post_id).where(posts.c.mail_id == mail_id)
    found = connection.execute(query.order_by(attachments.c.post_id, attachments.c.position)).mappings()
    return [row["attachment_id"] for row in found]


_WAITING = sa.select(
    attachments.c.id.label("attachment_id"), attachments.c.post_id, attachments.c.position, attachments.c.sha256
).where(attachments.c.photo == "waiting")


def _end(connection: sa.Connection, photo: WaitingPhoto, *, state: str, reason: str = "") -> bool:
    still = sa.and_(attachments.c.id == photo.attachment_id, attachments.c.photo == "waiting")
    return connection.execute(sa.update(attachments).where(still).values(photo=state, refusal=reason)).rowcount == 1
