"""Blobs in the store's own database (`database:`): one thing to back up, for houses with few large mails.

Promises are those of every blob store; a put renews the row's age in the statement that finds it, so that a discard which
came first is followed by an insert.
Limits: a blob is one row, written and read whole; while the database is away a door cannot keep a mail above its threshold.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from gateway.errors import StoreUnavailable
from gateway.runtime import Clock
from gateway.store.blobs import bare_digest, digest_of, gathered, proved
from gateway.store.database import Database, insert_absent
from gateway.store.schema import blobs

_BATCH = 500


class DatabaseBlobStore:
    """Blobs as rows."""

    def __init__(self, database: Database, *, clock: Clock | None = None) -> None:
        self._database = database
        self._clock = clock or database.clock

    async def put(self, octets: bytes) -> str:
        digest = digest_of(octets)

        def work(connection: sa.Connection) -> None:
            values = {"size": len(octets), "put_at": self._clock()}
            same = sa.update(blobs).where(blobs.c.digest == digest, blobs.c.octets == octets)
            if connection.execute(same.values(values)).rowcount:
                return
            values |= {"octets": octets}
            if not insert_absent(connection, blobs, values | {"digest": digest}):
                connection.execute(sa.update(blobs).where(blobs.c.digest == digest).values(values))

        await self._database.write(work, rings=False, size=len(octets))
        return digest

    async def put_stream(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        octets = await gathered(chunks)
        return await self.put(octets), len(octets)

    async def get(self, digest: str) -> bytes:
        octets = await self._one(sa.select(blobs.c.octets), digest)
        if octets is None:
            raise StoreUnavailable(f"blobs: {digest} is not in the database")
        return proved(bytes(octets), digest)

    async def exists(self, digest: str) -> bool:
        return await self.size(digest) is not None

    async def is_there(self) -> bool:
        """Whether the database answers."""
        await self._database.read(lambda connection: connection.execute(sa.select(blobs.c.size).limit(1)).first())
        return True

    async def begin(self) -> None:
        """Its table came with the schema."""

    async def size(self, digest: str) -> int | None:
        size: int | None = await self._one(sa.select(sa.func.length(blobs.c.octets)), digest)
        return size

    async def old(self, *, before: datetime) -> AsyncIterator[list[str]]:
        """The digests that nobody put since `before`, some at a time."""
        last = ""
        while True:
            query = sa.select(blobs.c.digest).where(blobs.c.put_at < before, blobs.c.digest > last)
            found = await self._database.read(functools.partial(_listed, query.order_by(blobs.c.digest).limit(_BATCH)))
            if not found:
                return
            yield found
            last = found[-1]

    async def discard(self, digest: str, *, before: datetime) -> bool:
        """Deletes it unless somebody put it since `before`; True when it is gone."""
        old = sa.delete(blobs).where(blobs.c.digest == digest, blobs.c.put_at < before)
        return await self._database.write(lambda connection: connection.execute(old).rowcount == 1, rings=False)

    async def _one(self, query: sa.Select[Any], digest: str) -> Any:
        bare_digest(digest)
        wanted = query.where(blobs.c.digest == digest)
        return await self._database.read(lambda connection: connection.execute(wanted).scalar())


def _listed(query: sa.Select[Any], connection: sa.Connection) -> list[str]:
    return list(connection.execute(query).scalars())
