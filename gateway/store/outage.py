"""The outage ledger (`data_dir/outage.db`, always SQLite): who waits, who was told and how, while the store is away.

Flow: ingest cannot record a mail and notes it here; when its first delay is over and the store is still away, the notice
service claims the note, writes the notice and hands it to a relay, with this file as the journal; when the store is back
it takes over what was done (`Notices.record_elsewhere`), and what was never sent is forgotten: the store plans its own.

    waiting ─▶ claimed ─▶ dot sent ─▶ relayed | failed | unknown ─▶ merged        (kept a day: who has heard what)

Promises: the ids are those the store would give, so nobody hears a thing from both; one notice a day per sender and stage,
what the store told before the outage included; a claim that ran out after the dot is `unknown` and never sent again from
here.  Nothing but delays of mails that wait is ever told from here.
Limits: one file a host; of a mail to several recipients the first stands for all; at most `MOST_WAITING` senders.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.contract.email_send import parse_send_email
from gateway.errors import ClaimLost
from gateway.mail.disposition import Disposition
from gateway.mail.envelope import Envelope
from gateway.mail.loop_guard import Telling, header_octets
from gateway.runtime import Clock, failpoint
from gateway.sqlite_file import SqliteFile
from gateway.store.notice_plans import State, addressee_of, delay_notice_id, delay_stage
from gateway.store.notices import Elsewhere, Notice, Written
from gateway.store.schema import clean_json

if TYPE_CHECKING:
    from types import TracebackType

    from gateway.sqlite_file import Connection

MOST_WAITING = 10_000
CLAIM_SECONDS = 900.0
_WAITING, _CLAIMED, _MERGED = "waiting", "claimed", "merged"
_DONE = (Disposition.RELAYED, Disposition.FAILED, Disposition.UNKNOWN)
_TABLES = """
CREATE TABLE IF NOT EXISTS notices (
    id TEXT PRIMARY KEY, subject TEXT NOT NULL, recipient TEXT NOT NULL, addressee TEXT NOT NULL, stage TEXT NOT NULL,
    state TEXT NOT NULL, due_at REAL NOT NULL, told_at REAL, facts TEXT, header BLOB,
    token TEXT, claim_until REAL, dot_at REAL, request BLOB, octets BLOB, title TEXT, message_id TEXT,
    relay TEXT, reply TEXT
);
CREATE INDEX IF NOT EXISTS notices_by_addressee ON notices (addressee, stage);
CREATE INDEX IF NOT EXISTS notices_by_state ON notices (state, due_at);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """One claimed notice: `written` once its octets are fixed; `header` is what of the mail it returns."""

    notice: Notice
    header: bytes
    token: str
    written: Written | None


class OutageLedger:
    """The file of this host; an async context manager."""

    def __init__(self, path: Path, *, clock: Clock, delays: Sequence[float], day_seconds: float = 86400.0) -> None:
        self._file = SqliteFile(path, prepare=_prepare)
        self._clock = clock
        self._delays = tuple(delays)
        self._day_seconds = day_seconds

    async def __aenter__(self) -> OutageLedger:
        await self._file.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._file.close()

    async def note_waiting(self, envelope: Envelope, octets: bytes, telling: Telling) -> None:
        """A mail cannot be recorded: plans what its sender hears if that lasts. Repeated, it changes nothing."""
        if telling.untold:
            return
        mail_id, rcpt_to, addressee = envelope.mail_id, envelope.rcpt_to[0], addressee_of(envelope.mail_from)
        facts = {"received_at": envelope.received_at.isoformat(), "subject": telling.subject}
        facts |= {"language": telling.language, "message_id": telling.message_id}
        body, header = json.dumps(clean_json(facts)), header_octets(octets)

        def work(connection: Connection) -> None:
            if _count(connection, "state = ?", _WAITING) >= MOST_WAITING:
                return
            for number, seconds in enumerate(self._delays, 1):
                stage = delay_stage(number)
                waits = _count(connection, "addressee = ? AND stage = ? AND state = ?", addressee, stage, _WAITING)
                if waits or self._has_heard(connection, addressee, stage):
                    continue
                identity = delay_notice_id(mail_id, rcpt_to, number)
                due_at = envelope.received_at.timestamp() + seconds
                values = (identity, mail_id, rcpt_to, addressee, stage, _WAITING, due_at, body, header)
                columns = "id, subject, recipient, addressee, stage, state, due_at, facts, header"
                connection.execute(f"INSERT OR IGNORE INTO notices ({columns}) VALUES (?,?,?,?,?,?,?,?,?)", values)

        await self._file.write(work)
        failpoint("outage.noted")

    async def claim_due(self, *, limit: int = 20) -> list[Errand]:
        """Takes what is to be told now; claims that ran out before the dot are free again, those after it are unknown."""

        def work(connection: Connection) -> list[Errand]:
            now = self._clock().timestamp()
            _end_claims(connection, now)
            query = "SELECT id, addressee, stage FROM notices WHERE state = ? AND due_at <= ? ORDER BY due_at LIMIT ?"
            found = []
            for identity, addressee, stage in connection.execute(query, (_WAITING, now, limit)).fetchall():
                if self._has_heard(connection, addressee, stage):
                    connection.execute("DELETE FROM notices WHERE id = ?", (identity,))
                    continue
                values = (_CLAIMED, secrets.token_hex(16), now + CLAIM_SECONDS, now, identity)
                connection.execute(
                    "UPDATE notices SET state = ?, token = ?, claim_until = ?, told_at = coalesce(told_at, ?) WHERE id = ?",
                    values,
                )
                found.append(_errand(_rows(connection, "id = ?", identity)[0]))
            return found

        return await self._file.write(work)

    async def record_written(self, errand: Errand, written: Written) -> None:
        """Fixes the octets: every attempt sends the same."""
        fixed = (written.request.to_json(), written.octets, written.subject, written.message_id)
        await self._change(errand, "request = ?, octets = ?, title = ?, message_id = ?", *fixed)

    async def record_dot_sent(self, errand: Errand) -> None:
        """Journals that the final dot goes out next; raises ClaimLost or StorageFault, then no dot may follow."""
        await self._change(errand, "dot_at = ?", self._clock().timestamp())
        failpoint("outage.dot_recorded")

    async def record_done(self, errand: Errand, disposition: Disposition, *, relay: str, reply: str) -> None:
        """What the relay said, or that nobody knows."""
        await self._change(errand, "state = ?, relay = ?, reply = ?, token = NULL", disposition, relay, reply)
        failpoint("outage.recorded")

    async def give_back(self, errand: Errand, *, seconds: float) -> None:
        """It could not be sent now and comes again."""
        due_at = self._clock().timestamp() + seconds
        await self._change(
            errand, "state = ?, due_at = ?, token = NULL, told_at = NULL, dot_at = NULL", _WAITING, due_at
        )

    async def is_busy(self, identity: str) -> bool:
        """Whether a notice is being told from here, or was and the store does not know yet."""
        states = (_CLAIMED, *_DONE)

        def work(connection: Connection) -> bool:
            return bool(_count(connection, f"id = ? AND state IN ({_marks(states)})", identity, *states))

        return await self._file.read(work)

    async def done(self) -> list[Elsewhere]:
        """What was told and is not in the store yet."""

        def work(connection: Connection) -> list[Elsewhere]:
            return [_elsewhere(row) for row in _rows(connection, f"state IN ({_marks(_DONE)})", *_DONE)]

        return await self._file.read(work)

    async def is_idle(self) -> bool:
        """Whether there is nothing here for the store: nobody waits, nothing is under way, all is merged."""
        return not await self._file.read(lambda connection: _count(connection, "state <> ?", _MERGED))

    async def record_merged(self, identities: Iterable[str]) -> None:
        """The store has it; remembered for a day for what a sender may hear."""
        emptied = "state = ?, header = NULL, request = NULL, octets = NULL, facts = NULL"
        rows = [(_MERGED, identity) for identity in identities]
        await self._file.write(
            lambda connection: connection.executemany(f"UPDATE notices SET {emptied} WHERE id = ?", rows) and None
        )

    async def store_is_back(self) -> None:
        """Forgets who waited, for the store plans for itself, and what was told more than a day ago."""

        def work(connection: Connection) -> None:
            now = self._clock().timestamp()
            _end_claims(connection, now)
            connection.execute("DELETE FROM notices WHERE state = ?", (_WAITING,))
            old = now - self._day_seconds
            connection.execute("DELETE FROM notices WHERE state = ? AND told_at < ?", (_MERGED, old))

        await self._file.write(work)

    async def remember(self, told: Iterable[Notice]) -> None:
        """Keeps in mind what the store told of delays, so that an outage does not repeat it."""
        columns = "id, subject, recipient, addressee, stage, state, due_at, told_at"
        rows = [
            (item.id, item.subject, item.recipient, item.addressee, item.stage, _MERGED, moment, moment)
            for item in told
            for moment in ((item.told_at or item.due_at).timestamp(),)
        ]
        if rows:
            await self._file.write(
                lambda connection: (
                    connection.executemany(f"INSERT OR IGNORE INTO notices ({columns}) VALUES (?,?,?,?,?,?,?,?)", rows)
                    and None
                )
            )

    def _has_heard(self, connection: Connection, addressee: str, stage: str) -> bool:
        """Whether the sender was told this within a day, or is being told now."""
        since = self._clock().timestamp() - self._day_seconds
        where = "addressee = ? AND stage = ? AND state <> ? AND told_at > ?"
        return bool(_count(connection, where, addressee, stage, _WAITING, since))

    async def _change(self, errand: Errand, assignments: str, *values: Any) -> None:
        def work(connection: Connection) -> None:
            statement = f"UPDATE notices SET {assignments} WHERE id = ? AND token = ?"
            if connection.execute(statement, (*values, errand.notice.id, errand.token)).rowcount != 1:
                raise ClaimLost(f"the claim on notice {errand.notice.id} is gone")

        await self._file.write(work)


def _prepare(connection: Connection) -> None:
    for statement in _TABLES.split(";"):
        connection.execute(statement)


def _end_claims(connection: Connection, now: float) -> None:
    over = "state = ? AND claim_until <= ?"
    given_up = f"UPDATE notices SET state = ?, token = NULL, told_at = NULL WHERE {over} AND dot_at IS NULL"
    connection.execute(given_up, (_WAITING, _CLAIMED, now))
    lost = f"UPDATE notices SET state = ?, token = NULL, reply = ? WHERE {over} AND dot_at IS NOT NULL"
    connection.execute(lost, (Disposition.UNKNOWN, "no word after the final dot", _CLAIMED, now))


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def _count(connection: Connection, where: str, *values: Any) -> int:
    return int(connection.execute(f"SELECT count(*) FROM notices WHERE {where}", values).fetchone()[0])


def _rows(connection: Connection, where: str, *values: Any) -> list[dict[str, Any]]:
    found = connection.execute(f"SELECT * FROM notices WHERE {where} ORDER BY due_at", values)
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _notice(row: Mapping[str, Any]) -> Notice:
    names = ("id", "subject", "recipient", "addressee", "stage")
    told_at = _moment(row["told_at"]) if row["told_at"] is not None else None
    return Notice(
        kind="mail",
        facts=json.loads(row["facts"]),
        state=State.CHOSEN,
        due_at=_moment(row["due_at"]),
        told_at=told_at,
        **{name: row[name] for name in names},
    )


def _written(row: Mapping[str, Any]) -> Written | None:
    if row["octets"] is None:
        return None
    request = parse_send_email(row["request"])
    return Written(request=request, subject=row["title"], message_id=row["message_id"], octets=row["octets"])


def _errand(row: Mapping[str, Any]) -> Errand:
    return Errand(notice=_notice(row), header=row["header"], token=row["token"], written=_written(row))


def _elsewhere(row: Mapping[str, Any]) -> Elsewhere:
    written = _written(row)
    assert written is not None  # nothing is sent before its octets are fixed
    told_at = _moment(row["told_at"])
    steps = [("claimed", told_at)] + ([("dot_sent", _moment(row["dot_at"]))] if row["dot_at"] is not None else [])
    return Elsewhere(
        notice=_notice(row),
        written=written,
        disposition=Disposition(row["state"]),
        relay=row["relay"] or "",
        reply=row["reply"] or "",
        told_at=told_at,
        steps=steps,
    )
