"""A desk for telling: the real store, templates, cage and outage ledger; a relay that keeps what it is handed."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from gateway.cage import Cage
from gateway.contract.email_send import SendEmail
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.mail.links import StatusLinks
from gateway.mail.loop_guard import LoopGuard, Telling
from gateway.mail.tokens import Tokens
from gateway.maillog import MailLog
from gateway.notices.service import Teller
from gateway.notices.words import House
from gateway.notices.writer import NoticeWriter
from gateway.outbound.compose import Rendered
from gateway.outbound.relay import RelayResult
from gateway.outbound.render import PRELOAD, fill
from gateway.outbound.templates import TemplateSet
from gateway.reply import Reply
from gateway.store.blobs import FileBlobStore
from gateway.store.database import Database, open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.lists import Lists
from gateway.store.mails import Mails
from gateway.store.notices import Notices
from gateway.store.outage import OutageLedger

TEMPLATES = Path(__file__).parents[2] / "templates"
HOSTNAME = "gateway.example.org"
DELAYS = (900.0, 4 * 3600.0)
HOUSE = House(
    hostname=HOSTNAME,
    postmaster="postmaster@in.example.org",
    links=StatusLinks(tokens=Tokens([b"k" * 32]), public_url="https://gateway.example.org"),
    language="en",
)
GUARD = LoopGuard(
    hostnames=frozenset({HOSTNAME}),
    is_own_address=lambda mailbox: mailbox.endswith("@in.example.org"),
    doors_are_local=True,
)
OCTETS = (
    b"From: Ann <ann@example.org>\r\nTo: photos@in.example.org\r\nSubject: Our garden\r\n"
    b"Message-ID: <garden@example.org>\r\n\r\nThe secret body.\r\n"
)


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class KeepingRelay:
    """Takes everything, or raises what it is told to; `before_dot` is awaited as a real one would."""

    taken: list[tuple[str, str, bytes]] = field(default_factory=list)
    fault: Exception | None = None
    fault_after_dot: Exception | None = None

    async def send(
        self, mail_from: str, recipient: str, octets: bytes, *, before_dot: Callable[[], Awaitable[None]], stream: str
    ) -> RelayResult:
        if self.fault:
            raise self.fault
        await before_dot()
        self.taken.append((mail_from, recipient, octets))
        if self.fault_after_dot:
            raise self.fault_after_dot
        return RelayResult(relay="keeping", reply=Reply(code=250, enhanced_status="2.0.0", text="kept"))


@dataclass
class Desk:
    folder: Path
    clock: Clock
    database: Database
    mails: Mails
    ledger: DatabaseLedger
    notices: Notices
    outage: OutageLedger
    relay: KeepingRelay
    teller: Teller
    log: MailLog
    issued: list[str] = field(default_factory=list)

    async def receive(
        self, *rcpt_to: str, mail_from: str = "ann@example.org", octets: bytes = OCTETS, **telling: Any
    ) -> Envelope:
        envelope = self.envelope(*rcpt_to, mail_from=mail_from)
        verdict = Telling(**{"message_id": "<garden@example.org>", "subject": "Our garden"} | telling)
        await self.mails.record_received(
            envelope, octets, len(octets), "0" * 64, subject=verdict.subject, telling=verdict
        )
        return envelope

    def envelope(self, *rcpt_to: str, mail_from: str = "ann@example.org") -> Envelope:
        return Envelope(
            mail_id=new_id(),
            mail_from=mail_from,
            rcpt_to=rcpt_to or ("photos@in.example.org",),
            received_at=self.clock(),
            door="smtp",
            client="127.0.0.1",
        )

    async def defer(self, envelope: Envelope, attempts: int = 1) -> None:
        await self.mails.record_deferred(
            envelope.mail_id,
            envelope.rcpt_to[0],
            reason="mailbox failed: KeyError: 'a secret of ours'",
            attempts=attempts,
            next_attempt_at=self.clock() + timedelta(minutes=1),
        )

    async def fail(self, envelope: Envelope, reason: str = "this address takes no mail any more") -> None:
        reply = Reply(code=554, enhanced_status="5.7.1", text=reason)
        await self.mails.record_failed(envelope.mail_id, envelope.rcpt_to[0], "photos", reason, reply)

    async def accept(self, **fields: Any) -> SendEmail:
        values = {"to": ["bob@example.net"], "subject": "s", "text": "t", "notify": ["ops@example.com"]} | fields
        email = SendEmail.model_validate(values)
        await self.ledger.record_accepted(
            email,
            app="shop",
            content_hash=email.content_hash(),
            ticket_id=email.id,
            stream="normal",
            message_id=f"<{email.id}@example.com>",
        )
        return email

    async def told(self) -> list[dict[str, Any]]:
        """The emails in the ledger that are notices, as the list has them."""
        return [row for row in await Lists(self.database).newest("emails") if row["template"] == "notices"]

    async def octets(self, email_id: str) -> bytes:
        record = await self.ledger.email(email_id)
        assert record is not None
        assert record.octets is not None
        assert record.return_path == ""
        return record.octets

    async def steps(self, mail_id: str) -> list[str]:
        story = await self.mails.story(mail_id)
        assert story is not None
        return [line["step"] for line in story["timeline"]]

    def take_store_away(self) -> None:
        for path in self.folder.glob("store.db*"):
            if path.is_file():
                shutil.move(path, self.folder / f"away-{path.name}")

    def bring_store_back(self) -> None:
        for path in self.folder.glob("away-*"):
            shutil.move(path, self.folder / path.name.removeprefix("away-"))


async def open_desk(folder: Path, clock: Clock, cage: Cage, stack: AsyncExitStack) -> Desk:
    database = await open_database(f"sqlite:///{folder}/store.db")
    stack.push_async_callback(database.close)
    blobs, log, relay, issued = FileBlobStore(folder / "blobs"), MailLog(stream=StringIO()), KeepingRelay(), []
    templates = TemplateSet([TEMPLATES])
    notices = Notices(database, blobs, clock=clock, hostname=HOSTNAME)
    outage = await stack.enter_async_context(OutageLedger(folder / "outage.db", clock=clock, delays=DELAYS))

    async def filled(template: str, params: dict[str, Any], locale: str) -> Rendered:
        return await fill(template, params, locale, cage=cage, templates=templates)

    async def issue(email_id: str) -> None:
        issued.append(email_id)

    teller = Teller(
        database=database,
        notices=notices,
        outage=outage,
        writer=NoticeWriter(HOUSE, filled),
        relay=relay,
        issue=issue,
        log=log,
        clock=clock,
    )
    return Desk(
        folder=folder,
        clock=clock,
        database=database,
        mails=Mails(database, blobs, clock=clock, hostname=HOSTNAME, notice_delays=DELAYS),
        ledger=DatabaseLedger(database, blobs, clock=clock, hostname=HOSTNAME, return_path="bounces@example.com"),
        notices=notices,
        outage=outage,
        relay=relay,
        teller=teller,
        log=log,
        issued=issued,
    )


@pytest.fixture
async def cage() -> AsyncIterator[Cage]:
    async with Cage(children=1, preload=PRELOAD) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def desk(tmp_path: Path, clock: Clock, cage: Cage) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        yield await open_desk(tmp_path, clock, cage, stack)
