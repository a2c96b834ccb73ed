"""Notices: planned ones come due, are judged once more, written into the ledger as emails from `<>`, and told as facts.

    planned ──▶ chosen ──▶ told        the email that carries it stands in the ledger, `deliver` sends it
       │  └───▶ gathered ─▶ told       beyond what one person gets a day: named together in a digest
       └──────▶ moot                   no longer true, or he was told the same of another mail today

Promises: what a notice will say is frozen when it is chosen, so whoever takes it on after a crash says the same; the email
and the fact that it was told are one transaction under the notice's own id, so it is told once; only rows made here have
the null return path, whatever an app may publish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.contract.email_send import SendEmail
from gateway.mail.disposition import Disposition
from gateway.runtime import Clock
from gateway.store import notice_facts, timeline
from gateway.store.accepting import RENDERED, REQUEST, NewEmail, insert_email
from gateway.store.blobs import BlobStore
from gateway.store.database import Database, insert_absent
from gateway.store.journal import Fact, Journal
from gateway.store.notice_plans import Stage, State, notice_id
from gateway.store.schema import as_json, email_recipients, mail_octets, mails, notices

APP = "gateway"
TEMPLATE = "notices"
NAMED_A_DAY = 3
LIFETIME = timedelta(days=2)
_BATCH = 200
_OPEN = (State.PLANNED, State.CHOSEN)
_NAMED = (Stage.FAILED, Stage.PARTIAL, Stage.HELD, Stage.ASKED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One thing to tell one person; `facts` are whitelisted values, frozen once it is chosen."""

    id: str
    subject: str
    kind: str
    recipient: str
    addressee: str
    stage: str
    facts: Mapping[str, Any]
    state: State
    due_at: datetime
    told_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A notice as it goes out; `request` is how the ledger knows what it was made of."""

    request: SendEmail
    subject: str
    message_id: str
    octets: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """What the outage ledger did with a notice: its disposition, the relay's word, and each step with its time."""

    notice: Notice
    written: Written
    disposition: Disposition
    relay: str
    reply: str
    told_at: datetime
    steps: Sequence[tuple[str, datetime]] = ()


class Notices:
    """The verbs of telling."""

    def __init__(
        self, database: Database, blobs: BlobStore, *, clock: Clock, hostname: str, day_seconds: float = 86400.0
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._journal = Journal(database, clock=clock, hostname=hostname)
        self._day = timedelta(seconds=day_seconds)

    async def due(self, *, limit: int = 50) -> list[Notice]:
        """What is to be told now, the longest due first."""
        now = self._clock()
        query = _ALL.where(notices.c.state.in_(_OPEN), notices.c.due_at <= now).order_by(notices.c.due_at).limit(limit)
        return await self._database.read(lambda connection: [_notice(row) for row in connection.execute(query)])

    async def prove_writable(self) -> None:
        """Raises StoreUnavailable unless the store takes a transaction now."""
        await self._database.write(lambda connection: None, rings=False)

    async def next_due_at(self) -> datetime | None:
        query = sa.select(sa.func.min(notices.c.due_at)).where(notices.c.state.in_(_OPEN))
        found: datetime | None = await self._database.read(lambda connection: connection.execute(query).scalar())
        return found

    async def choose(self, identity: str) -> Notice | None:
        """Decides about a planned notice; returns the chosen one with everything it says, None when it is not told alone."""

        def work(connection: sa.Connection, now: datetime) -> Notice | None:
            row = connection.execute(_ALL.where(notices.c.id == identity)).first()
            if row is None or row.state != State.PLANNED:
                return _notice(row) if row is not None and row.state == State.CHOSEN else None
            notice = _notice(row)
            state = self._fate(connection, now, notice)
            values: dict[str, Any] = {"state": state, "told_at": now}
            if state is State.GATHERED:
                values["told_by"] = self._digest_for(connection, now, notice)
            if state is State.CHOSEN:
                values["facts"] = notice_facts.frozen(connection, notice.id, dict(notice.facts))
            _change(connection, notice.id, State.PLANNED, values)
            return (
                _notice(connection.execute(_ALL.where(notices.c.id == identity)).one())
                if state is State.CHOSEN
                else None
            )

        return await self._journal.record("notice_chosen", work)

    async def header_source(self, notice: Notice) -> bytes:
        """The octets whose header a report returns; b'' where it returns none."""
        if notice.kind != "mail" or notice.stage == Stage.DIGEST:
            return b""
        query = sa.select(mail_octets.c.octets, mail_octets.c.blob).where(mail_octets.c.mail_id == notice.subject)
        row = await self._database.read(lambda connection: connection.execute(query).one())
        octets: bytes = row.octets if row.blob is None else await self._blobs.get(row.blob)
        return octets

    async def record_told(self, notice: Notice, written: Written) -> bool:
        """Puts the notice into the ledger as an email from `<>` and tells the fact; False where that was done before."""

        def work(connection: sa.Connection, now: datetime) -> bool:
            if not _change(connection, notice.id, State.CHOSEN, {"state": State.TOLD, "told_at": now}, must=False):
                return False
            insert_email(connection, self._journal, now, _email_of(written, now))
            _change(connection, notice.id, State.TOLD, {"told_by": written.request.id})
            if notice.stage != Stage.DIGEST:
                self._note_told(connection, now, notice, by=written.request.id)
                return True
            gathered = sa.and_(notices.c.told_by == notice.id, notices.c.state == State.GATHERED)
            connection.execute(sa.update(notices).where(gathered).values(state=State.UNNOTED, told_at=now))
            return True

        return await self._journal.record("notice_told", work, size=len(written.octets))

    async def postpone(self, notice: Notice, *, seconds: float) -> None:
        """It cannot be told now (a broken template, a mail whose octets are lost): it stays what it is and comes again."""
        values = {"due_at": self._clock() + timedelta(seconds=seconds)}
        await self._database.write(
            lambda connection: _change(connection, notice.id, notice.state, values, must=False), rings=False
        )

    async def note_told(self) -> int:
        """Writes into the stories what a digest, or the outage ledger, told of them; returns how many it did now.

        What the outage ledger told of a mail that the store has not seen yet waits for the mail.
        """
        is_known = sa.or_(notices.c.kind != "mail", notices.c.subject.in_(sa.select(mails.c.id)))
        query = _ALL.add_columns(notices.c.told_by).where(notices.c.state == State.UNNOTED, is_known).limit(_BATCH)
        if not await self._database.read(lambda connection: connection.execute(query.limit(1)).first()):
            return 0

        def work(connection: sa.Connection, now: datetime) -> int:
            found = connection.execute(query).all()
            for row in found:
                _change(connection, row.id, State.UNNOTED, {"state": State.TOLD})
                self._note_told(connection, now, _notice(row), by=row.told_by)
            return len(found)

        return await self._journal.record("notice_noted", work)

    async def told_since(self, moment: datetime) -> list[Notice]:
        """What was decided of delays since, for the outage ledger's memory of who has heard what."""
        states = (State.CHOSEN, State.TOLD, State.UNNOTED)
        chosen = (notices.c.told_at >= moment, notices.c.state.in_(states), notices.c.stage.startswith(Stage.DELAYED))
        query = _ALL.where(*chosen).order_by(notices.c.told_at)
        return await self._database.read(
            lambda connection: [_notice(row) for row in connection.execute(query.limit(10_000))]
        )

    async def record_elsewhere(self, done: Elsewhere) -> bool:
        """Takes over what the outage ledger did: the notice counts as told, its email stands in the list with its story."""
        notice = done.notice

        def work(connection: sa.Connection, now: datetime) -> bool:
            values = {
                "state": State.UNNOTED,
                "told_at": done.told_at,
                "told_by": notice.id,
                "facts": dict(notice.facts),
            }
            row = {name: getattr(notice, name) for name in _COPIED}
            if not insert_absent(connection, notices, row | {"reason": "ours", "due_at": notice.due_at} | values):
                open_ones = sa.and_(notices.c.id == notice.id, notices.c.state.in_((*_OPEN, State.MOOT)))
                connection.execute(sa.update(notices).where(open_ones).values(values))
            if not insert_email(connection, self._journal, now, _email_of(done.written, now)):
                return False
            self._note_sent_elsewhere(connection, now, done)
            return True

        return await self._journal.record("notice_merged", work, size=len(done.written.octets))

    # how

    def _fate(self, connection: sa.Connection, now: datetime, notice: Notice) -> State:
        if notice.stage == Stage.DIGEST:
            return State.CHOSEN
        if not notice_facts.is_still_true(connection, notice.id):
            return State.MOOT
        since = now - self._day
        if notice.stage.startswith(Stage.DELAYED):
            if not _count_told(connection, notice.addressee, [notice.stage], since):
                return State.CHOSEN
            data = {"of": notice.stage, "why": f"{notice.addressee} was told so of another mail within a day"}
            timeline.append(connection, notice.subject, "nobody_told", at=now, recipient=notice.recipient, data=data)
            return State.MOOT
        is_much = _count_told(connection, notice.addressee, _NAMED, since) >= NAMED_A_DAY
        return State.GATHERED if is_much else State.CHOSEN

    def _digest_for(self, connection: sa.Connection, now: datetime, notice: Notice) -> str:
        """The digest that will name it: the person's next one, a day after the first thing he was told."""
        mine = sa.and_(notices.c.addressee == notice.addressee, notices.c.stage == Stage.DIGEST)
        known = connection.execute(sa.select(notices.c.id).where(mine, notices.c.state == State.PLANNED)).scalar()
        if known:
            return str(known)
        first = _first_told(connection, notice.addressee, now - self._day) or now
        identity = notice_id(notice.id, "", reason=Stage.DIGEST, stage=Stage.DIGEST)
        row = {name: getattr(notice, name) for name in ("subject", "kind", "addressee")}
        row |= {"id": identity, "stage": Stage.DIGEST, "facts": {}, "state": State.PLANNED, "due_at": first + self._day}
        insert_absent(connection, notices, row)
        return identity

    def _note_told(self, connection: sa.Connection, now: datetime, notice: Notice, *, by: str) -> None:
        data = {"of": notice.stage, "to": notice.addressee, "notice_id": notice.id, "email_id": by}
        fact = Fact(
            subject=notice.subject,
            step="notice_sent",
            recipient=notice.recipient,
            event="notice.sent",
            kind=notice.kind,
            data=data,
        )
        self._journal.note(connection, now, fact)

    def _note_sent_elsewhere(self, connection: sa.Connection, now: datetime, done: Elsewhere) -> None:
        email_id, recipient = done.written.request.id, done.notice.addressee
        outcome = {
            "disposition": done.disposition,
            "reason": "sent by the outage ledger",
            "relay": done.relay,
            "attempts": 1,
            "copies": 1 if done.disposition is not Disposition.FAILED else 0,
            "next_attempt_at": None,
            "reply_text": done.reply,
            "updated_at": now,
        }
        connection.execute(sa.update(email_recipients).where(email_recipients.c.email_id == email_id).values(outcome))
        for step, at in done.steps:
            data = {"by": "outage ledger"}
            timeline.append(connection, email_id, step, at=at, recipient=recipient, data=data)
        told = as_json({"disposition": done.disposition, "relay": done.relay, "reply": done.reply, "at": done.told_at})
        fact = Fact(
            subject=email_id, step=done.disposition, recipient=recipient, event=_EVENT[done.disposition], data=told
        )
        self._journal.note(connection, now, fact)


_EVENT: Any = {
    Disposition.RELAYED: "email.relayed",
    Disposition.FAILED: "email.failed",
    Disposition.UNKNOWN: "email.unknown",
}
_COPIED = ("id", "subject", "kind", "recipient", "addressee", "stage")
_ALL = sa.select(
    *(notices.c[name] for name in (*_COPIED, "facts", "state", "due_at", "told_at")),
)


def _notice(row: Any) -> Notice:
    names = (*_COPIED, "facts", "due_at", "told_at")
    return Notice(state=State(row.state), **{name: getattr(row, name) for name in names})


def _change(
    connection: sa.Connection, identity: str, state: str, values: Mapping[str, Any], *, must: bool = True
) -> bool:
    """Compare-and-set on the state; where it `must` hold and does not, everything of the transaction is undone."""
    still = sa.and_(notices.c.id == identity, notices.c.state == state)
    changed = connection.execute(sa.update(notices).where(still).values(dict(values))).rowcount == 1
    if must and not changed:
        raise LookupError(f"notice {identity} is not {state} any more")
    return changed


def _told_lately(addressee: str, stages: Sequence[str], since: datetime) -> sa.ColumnElement[bool]:
    states = (State.CHOSEN, State.TOLD, State.UNNOTED)
    mine = (notices.c.addressee == addressee, notices.c.told_at > since, notices.c.stage.in_(stages))
    alone = sa.or_(notices.c.told_by == "", notices.c.told_by == notices.c.id)  # not named in a digest
    return sa.and_(*mine, notices.c.state.in_(states), alone)


def _count_told(connection: sa.Connection, addressee: str, stages: Sequence[str], since: datetime) -> int:
    query = sa.select(sa.func.count()).select_from(notices).where(_told_lately(addressee, stages, since))
    return int(connection.execute(query).scalar_one())


def _first_told(connection: sa.Connection, addressee: str, since: datetime) -> datetime | None:
    query = sa.select(sa.func.min(notices.c.told_at)).where(_told_lately(addressee, _NAMED, since))
    found: datetime | None = connection.execute(query).scalar()
    return found


def _email_of(written: Written, now: datetime) -> NewEmail:
    request, body = written.request, written.request.to_json()
    facts = {
        "app": APP,
        "content_hash": request.content_hash(),
        "stream": "normal",
        "message_id": written.message_id,
        "return_path": "",
        "subject": written.subject,
    }
    kept = {
        kind: {"size": len(octets), "blob": None, "octets": octets}
        for kind, octets in ((REQUEST, body), (RENDERED, written.octets))
    }
    return NewEmail(request=request, facts=facts, expires_at=now + LIFETIME, ticket_id="", kept=kept)
