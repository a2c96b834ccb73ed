"""How far the ledger had come, noted outside of the database: a restored backup must not send yesterday again.

Before each final dot `DatabaseLedger` notes here the timeline's number of it, in `data_dir/ledger.mark`, with the ledger's epoch.
A ledger of the same epoch whose timeline ends before that number has gone back: what it calls open may long be sent.  Then
`hold_what_is_open` holds it all, a new epoch begins, and a person decides (`gateway recover`).
Each host has a mark of its own and keeps it up with the dots of the others (`keep_up`), so that whichever starts first after a
restore finds out; the new epoch keeps the others from holding what was accepted since.
Limits: it is looked at when a process opens the store, so the gateway is stopped while a backup is restored; a mark that is
restored with the ledger knows nothing (whoever does that says `gateway recover --hold`), and neither does one that a power cut
took the last moments from; who deletes the youngest lines of a timeline by hand makes a ledger look older than it is.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from gateway.errors import StoreUnavailable
from gateway.mail.disposition import Disposition
from gateway.mail.ids import new_id
from gateway.store.database import Database
from gateway.store.schema import email_recipients, meta, timeline

if TYPE_CHECKING:
    from gateway.store.emails import DatabaseLedger

KEEP_UP_SECONDS = 10.0
WENT_BACK = "the ledger went back to an older state"
_OPEN = (Disposition.PENDING, Disposition.DELAYED, Disposition.SENDING, Disposition.UNKNOWN)
_BATCH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Which ledger, and how far it has come."""

    epoch: str
    number: int


class LedgerMark:
    """The file; several processes of a host share it.  `epoch` is the ledger that this process is at, '' before `follow`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.epoch = ""

    @property
    def known(self) -> str:
        """The file's name where it knows a ledger; '' while there was none yet."""
        return f"{self._path.parent.name}/{self._path.name}" if self.read() is not None else ""

    def note(self, number: int) -> None:
        """Notes that a dot of this number goes out; raises OSError where that cannot be, and then it must not."""
        mine = Position(epoch=self.epoch, number=number)
        self._write(mine, unless=lambda found: found.epoch == mine.epoch and found.number >= number)

    def read(self) -> Position | None:
        """What was noted last, None where nothing was."""
        try:
            return _position(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def follow(self, position: Position, *, went_back: bool) -> None:
        """From here on the mark is of this ledger; it is lowered only to a ledger that went back."""
        self.epoch = position.epoch
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


async def older_position(database: Database, mark: LedgerMark) -> Position | None:
    """Where the ledger is, if it was further once; if not, None, and the mark is of this ledger from here on."""
    noted = mark.read()  # before the ledger is asked: another process may go on meanwhile
    position = await position_of(database)
    if noted is not None and noted.epoch == position.epoch and noted.number > position.number:
        return position
    mark.follow(position, went_back=False)
    return None


async def begin_anew(database: Database, mark: LedgerMark, epoch: str) -> None:
    """Ends the epoch in which the ledger went back, once what is open is held; of several processes one begins the next."""
    still = sa.and_(meta.c.key == "epoch", meta.c.value == epoch)
    statement = sa.update(meta).where(still).values(value=new_id())
    await database.write(lambda connection: connection.execute(statement).rowcount)
    mark.follow(await position_of(database), went_back=True)


async def keep_up(
    database: Database,
    mark: LedgerMark,
    *,
    on_fault: Callable[[Exception], None],
    interval_seconds: float = KEEP_UP_SECONDS,
) -> None:
    """Notes again and again how far the others have come, until it is cancelled."""
    while True:
        await asyncio.sleep(interval_seconds)
        try:
            await note_last_dot(database, mark)
        except StoreUnavailable:
            continue  # others tell that
        except Exception as fault:  # noqa: BLE001  # broad: the next dot is noted before it goes out, whatever failed here
            on_fault(fault)


async def note_last_dot(database: Database, mark: LedgerMark) -> None:
    """Notes the last final dot of any host; looks only at what came since the mark.  A new epoch is followed."""
    noted = mark.read()
    query = sa.select(timeline.c.id).where(
        timeline.c.id > (noted.number if noted else 0), timeline.c.step == "dot_sent"
    )
    last = query.order_by(timeline.c.id.desc()).limit(1)
    epoch, number = await database.read(
        lambda connection: (connection.execute(_EPOCH).scalar_one(), connection.execute(last).scalar())
    )
    if noted is None or {noted.epoch, mark.epoch} != {epoch}:
        mark.follow(await position_of(database), went_back=False)
    elif number is not None:
        mark.note(number)


async def position_of(database: Database) -> Position:
    """How far the ledger has come."""
    last = sa.select(sa.func.coalesce(sa.func.max(timeline.c.id), 0))
    epoch, number = await database.read(
        lambda connection: (connection.execute(_EPOCH).scalar_one(), connection.execute(last).scalar_one())
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


_EPOCH = sa.select(meta.c.value).where(meta.c.key == "epoch")
_END_CLAIMS = (
    sa.update(email_recipients)
    .where(email_recipients.c.disposition == Disposition.SENDING)
    .values(claim_until=sa.bindparam("now", type_=email_recipients.c.claim_until.type))
)
