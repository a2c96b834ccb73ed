"""The store as an app sees it: posts and refusals out of the published views, read by the app's own role.

For `client.post`.  Promise: a store that is away, or not made yet, keeps no app from starting: it is StoreUnavailable until it
is there, tried once a second; nothing is ever made or written here.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from gateway.errors import StoreUnavailable
from gateway.store import published
from gateway.store.database import Database, file_of, open_as_it_is
from gateway.store.late import LateDatabase


class PublishedStore:
    """The store at a URL, to be read."""

    def __init__(self, url: str) -> None:
        """Raises SettingsError for a URL that names no database we have."""
        self._file = file_of(url)
        self._url = url
        self._database = LateDatabase(self._open)

    async def open(self) -> None:
        """Looks for the store, and goes on looking where it is away; raises SettingsError."""
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    async def post(self, post_id: str) -> dict[str, Any] | None:
        """A stored post, or why the request for it failed; raises StoreUnavailable."""
        return await self._database.read(lambda connection: published.post_or_refusal(connection, post_id))

    async def _open(self) -> Database:
        if self._file is not None and not self._file.exists():
            raise StoreUnavailable(f"database_url: there is no store at {self._file} yet")
        database = await open_as_it_is(self._url)
        try:
            await database.read(published.prove)
        except sa.exc.DBAPIError:
            await database.close()
            raise StoreUnavailable("database_url: what is there is no store of this version's gateway (yet)") from None
        except BaseException:
            await database.close()
            raise
        return database
