"""How far the ledger had come, noted outside of the database: a restored backup must not send yesterday again.

Before each final dot `DatabaseLedger` notes here the timeline's number of it, in `data_dir/ledger.mark`, with the ledger's epoch.
A ledger of the same epoch whose timeline ends before that number has gone back: what it calls open may long be sent.  Then
`hold_what_is_open` holds it all, and a person decides (`gateway recover`).
Limits: it is looked at when a process opens the store, so the gateway is stopped while a backup is restored; each host has a mark
of its own; a mark that is restored together with its ledger tells nothing, whoever does that says `gateway recover --hold`;
who deletes the youngest lines of a timeline by hand makes a ledger look older than it is.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from gateway.mail.disposition import Disposition
from gateway.store.database import Database
from gateway.store.schema import email_recipients, meta, timeline

if TYPE_CHECKING:
    from gateway.store.emails import DatabaseLedger

WENT_BACK = "the ledger went back to an older state"
_OPEN = (Disposition.PENDING, Disposition.DELAYED, Disposition.SENDING, Disposition.UNKNOWN)
_BATCH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Which ledger, and how far it has come."""

    epoch: str
    number: int


class LedgerMark:
    """The file; several processes of a host share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._epoch = ""

    @property
    def known(self) -> str:
        """The file's name where it knows a ledger; '' while there was none yet."""
        return f"{self._path.parent.name}/{self._path.name}" if self.read() is not None else ""

    def note(self, number: int) -> None:
        """Notes that a dot of this number goes out; raises OSError where that cannot be, and then it must not."""
        mine = Position(epoch=self._epoch, number=number)
        self._write(mine, unless=lambda found: found.epoch == mine.epoch and found.number >= number)

    def read(self) -> Position | None:
        """What was noted last, None where nothing was."""
        try:
            return _position(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def follow(self, position: Position, *, went_back: bool) -> None:
        """From here on the mark is of this ledger; it is lowered only to a ledger that went back."""
        self._epoch = position.epoch
        self._write(position, unless=lambda found: found.epoch == position.epoch and not went_back)

    def _write(self, position: Position, *, unless: Callable[[Position], bool]) -> None:
        number = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            found = _position(os.pread(number, 200, 0))
            if found is None or not unless(found):
                os.pwrite(number, f"{position.epoch} {position.number:020}\n".encode(), 0)
        finally:
            os.close(number)


def _position(octets: bytes) -> Position | None:
    epoch, _, number = octets.decode("ascii", "replace").strip().partition(" ")
    return Position(epoch=epoch, number=int(number)) if number.isdigit() else None


async def went_back(database: Database, mark: LedgerMark) -> bool:
    """Whether the ledger was further once than it is now; if not, the mark is of this ledger from here on."""
    noted = mark.read()  # before the ledger is asked: another process may go on meanwhile
    position = await position_of(database)
    if noted is not None and noted.epoch == position.epoch and noted.number > position.number:
        return True
    mark.follow(position, went_back=False)
    return False


async def position_of(database: Database) -> Position:
    """How far the ledger has come."""
    last = sa.select(sa.func.coalesce(sa.func.max(timeline.c.id), 0))
    name = sa.select(meta.c.value).where(meta.c.key == "epoch")
    epoch, number = await database.read(
        lambda connection: (connection.execute(name).scalar_one(), connection.execute(last).scalar_one())
    )
    return Position(epoch=epoch, number=number)


async def hold_what_is_open(database: Database, ledger: DatabaseLedger, *, now: datetime) -> int:
    """Holds every recipient that may have been sent to since; unknown ones stay so and are not resent.  Returns how many."""
    await database.write(lambda connection: connection.execute(_END_CLAIMS, {"now": now}).rowcount)
    while await ledger.sweep_expired():
        pass
    held, last = 0, ""
    while emails := await _emails(database, _may_be_sent(last)):
        for email_id in emails:
            held += await ledger.record_held(email_id, reason=WENT_BACK)
        last = emails[-1]
    return held


async def held_back(database: Database) -> list[str]:
    """The emails that were held because the ledger went back."""
    reason = sa.and_(
        email_recipients.c.reason == WENT_BACK,
        email_recipients.c.disposition.in_((Disposition.HELD, Disposition.UNKNOWN)),
    )
    return await _emails(database, sa.select(email_recipients.c.email_id).where(reason).distinct())


def _may_be_sent(last: str) -> sa.Select[Any]:
    is_open = sa.and_(email_recipients.c.disposition.in_(_OPEN), email_recipients.c.reason != WENT_BACK)
    query = sa.select(email_recipients.c.email_id).where(is_open, email_recipients.c.email_id > last)
    return query.distinct().order_by(email_recipients.c.email_id).limit(_BATCH)


async def _emails(database: Database, query: sa.Select[Any]) -> list[str]:
    return await database.read(lambda connection: list(connection.execute(query).scalars()))


_END_CLAIMS = (
    sa.update(email_recipients)
    .where(email_recipients.c.disposition == Disposition.SENDING)
    .values(claim_until=sa.bindparam("now", type_=email_recipients.c.claim_until.type))
)
