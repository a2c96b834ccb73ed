"""Counting on real files: what was kept is accounted for wherever it lies, and what is lost is named; nothing else is."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest

from gateway.client import Client
from gateway.contract.post_create import CreatePost
from gateway.errors import Problem
from gateway.inbound.intake import Intake
from gateway.inbound.replay import replay_tickets
from gateway.inbound.router import MailboxRoute, Router
from gateway.mail.envelope import Envelope
from gateway.maillog import MailLog
from gateway.queue.broker import Dead, Done, Lease
from gateway.queue.receipts import ReceiptFile
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import EMAIL_SEND, MAIL_INBOUND, POST_CREATE, Ticket
from gateway.runtime import Stop, utc_now
from gateway.store.accounting import Accounting
from gateway.store.blobs import FileBlobStore
from gateway.store.database import Database, open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.mails import Mails
from gateway.store.posts import NewPost
from gateway.watch.reconcile import Balance, reconcile
from gateway.watch.sweeper import prune_receipts, sweep

POST = NewPost(
    mailbox="posts",
    kind="post",
    author="Ann",
    author_address="ann@example.org",
    title="Hello",
    text="words",
    html=None,
    created_at=datetime(2026, 1, 5, tzinfo=UTC),
)


@dataclass
class Office:
    """A queue and a store in one folder, and the verbs of those who work there."""

    folder: Path
    broker: SqliteBroker
    database: Database
    mails: Mails
    ledger: DatabaseLedger
    intake: Intake
    client: Client

    async def balance(self) -> Balance:
        return await reconcile(self.broker, Accounting(self.database))

    async def missing(self) -> list[str]:
        return [item.id for item in (await self.balance()).missing]

    async def mail(self, *rcpt_to: str) -> str:
        envelope = Envelope(
            mail_id="", mail_from="ann@example.org", rcpt_to=rcpt_to, received_at=datetime.now(UTC), door="smtp"
        )
        return await self.intake.accept(envelope, b"Subject: hello\r\n\r\nwords\r\n")

    async def email(self, *to: str) -> str:
        return await self.client.send("welcome", to=to, params={"name": "Ann"})

    async def work(self, count: int) -> None:
        """Works that many tickets as the real handlers do: record, then ack."""
        queues = {MAIL_INBOUND: 1, EMAIL_SEND: 1, POST_CREATE: 1}
        async with self.broker.consume(queues, concurrency=4) as consumer:
            for _ in range(count):
                await self.finish(await anext(aiter(consumer)))

    async def finish(self, lease: Lease) -> None:
        ticket = lease.ticket
        if ticket.queue == MAIL_INBOUND:
            await self.record_mail(ticket)
        elif ticket.queue == EMAIL_SEND:
            await self.record_email(ticket)
        else:
            post_id = json.loads(ticket.body)["id"]
            await self.mails.record_posted(POST, post_id=post_id, app="", content_hash="hash")
        await lease.settle(Done())

    async def record_mail(self, ticket: Ticket) -> None:
        envelope = Envelope.from_headers(ticket.id, ticket.headers)
        await self.mails.record_received(envelope, ticket.body, len(ticket.body), "digest")
        for rcpt_to in envelope.rcpt_to:
            await self.mails.record_delivered(ticket.id, rcpt_to, "posts", POST)

    async def record_email(self, ticket: Ticket) -> None:
        from gateway.contract.email_send import parse_send_email

        request = parse_send_email(ticket.body)
        facts = {"app": "", "content_hash": "hash", "stream": "normal", "message_id": f"<{request.id}@localhost>"}
        await self.ledger.record_accepted(request, ticket_id=request.id, **facts)

    def by_hand(self, file: str, *statements: str) -> None:
        """What nobody should do."""
        connection = sqlite3.connect(self.folder / file, timeout=20)
        with connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    router = Router([MailboxRoute(address="*@localhost", kind="posts")], domains=["localhost"])
    log = MailLog(stream=StringIO())
    blobs = FileBlobStore(tmp_path / "blobs")
    async with SqliteBroker(tmp_path / "queue.db") as broker, Client(broker=broker) as client:
        database = await open_database(f"sqlite:///{tmp_path}/store.db")
        yield Office(
            folder=tmp_path,
            broker=broker,
            database=database,
            mails=Mails(database, blobs, clock=utc_now, hostname="localhost"),
            ledger=DatabaseLedger(database, blobs=blobs, clock=utc_now, hostname="localhost"),
            intake=Intake(router, broker, blobs, data_dir=tmp_path, clock=utc_now, log=log),
            client=client,
        )
        await database.close()


def people(count: int) -> Sequence[str]:
    return [f"p{number}@localhost" for number in range(count)]


async def test_it_balances_before_between_and_after_the_work(office: Office) -> None:
    for number in range(3):
        await office.mail("posts@localhost", f"p{number}@localhost", "posts@localhost")
        await office.email(f"ann{number}@example.org", f"bob{number}@example.org")
    await office.mail(*people(250))  # three tickets, one mail
    await office.client.create_post(author="Ann", title="Hello", text="words")
    for worked in (0, 4, 6):
        await office.work(worked)
        balance = await office.balance()
        assert balance.as_row() == {"accepted": 8, "accounted": 8, "missing": [], "extra": 0}
    assert [depth for depth in await office.broker.depths() if depth.ready + depth.leased] == []


async def test_a_ticket_removed_by_hand_is_named(office: Office) -> None:
    kept, lost = await office.mail("posts@localhost"), await office.mail("posts@localhost")
    lost_email = await office.email("ann@example.org")
    office.by_hand("queue.db", f"DELETE FROM tickets WHERE id IN ('{lost}', '{lost_email}')")
    balance = await office.balance()
    assert balance.as_row() == {"accepted": 3, "accounted": 1, "missing": [lost, lost_email], "extra": 0}
    assert {item.finding for item in balance.missing} == {"neither in the store nor in the queue"}
    await office.work(1)
    assert await office.missing() == [lost, lost_email]
    assert kept not in await office.missing()


async def test_a_row_removed_by_hand_is_named(office: Office) -> None:
    mail, half, email, half_email = (
        await office.mail("posts@localhost"),
        await office.mail("a@localhost", "b@localhost"),
        await office.email("ann@example.org"),
        await office.email("ann@example.org", "bob@example.org"),
    )
    post = await office.client.create_post(author="Ann", title="Hello", text="words")
    await office.work(5)
    assert (await office.balance()).is_balanced
    office.by_hand(
        "store.db",
        f"DELETE FROM deliveries WHERE mail_id = '{mail}'",
        f"DELETE FROM deliveries WHERE mail_id = '{half}' AND rcpt_to = 'b@localhost'",
        f"DELETE FROM email_recipients WHERE email_id = '{email}'",
        f"DELETE FROM emails WHERE id = '{email}'",
        f"DELETE FROM email_recipients WHERE email_id = '{half_email}' AND recipient = 'bob@example.org'",
        f"DELETE FROM posts WHERE id = '{post}'",
    )
    balance = await office.balance()
    assert {item.id: item.kind for item in balance.missing} == {
        mail: "mail",
        half: "mail",
        email: "email",
        half_email: "email",
        post: "post",
    }
    findings = {item.id: item.finding for item in balance.missing}
    assert findings[half] == findings[half_email] == "the store has 1 of 2 recipients, the queue none"


async def test_a_pending_mail_without_a_ticket_is_named_with_its_cure_and_balances_after_it(office: Office) -> None:
    mail = await office.mail("posts@localhost")
    async with office.broker.consume({MAIL_INBOUND: 1}, concurrency=1) as consumer:
        lease = await anext(aiter(consumer))
        envelope = Envelope.from_headers(mail, lease.ticket.headers)
        await office.mails.record_received(envelope, lease.ticket.body, len(lease.ticket.body), "digest")
        assert await office.missing() == []
        await lease.settle(Done())
    [item] = (await office.balance()).missing
    assert (item.id, item.finding) == (mail, f"1 pending, and no ticket will work it: gateway replay {mail}")
    stored = await office.mails.stored(mail)
    assert stored is not None
    await office.broker.publish(replay_tickets(stored, ["posts@localhost"]))
    assert (await office.balance()).as_row() == {"accepted": 1, "accounted": 1, "missing": [], "extra": 0}


async def test_dead_letters_are_accounted_for_and_those_a_person_threw_away_too(office: Office) -> None:
    await office.mail("a@localhost", "b@localhost")
    await office.email("ann@example.org")
    async with office.broker.consume({MAIL_INBOUND: 1, EMAIL_SEND: 1}, concurrency=2) as consumer:
        for _ in range(2):
            lease = await anext(aiter(consumer))
            await lease.settle(Dead(reason="a test"))
    assert (await office.balance()).is_balanced
    for letter in await office.broker.dead():
        assert await office.broker.drop_dead(letter.number)
        assert not await office.broker.drop_dead(letter.number)
    assert (await office.balance()).as_row() == {"accepted": 2, "accounted": 2, "missing": [], "extra": 0}


async def test_the_same_request_again_is_one_and_a_refused_one_is_accounted_for(office: Office) -> None:
    email = await office.email("ann@example.org")
    await office.client.send("welcome", to="ann@example.org", params={"name": "Ann"}, id=email)
    post = CreatePost(author="Ann", title="Hello", text="words")
    await office.client.create_post(post)
    office.by_hand("queue.db", "DELETE FROM tickets")  # as if a worker had done what follows
    await office.ledger.record_rejected(email, app="", problems=[Problem("to", "no")])
    await office.mails.record_post_rejected(post.id, app="", problems=[Problem("title", "no")])
    assert (await office.balance()).as_row() == {"accepted": 2, "accounted": 2, "missing": [], "extra": 0}


async def test_what_has_no_receipt_is_extra_and_harmless(office: Office) -> None:
    await office.mail("posts@localhost")
    await office.email("ann@example.org")
    await office.work(2)
    await prune_receipts(office.broker.receipts, utc_now() - timedelta(days=8))
    assert (await office.balance()).as_row() == {"accepted": 2, "accounted": 2, "missing": [], "extra": 0}
    await prune_receipts(office.broker.receipts, utc_now() + timedelta(seconds=2))
    assert (await office.balance()).as_row() == {"accepted": 0, "accounted": 0, "missing": [], "extra": 2}
    code, row, said = await asyncio.to_thread(counted, office.folder)
    assert (code, row["extra"]) == (0, 2)
    assert said.startswith("gateway: 2 extra, without a receipt of this host: notices, published by an app itself")


async def test_nothing_is_called_missing_while_traffic_flows(office: Office) -> None:
    stopping = False
    kept = 0

    async def fill() -> None:
        nonlocal kept
        while not stopping:
            await asyncio.gather(office.mail("a@localhost", "b@localhost"), office.email("ann@example.org"))
            kept += 2

    async def work() -> None:
        async with office.broker.consume({MAIL_INBOUND: 1, EMAIL_SEND: 1}, concurrency=4) as consumer:
            async for lease in consumer:
                await office.finish(lease)

    filling, working = asyncio.create_task(fill()), asyncio.create_task(work())
    try:
        while kept < 40:
            balance = await office.balance()
            assert balance.is_balanced, balance.missing
    finally:
        stopping = True
        await filling
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
    assert (await office.balance()).accepted == kept >= 40


async def test_an_engine_without_a_file_keeps_them_in_one_of_this_host(tmp_path: Path) -> None:
    mail = Ticket(queue=MAIL_INBOUND, id="m1", body=b"", headers={"rcpt_to": ["a@localhost", "b@localhost"]})
    more = Ticket(queue=MAIL_INBOUND, id="m1", body=b"", headers={"rcpt_to": ["c@localhost"]})
    retry = Ticket(queue=f"{EMAIL_SEND}.retry", id="e0", body=b"{}")
    email = Ticket(queue=EMAIL_SEND, id="e1", body=b"{}")
    async with ReceiptFile(tmp_path / "receipts.db") as receipts:
        await receipts.keep([mail, more, retry], datetime(2026, 1, 5, tzinfo=UTC))
        await receipts.keep([email, mail], datetime(2026, 1, 6, tzinfo=UTC))
        await receipts.note_dropped(more)
        until = await receipts.last()
        found = await receipts.page(after=0, until=until, limit=10)
        assert [(item.name, item.recipients, item.dropped) for item in found] == [
            (("mail", "m1"), 3, 1),
            (("email", "e1"), 0, 0),
        ]
        assert await receipts.prune(datetime(2026, 1, 6, tzinfo=UTC), limit=10) == 1
        assert [item.id for item in await receipts.page(after=0, until=until, limit=10)] == ["e1"]


async def test_the_sweeper_forgets_receipts_past_their_time(office: Office) -> None:
    await office.mail("posts@localhost")
    stop = Stop()
    until = await office.broker.receipts.last()

    async def receipts() -> int:
        return len(await office.broker.receipts.page(after=0, until=until, limit=10))

    def in_nine_days() -> datetime:
        stop.set()  # one round is enough
        return utc_now() + timedelta(days=9)

    assert await receipts() == 1
    await sweep(
        office.ledger,
        office.broker,
        stop=stop,
        clock=in_nine_days,
        log=MailLog(stream=StringIO()),
        interval_seconds=0.01,
        receipts=office.broker.receipts,
    )
    assert await receipts() == 0


def counted(folder: Path) -> tuple[int, dict[str, object], str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    command = [sys.executable, "-m", "gateway.cli", "--set", f"data_dir={folder}", "reconcile", "--json"]
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


async def test_the_command_says_yes_no_or_later_by_its_exit_code(office: Office) -> None:
    code, row, _ = await asyncio.to_thread(counted, office.folder)
    assert (code, row) == (0, {"accepted": 0, "accounted": 0, "missing": [], "extra": 0})
    mail = await office.mail("posts@localhost")
    await office.email("ann@example.org")
    await office.work(1)
    assert (await asyncio.to_thread(counted, office.folder))[0] == 0
    await office.work(1)
    locked_away = office.folder / "elsewhere"
    locked_away.mkdir()
    for path in office.folder.glob("store.db*"):
        path.rename(locked_away / path.name)
    code, row, said = await asyncio.to_thread(counted, office.folder)
    assert (code, row) == (75, {})
    assert "there is no store, and 2 of the 2 accepted must be in it" in said
    for path in locked_away.iterdir():
        path.rename(office.folder / path.name)
    office.by_hand("store.db", f"DELETE FROM deliveries WHERE mail_id = '{mail}'")
    code, row, said = await asyncio.to_thread(counted, office.folder)
    assert (code, row) == (1, {"accepted": 2, "accounted": 1, "missing": [mail], "extra": 0})
    assert f"gateway: mail {mail}, kept " in said
