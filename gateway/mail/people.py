"""Who is registered: people by address and by the handle of their secret addresses, as values.

Pure.  The store keeps people (`store.people`); doors and ingest know them by a snapshot (`store.people_file`), so that nobody
needs the database to say who may write.  Local parts in ASCII are compared without case, as everybody does who hosts them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.mail.addresses import Address, parse_mailbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """`handle` stands in this person's secret addresses; a new one makes the old addresses void."""

    id: str
    address: str
    name: str = ""
    handle: str = ""


class People:
    """A snapshot."""

    def __init__(self, people: Iterable[Person] = ()) -> None:
        self.all = tuple(people)
        self._by_key = {person_key(person.address): person for person in self.all}
        self._by_handle = {person.handle: person for person in self.all if person.handle}

    def at(self, address: str) -> Person | None:
        """Who is registered with this address."""
        return self._by_key.get(person_key(address)) if address else None

    def with_handle(self, handle: str) -> Person | None:
        return self._by_handle.get(handle)


def person_key(address: str) -> str:
    """What all ways to write one person's address share; an address of no form of ours is its own key."""
    try:
        local, _, domain = Address(mailbox=parse_mailbox(address)).key.rpartition("@")
    except ValueError:
        return address
    return f"{local.lower() if local.isascii() else local}@{domain}"
