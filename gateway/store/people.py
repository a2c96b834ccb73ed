"""People: who is registered, kept in the database.  One verb per fact; after each the snapshot file is written anew.

Promises: an address is registered once, whatever its case; a removed person's row is gone, his secret addresses are void.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import TypeVar

import sqlalchemy as sa

from gateway.errors import PermanentFailure
from gateway.mail.addresses import parse_mailbox
from gateway.mail.ids import new_id
from gateway.mail.people import Person, person_key
from gateway.mail.secret_address import HANDLE_BYTES
from gateway.runtime import Clock
from gateway.store.database import Database, insert_absent
from gateway.store.people_file import PeopleFile
from gateway.store.schema import people

T = TypeVar("T")
_COLUMNS = (people.c.id, people.c.address, people.c.name, people.c.handle)


class PeopleStore:
    """The verbs, and the list."""

    def __init__(self, database: Database, file: PeopleFile, *, clock: Clock) -> None:
        self._database = database
        self._file = file
        self._clock = clock

    async def add(self, address: str, name: str = "") -> Person:
        """Registers an address; raises PermanentFailure where it is registered, or is none."""
        try:
            mailbox = parse_mailbox(address)
        except ValueError as error:
            raise PermanentFailure(f"{address}: {error}") from None
        person = Person(id=new_id(), address=mailbox, name=name, handle=secrets.token_hex(HANDLE_BYTES))
        values = {"id": person.id, "address": mailbox, "name": name, "handle": person.handle}

        def work(connection: sa.Connection) -> None:
            row = values | {"address_key": person_key(mailbox), "added_at": self._clock()}
            if not insert_absent(connection, people, row):
                raise PermanentFailure(f"{mailbox} is registered already")

        await self._change(work)
        return person

    async def remove(self, address: str) -> bool:
        """Takes a person out; False where there was none."""
        gone = sa.delete(people).where(people.c.address_key == person_key(address))
        return await self._change(lambda connection: bool(connection.execute(gone).rowcount))

    async def rotate(self, address: str) -> bool:
        """Gives a person a new handle: no secret address made before is good any more."""
        fresh = {"handle": secrets.token_hex(HANDLE_BYTES)}
        statement = sa.update(people).where(people.c.address_key == person_key(address)).values(fresh)
        return await self._change(lambda connection: bool(connection.execute(statement).rowcount))

    async def all(self) -> list[Person]:
        """Everybody, in the order they were registered."""
        return await self._database.read(_all)

    async def refresh_file(self) -> None:
        """Writes the snapshot where it differs; for hosts on which nobody says `people add`."""
        self._file.write(await self.all())

    async def _change(self, work: Callable[[sa.Connection], T]) -> T:
        result = await self._database.write(work)
        await self.refresh_file()
        return result


def _all(connection: sa.Connection) -> list[Person]:
    rows: Sequence[sa.RowMapping] = connection.execute(sa.select(*_COLUMNS).order_by(people.c.id)).mappings().all()
    return [Person(**row) for row in rows]
