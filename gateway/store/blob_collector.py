"""The collector: deletes blobs that no row names and nobody put for thirty days.

Rows that name blobs: octets of mails and emails, attachments and renditions of posts, what an email attaches, and what dead
letters carry (`note_dead_tickets`; a mail that is held or buried has its own row).  A row is written soon after its blob was put,
so a blob that old without a row is forgotten; a put beside the discard wins (`BlobStore.discard`).
Limits: a dead letter that was seen within the last thirty days counts as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from gateway.mail.ids import new_id
from gateway.runtime import Clock
from gateway.store.blobs import BlobStore
from gateway.store.database import Database, insert_absent
from gateway.store.schema import (
    attachments,
    dead_ticket_blobs,
    email_attachments,
    email_octets,
    mail_octets,
    renditions,
)
from gateway.store.turns import take_turn

UNUSED_DAYS = 30
TURN_SECONDS = 7200.0
_CHUNK = 200
_NAMES = (mail_octets.c.blob, email_octets.c.blob, email_attachments.c.blob, dead_ticket_blobs.c.blob)
_BARE_NAMES = (attachments.c.sha256, renditions.c.sha256)
NAMING_COLUMNS = (*_NAMES, *_BARE_NAMES)
_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What one round found and did."""

    old: int = 0
    deleted: int = 0


class Collector:
    """One round at a time over a blob store."""

    def __init__(self, database: Database, blobs: BlobStore, *, clock: Clock) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._name = new_id()

    async def take_turn(self) -> bool:
        """Whether this collector is the one that works for the next while."""
        now = self._clock()
        return await self._database.write(
            lambda connection: take_turn(connection, "collector", self._name, now=now, seconds=TURN_SECONDS),
            rings=False,
        )

    async def note_dead_tickets(self, carried: Iterable[tuple[str, str]]) -> None:
        """Keeps what dead letters carry: (ticket's id, digest) for each."""
        found = set(carried)
        now = self._clock()

        def work(connection: sa.Connection) -> None:
            for ticket, blob in sorted(found):
                if not insert_absent(
                    connection, dead_ticket_blobs, {"ticket_id": ticket, "blob": blob, "seen_at": now}
                ):
                    same = (dead_ticket_blobs.c.ticket_id == ticket, dead_ticket_blobs.c.blob == blob)
                    connection.execute(sa.update(dead_ticket_blobs).where(*same).values(seen_at=now))
            long_gone = dead_ticket_blobs.c.seen_at < now - timedelta(days=UNUSED_DAYS)
            connection.execute(sa.delete(dead_ticket_blobs).where(long_gone))

        await self._database.write(work, rings=False)

    async def collect(self, *, limit: int) -> Collected:
        """Discards at most `limit` blobs; raises StoreUnavailable."""
        before = self._clock() - timedelta(days=UNUSED_DAYS)
        old = tried = deleted = 0
        async for batch in self._blobs.old(before=before):
            for start in range(0, len(batch), _CHUNK):
                digests = batch[start : start + _CHUNK]
                old += len(digests)
                for digest in await self._nameless(digests):
                    if tried == limit:
                        return Collected(old=old, deleted=deleted)
                    tried += 1
                    deleted += await self._blobs.discard(digest, before=before)
        return Collected(old=old, deleted=deleted)

    async def _nameless(self, digests: Sequence[str]) -> list[str]:
        return sorted(set(digests) - await self._database.read(lambda connection: named_of(connection, digests)))


def digests_in(octets: bytes) -> list[str]:
    """The blobs that a dead letter's header or body names."""
    return [name.decode() for name in _DIGEST.findall(octets)]


def names_any(connection: sa.Connection) -> bool:
    """Whether some row names a blob."""
    queries = (sa.select(column).where(column.is_not(None)).limit(1) for column in NAMING_COLUMNS)
    return any(connection.execute(query).first() is not None for query in queries)


def named_of(connection: sa.Connection, digests: Sequence[str]) -> set[str]:
    """Those of the digests that some row names."""
    bare = [digest.removeprefix("sha256:") for digest in digests]
    named: set[str] = set()
    for column in _NAMES:
        named |= set(connection.execute(sa.select(column).where(column.in_(digests)).distinct()).scalars())
    for column in _BARE_NAMES:
        found = connection.execute(sa.select(column).where(column.in_(bare)).distinct()).scalars()
        named |= {f"sha256:{value}" for value in found}
    return named
