"""The ledger in the database: what each app asked for, and what became of it for each recipient.

Journal of one attempt: `claim` → `record_dot_sent` → relayed, delayed, failed or unknown.  `copies` counts the final dots
that may have reached somebody: raised with `record_dot_sent`, taken back when the relay then says no.
Promises: each verb is one transaction of row, timeline and event; a verb with a Claim changes the row only while that
claim holds, else ClaimLost; a claim that ran out after the dot becomes `unknown`, never a silent second copy.
Order per key is kept in `store.serial`, the steps that the verbs share are in `store.email_changes`.
Limit: time is the clock it is given (the database's), taken in the transaction.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.contract.email_send import SendEmail, parse_send_email
from gateway.contract.events import EventType
from gateway.errors import Problem, StoreUnavailable
from gateway.mail.disposition import Disposition
from gateway.reply import Reply
from gateway.runtime import Clock
from gateway.store import email_rows as rows
from gateway.store import serial
from gateway.store.accepting import RENDERED, REQUEST, NewEmail, insert_email
from gateway.store.blobs import BlobStore
from gateway.store.database import Database, insert_absent
from gateway.store.email_changes import RowChanges, change_claimed, ended, given_up, not_taken, reply_values
from gateway.store.email_rows import Row
from gateway.store.journal import Fact, Journal
from gateway.store.ledger import Acceptance, Claim, EmailRecord, RecipientRecord
from gateway.store.ledger_mark import LedgerMark
from gateway.store.refused import insert_rejection
from gateway.store.schema import (
    MAX_ROW_BYTES,
    email_octets,
    email_recipients,
    emails,
    rejections,
)

LIFETIME_SECONDS = 7 * 86400.0
UNKNOWN_WAIT_SECONDS = 900.0
_PARSED_ASIDE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What happens to an email's recipients that are in one of `from_`; a `ticket_id` or `reason` must be theirs, too."""

    step: str
    from_: Sequence[Disposition]
    event: EventType | None = None
    ticket_id: str | None = None
    reason: str | None = None
    by: str = ""

    def concerns(self, row: Row, now: datetime) -> bool:
        return (
            _is_one_of(row, self.from_, now)
            and self.ticket_id in (None, row.ticket_id)
            and self.reason in (None, row.reason)
        )


class DatabaseLedger:
    """The ledger of the main database."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        *,
        clock: Clock,
        hostname: str,
        return_path: str = "",
        unknown_wait_seconds: float = UNKNOWN_WAIT_SECONDS,
        lifetime_seconds: float = LIFETIME_SECONDS,
        mark: LedgerMark | None = None,
    ) -> None:
        """`return_path` is the envelope sender that new emails get; `lifetime_seconds` ends what never succeeds.

        `mark` is where each dot is noted outside of the database.
        """
        self._database = database
        self._blobs = blobs
        self._journal = Journal(database, clock=clock, hostname=hostname)
        self._clock = clock
        self._return_path = return_path
        self._changes = RowChanges(self._journal, unknown_wait=timedelta(seconds=unknown_wait_seconds))
        self._lifetime = timedelta(seconds=lifetime_seconds)
        self._mark = mark

    # accepting

    async def record_accepted(
        self, request: SendEmail, *, app: str, content_hash: str, ticket_id: str, stream: str, message_id: str
    ) -> Acceptance:
        """Inserts the email and a row per recipient, due at once or at `send_at`; a known id changes nothing."""
        body = request.to_json()
        kept = {REQUEST: await self._kept(body)}
        facts = {"app": app, "content_hash": content_hash, "stream": stream, "message_id": message_id}
        facts |= {"return_path": self._return_path}

        def work(connection: sa.Connection, now: datetime) -> Acceptance:
            latest = max(now, request.send_at or now) + self._lifetime
            expires_at = min(request.expires_at or latest, latest)
            new = NewEmail(request=request, facts=facts, expires_at=expires_at, ticket_id=ticket_id, kept=kept)
            if insert_email(connection, self._journal, now, new):
                return Acceptance.ACCEPTED
            return _known_or_conflict(connection, request.id, app=app, content_hash=content_hash)

        return await self._journal.record("accepted", work, size=len(body))

    async def record_rejected(self, request_id: str, *, app: str, problems: Sequence[Problem]) -> None:
        """Notes a request that was never accepted; the same rejection again changes nothing."""

        def work(connection: sa.Connection, now: datetime) -> None:
            told = insert_rejection(connection, now, request_id=request_id, app=app, problems=problems)
            if told is None:
                return
            data = {"app": app, "errors": [_without_params(item) for item in told]}
            fact = Fact(subject=request_id, step="rejected", event="email.rejected", data=data)
            self._journal.note(connection, now, replace(fact, event=None, data=data | {"errors": told}))
            # The owner of an email with this id keeps its own numbers: rejections count by themselves.
            same = sa.select(sa.func.count()).where(rejections.c.request_id == request_id)
            self._journal.announce(connection, now, fact, sequence=connection.execute(same).scalar_one())

        await self._journal.record("rejected", work)

    async def email(self, email_id: str) -> EmailRecord | None:
        found = await self._database.read(
            lambda connection: (
                connection.execute(sa.select(emails).where(emails.c.id == email_id)).first(),
                {row.kind: row for row in connection.execute(_octets_query(email_id))},
            )
        )
        row, parts = found
        if row is None:
            return None
        body = await self._octets(parts[REQUEST])
        parse = asyncio.to_thread(parse_send_email, body) if len(body) > _PARSED_ASIDE_BYTES else None
        names = ("id", "app", "stream", "accepted_at", "expires_at", "send_at", "message_id", "return_path")
        return EmailRecord(
            request=parse_send_email(body) if parse is None else await parse,
            octets=await self._octets(parts[RENDERED]) if RENDERED in parts else None,
            **{name: getattr(row, name) for name in names},
        )

    async def recipients(self, email_id: str) -> list[RecipientRecord]:
        return await self._database.read(
            lambda connection: list(map(rows.record_of, rows.rows_of(connection, email_id)))
        )

    async def record_rendered(self, email_id: str, octets: bytes, *, subject: str = "") -> bytes:
        """Stores the bytes if none are stored yet and returns the stored ones (the first writer wins)."""
        kept = await self._kept(octets)

        def work(connection: sa.Connection, now: datetime) -> Row:
            if insert_absent(connection, email_octets, kept | {"email_id": email_id, "kind": RENDERED}):
                if subject:
                    connection.execute(sa.update(emails).where(emails.c.id == email_id).values(subject=subject))
                data = {"size": len(octets), "sha256": hashlib.sha256(octets).hexdigest()}
                self._journal.note(connection, now, Fact(subject=email_id, step="rendered", data=data))
            return connection.execute(_octets_query(email_id).where(email_octets.c.kind == RENDERED)).one()

        return await self._octets(await self._journal.record("rendered", work, size=len(octets)))

    # one attempt

    async def claim(
        self, email_id: str, recipient: str, *, ticket_id: str, lifetime_seconds: float
    ) -> Claim | RecipientRecord:
        """Takes a due, unclaimed row; otherwise returns the row as it then is (see the protocol)."""
        lifetime = timedelta(seconds=lifetime_seconds)

        def work(connection: sa.Connection, now: datetime) -> Claim | RecipientRecord:
            row = rows.row_of(connection, email_id, recipient, to_change=True)
            if rows.is_lost_after_dot(row, now):
                self._changes.become_unknown(connection, now, row, reason="no word after the final dot")
            elif rows.is_due(row, now) and row.expires_at <= now:
                self._changes.expire(connection, now, row)
            elif rows.is_due(row, now) and not serial.may_go(connection, row):
                self._changes.send_back(connection, now, row)
            elif rows.is_due(row, now):
                return self._changes.take(connection, now, row, ticket_id=ticket_id, until=now + lifetime)
            return rows.record_of(rows.row_of(connection, email_id, recipient))

        return await self._journal.record("claimed", work)

    async def renew(self, claim: Claim, *, lifetime_seconds: float) -> Claim:
        def work(connection: sa.Connection, now: datetime) -> Claim:
            until = now + timedelta(seconds=lifetime_seconds)
            change_claimed(connection, claim, {"claim_until": until})
            return replace(claim, until=until)

        return await self._journal.record("renewed", work)

    async def record_dot_sent(self, claim: Claim) -> None:
        """Journals that the final dot goes out next: from here on the recipient may have a copy."""

        def work(connection: sa.Connection, now: datetime) -> int:
            change_claimed(connection, claim, {"dot_sent_at": now, "copies": claim.copy, "updated_at": now})
            return self._changes.note(
                connection, now, claim, "dot_sent", {"attempt": claim.attempt, "copy": claim.copy}
            )

        number = await self._journal.record("dot_sent", work)
        if self._mark is not None:
            try:
                self._mark.note(number)
            except OSError as error:
                raise StoreUnavailable(f"the ledger's mark cannot be written: {error}") from error

    async def record_relayed(self, claim: Claim, *, relay: str, reply: Reply) -> None:
        outcome = {"disposition": Disposition.RELAYED, "relay": relay, "reason": "", **reply_values(reply)}

        def work(connection: sa.Connection, now: datetime) -> None:
            row = change_claimed(connection, claim, ended(now) | outcome | {"attempts": claim.attempt})
            self._changes.tell(connection, now, row, "email.relayed")

        await self._journal.record("relayed", work)

    async def record_late_relayed(self, claim: Claim, *, relay: str, reply: Reply) -> bool:
        """The relay's yes came after the claim was gone: heals a row that is open and not claimed anew, else False."""

        def work(connection: sa.Connection, now: datetime) -> bool:
            row = rows.row_of(connection, claim.email_id, claim.recipient, to_change=True)
            if row.disposition not in _HEALS and row.claim_token != claim.token:
                return False
            outcome = {
                "disposition": Disposition.RELAYED,
                "relay": relay,
                "reason": "late",
                **reply_values(reply),
            }
            self._changes.change(connection, row, ended(now) | outcome)
            self._changes.tell(
                connection, now, rows.row_of(connection, claim.email_id, claim.recipient), "email.relayed"
            )
            return True

        return await self._journal.record("late_relayed", work)

    async def record_delayed(
        self,
        claim: Claim,
        *,
        relay: str,
        reply: Reply,
        reason: str,
        next_attempt_at: datetime,
        ticket_id: str,
    ) -> None:
        """The attempt did not succeed; `ticket_id` names the ticket that works the row next."""
        outcome = {"disposition": Disposition.DELAYED, "relay": relay, "reason": reason, **reply_values(reply)}
        next_ = {"next_attempt_at": next_attempt_at, "ticket_id": ticket_id}

        def work(connection: sa.Connection, now: datetime) -> None:
            spent = {"attempts": claim.attempt}
            row = change_claimed(connection, claim, ended(now) | not_taken() | outcome | spent | next_)
            self._changes.tell(connection, now, row, "email.delayed")

        await self._journal.record("delayed", work)

    async def record_failed(self, claim: Claim, *, relay: str, reply: Reply, reason: str) -> None:
        outcome = {"disposition": Disposition.FAILED, "relay": relay, "reason": reason, **reply_values(reply)}

        def work(connection: sa.Connection, now: datetime) -> None:
            spent = {"attempts": claim.attempt}
            row = change_claimed(connection, claim, ended(now) | not_taken() | outcome | spent)
            self._changes.tell(connection, now, row, "email.failed")

        await self._journal.record("failed", work)

    async def record_unknown(self, claim: Claim, *, relay: str, reason: str) -> None:
        """The dot went out and no intelligible answer came: the request's `on_unknown` decides what follows."""

        def work(connection: sa.Connection, now: datetime) -> None:
            change_claimed(connection, claim, {"relay": relay})
            row = rows.row_of(connection, claim.email_id, claim.recipient)
            self._changes.become_unknown(connection, now, row, reason=reason)

        await self._journal.record("unknown", work)

    async def release_claim(self, claim: Claim, *, due_at: datetime | None = None) -> None:
        """Gives the claim back: the row is what it was, but due; after a dot only when the relay said no to it."""

        def work(connection: sa.Connection, now: datetime) -> None:
            back = {"disposition": email_recipients.c.claimed_from, "next_attempt_at": due_at or now}
            change_claimed(connection, claim, ended(now) | not_taken() | back)
            self._changes.note(connection, now, claim, "claim_released", {"attempt": claim.attempt})

        await self._journal.record("claim_released", work)

    async def postpone(self, email_id: str, recipient: str | None = None, *, ticket_id: str, until: datetime) -> bool:
        """Makes a ticket's due rows due at `until`; no step of the story, for it may go on for days."""

        def work(connection: sa.Connection, now: datetime) -> bool:
            mine = [
                row
                for row in rows.rows_of(connection, email_id, to_change=True)
                if recipient in (None, row.recipient) and row.ticket_id == ticket_id and rows.is_worked(row)
            ]
            for row in mine:
                if rows.is_due(row, now):
                    self._changes.change(connection, row, given_up(row, now) | {"next_attempt_at": until})
            return bool(mine)

        return await self._journal.record("postponed", work)

    # order per key

    async def start_turn(self, serial_key: str) -> list[RecipientRecord]:
        """Lets the next email of a key go once all before it are final; returns its rows that are due now."""
        if not await self._database.read(lambda connection: serial.stalled_keys(connection, serial_key=serial_key)):
            return []

        def work(connection: sa.Connection, now: datetime) -> list[RecipientRecord]:
            started = serial.start_turn(connection, self._journal, now, serial_key)
            return [rows.record_of(row) for row in started if rows.is_due(row, now)]

        return await self._journal.record("turn_started", work)

    async def stalled_keys(self, *, limit: int = 200) -> list[str]:
        return await self._database.read(lambda connection: serial.stalled_keys(connection, limit=limit))

    # operators

    async def hold(self, email_id: str, *, by: str = "") -> int:
        """Somebody wants what is not yet sent to wait; returns how many recipients."""
        return await self.record_held(email_id, reason=_held_by(by), by=by)

    async def record_held(self, email_id: str, *, reason: str, by: str = "") -> int:
        """Holds every open, unclaimed recipient; an unknown one stays unknown and is not resent. Returns how many."""

        def held(row: Row) -> dict[str, Any]:
            disposition = row.disposition if row.disposition == Disposition.UNKNOWN else Disposition.HELD
            return {"disposition": disposition, "reason": reason}

        from_ = (*rows.WAITING, Disposition.UNKNOWN)
        return await self._each(email_id, _Change(step="held", from_=from_, event="email.held", by=by), held)

    async def record_dead(self, email_id: str, *, reason: str, ticket_id: str | None = None) -> int:
        """Leaves open, unclaimed recipients to an operator; an unknown one stays unknown and is not resent."""

        def dead(row: Row) -> dict[str, Any]:
            disposition = row.disposition if row.disposition == Disposition.UNKNOWN else Disposition.DEAD
            return {"disposition": disposition, "reason": reason}

        from_ = (*rows.WAITING, Disposition.UNKNOWN)
        work = _Change(step="dead", from_=from_, event="email.dead", ticket_id=ticket_id)
        return await self._each(email_id, work, dead)

    async def revive(self, email_id: str, *, ticket_id: str) -> int:
        """An operator put the dead letter back: its recipients are pending and due. Returns how many."""
        now = self._clock()
        revived = {"disposition": Disposition.PENDING, "reason": "retried", "next_attempt_at": now}
        work = _Change(step="revived", from_=(Disposition.DEAD,), ticket_id=ticket_id)
        return await self._each(email_id, work, lambda row: revived)

    async def cancel(
        self,
        email_id: str,
        *,
        by: str = "",
        only: Iterable[Disposition] | None = None,
        ticket_id: str | None = None,
    ) -> int:
        """Ends every open, unclaimed recipient (or those in `only`, or of one ticket); returns how many."""
        from_ = (*rows.WAITING, *_STOPPED) if only is None else tuple(only)
        reason = f"cancelled by {by or 'an operator'}"
        cancelled = {"disposition": Disposition.CANCELLED, "reason": reason}
        work = _Change(step="cancelled", from_=from_, event="email.cancelled", ticket_id=ticket_id, by=by)
        return await self._each(email_id, work, lambda row: cancelled)

    async def release(self, email_id: str, *, by: str = "", own: bool = False) -> int:
        """Lets what is held, dead or unknown go on, not before `send_at`; the sweeper gives it a ticket.

        `own`: only what `hold` has held by the same.
        """
        now = self._clock()

        def released(row: Row) -> dict[str, Any]:
            is_unknown = row.disposition == Disposition.UNKNOWN
            disposition = Disposition.UNKNOWN if is_unknown else Disposition.PENDING
            due = max(now, row.send_at or now)
            return {"disposition": disposition, "reason": "released", "ticket_id": "", "next_attempt_at": due}

        which = _Change(step="released", from_=_STOPPED, reason=_held_by(by) if own else None, by=by)
        return await self._each(email_id, which, released)

    # sweeping

    async def sweep_expired(self, *, limit: int = 200) -> int:
        """Ends open rows past their time and turns claims that ran out after the dot into `unknown`."""

        def work(connection: sa.Connection, now: datetime) -> int:
            lost = rows.lost_rows(connection, now=now, limit=limit, to_change=True)
            for row in lost:
                self._changes.become_unknown(connection, now, row, reason="no word after the final dot")
            expired = rows.expired_rows(connection, now=now, limit=limit, to_change=True)
            for row in expired:
                self._changes.expire(connection, now, row)
            return len(lost) + len(expired)

        now = self._clock()
        if not await self._database.read(
            lambda connection: (
                rows.lost_rows(connection, now=now, limit=1) or rows.expired_rows(connection, now=now, limit=1)
            )
        ):
            return 0
        return await self._journal.record("swept", work)

    async def overdue(self, *, older_than_seconds: float, limit: int = 200) -> list[RecipientRecord]:
        now = self._clock()
        before = now - timedelta(seconds=older_than_seconds)
        found = await self._database.read(
            lambda connection: rows.overdue_rows(connection, now=now, before=before, limit=limit)
        )
        return list(map(rows.record_of, found))

    async def reissue(self, row: RecipientRecord, *, ticket_id: str) -> bool:
        """Names a new current ticket for a row that is as it was in `row`; it counts as due from now on."""

        def work(connection: sa.Connection, now: datetime) -> bool:
            current = rows.row_of(connection, row.email_id, row.recipient, to_change=True)
            if rows.record_of(current) != row:
                return False
            due = max(now, current.next_attempt_at or now)
            self._changes.change(
                connection, current, given_up(current, now) | {"ticket_id": ticket_id, "next_attempt_at": due}
            )
            fact = Fact(subject=row.email_id, step="reissued", recipient=row.recipient, data={"ticket": ticket_id})
            self._journal.note(connection, now, fact)
            return True

        return await self._journal.record("reissued", work)

    # looking

    async def story(self, email_id: str) -> dict[str, Any] | None:
        """Everything about one email, ready for JSON."""
        return await self._database.read(lambda connection: rows.email_story(connection, email_id))

    # how

    async def _kept(self, octets: bytes) -> dict[str, Any]:
        """The columns that keep octets: small ones in the row, large ones in the blob store first."""
        if len(octets) > MAX_ROW_BYTES:
            return {"size": len(octets), "blob": await self._blobs.put(octets), "octets": None}
        return {"size": len(octets), "blob": None, "octets": octets}

    async def _octets(self, row: Row) -> bytes:
        octets: bytes = row.octets if row.blob is None else await self._blobs.get(row.blob)
        return octets

    async def _each(self, email_id: str, change: _Change, values: Callable[[Row], dict[str, Any]]) -> int:
        """Changes the recipients that are in one of these dispositions or abandoned on the way; returns how many."""

        def work(connection: sa.Connection, now: datetime) -> int:
            found = [row for row in rows.rows_of(connection, email_id, to_change=True) if change.concerns(row, now)]
            for row in found:
                self._changes.change(connection, row, ended(now) | values(row))
                changed = rows.row_of(connection, email_id, row.recipient)
                self._changes.tell(connection, now, changed, change.event, step=change.step, by=change.by)
            return len(found)

        return await self._journal.record(change.step, work)


_HEALS = (Disposition.UNKNOWN, Disposition.DELAYED, Disposition.HELD)
_STOPPED = (Disposition.HELD, Disposition.DEAD, Disposition.UNKNOWN)


def _held_by(who: str) -> str:
    return f"held by {who or 'an operator'}"


def _is_one_of(row: Row, dispositions: Iterable[Disposition], now: datetime) -> bool:
    if row.disposition == Disposition.SENDING:
        return Disposition.PENDING in dispositions and rows.is_abandoned(row, now)
    return row.disposition in dispositions


def _known_or_conflict(connection: sa.Connection, email_id: str, *, app: str, content_hash: str) -> Acceptance:
    query = sa.select(emails.c.app, emails.c.content_hash).where(emails.c.id == email_id)
    owner = connection.execute(query).one()
    return Acceptance.KNOWN if tuple(owner) == (app, content_hash) else Acceptance.CONFLICT


def _octets_query(email_id: str) -> sa.Select[Any]:
    return sa.select(email_octets).where(email_octets.c.email_id == email_id)


def _without_params(problem: dict[str, str]) -> dict[str, str]:
    """The problem as an event may tell it: a schema's message quotes the value it refuses."""
    if problem["path"].partition(".")[0].partition("[")[0] == "params":
        return problem | {"message": "does not fit the template"}
    return problem
