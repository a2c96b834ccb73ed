"""Several processes on one database: whatever they do at once ends as if they had taken turns.

Each test opens the store several times, as several processes do.  SQLite makes writers take turns; PostgreSQL lets them run
side by side, and the locks of `store.locks` have to keep them apart.  Where a race must be certain, the test holds one
writer between its look and its change.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
import sqlalchemy as sa

from gateway.contract.email_send import SendEmail
from gateway.errors import ClaimLost, Problem
from gateway.mail.disposition import Disposition
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.mail.threads import ThreadClues
from gateway.reply import Reply
from gateway.store import email_rows, schema
from gateway.store.database import Database, open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.ledger import Acceptance, Claim
from gateway.store.mails import Mails
from gateway.store.posts import NewPost

ANN = "ann@example.org"
HOSTS = 3
OK = Reply(code=250, enhanced_status="2.0.0", text="ok")


@pytest.fixture
async def databases(database_url: str) -> AsyncIterator[list[Database]]:
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(HOSTS):
            found.append(await open_database(database_url))
            stack.push_async_callback(found[-1].close)
        yield found


@pytest.fixture
def ledgers(databases, blobs, clock) -> list[DatabaseLedger]:
    return [DatabaseLedger(each, blobs, clock=clock, hostname="mx.test") for each in databases]


@pytest.fixture
def posts_rooms(databases, blobs, clock) -> list[Mails]:
    return [Mails(each, blobs, clock=clock, hostname="mx.test") for each in databases]


async def accept(ledger: DatabaseLedger, *to: str, email_id: str = "", text: str = "t") -> Acceptance:
    email = SendEmail(id=email_id or new_id(), to=to or (ANN,), subject="s", text=text)
    return await ledger.record_accepted(
        email, app="", content_hash=email.content_hash(), ticket_id="t", stream="normal", message_id="<1@mx.test>"
    )


async def rows(database: Database, query: sa.Select) -> list[sa.Row]:
    return await database.read(lambda connection: connection.execute(query).all())


async def sequences(database: Database, subject: str) -> list[str]:
    query = sa.select(schema.outbox.c.body).where(schema.outbox.c.subject == subject).order_by(schema.outbox.c.id)
    import json

    return [json.loads(row.body)["sequence"] for row in await rows(database, query)]


async def test_of_the_same_request_on_all_hosts_one_is_accepted(ledgers, databases) -> None:
    for _ in range(10):
        email_id = new_id()
        outcomes = await asyncio.gather(*(accept(each, email_id=email_id) for each in ledgers * 3))
        assert sorted(outcomes) == [Acceptance.ACCEPTED] + [Acceptance.KNOWN] * (len(outcomes) - 1)
    other = await asyncio.gather(*(accept(each, email_id=email_id, text="other") for each in ledgers))
    assert set(other) == {Acceptance.CONFLICT}


async def test_the_first_writers_bytes_are_everybodys(ledgers) -> None:
    email_id = new_id()
    await accept(ledgers[0], email_id=email_id)
    stored = await asyncio.gather(
        *(each.record_rendered(email_id, b"%d" % number) for number, each in enumerate(ledgers * 4))
    )
    assert len(set(stored)) == 1


async def test_sequence_numbers_have_no_gap_and_no_twin_and_go_out_in_order(ledgers, databases) -> None:
    email_id = new_id()
    to = [f"r{number}@example.org" for number in range(24)]
    await accept(ledgers[0], *to, email_id=email_id)

    async def relay(ledger: DatabaseLedger, recipient: str) -> None:
        claim = await ledger.claim(email_id, recipient, ticket_id="t", lifetime_seconds=60)
        assert isinstance(claim, Claim)
        await ledger.record_dot_sent(claim)
        await ledger.record_relayed(claim, relay="r", reply=OK)

    await asyncio.gather(*(relay(ledgers[number % HOSTS], each) for number, each in enumerate(to)))
    found = await sequences(databases[0], email_id)
    assert found == [f"{number:020}" for number in range(1, len(to) + 2)]


async def test_rejections_of_one_id_have_numbers_of_their_own(ledgers, databases) -> None:
    request_id = new_id()
    await asyncio.gather(
        *(
            ledgers[number % HOSTS].record_rejected(request_id, app="", problems=[Problem("to", f"wrong {number}")])
            for number in range(12)
        )
    )
    found = await sequences(databases[0], request_id)
    assert sorted(found) == [f"{number:020}" for number in range(1, 13)]


def held_after_look(monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[asyncio.Event, asyncio.Event]:
    """Holds the next caller of `email_rows.<name>` that means to change what it read, until told to go on."""
    from sqlalchemy.util import await_only

    looked, go_on = asyncio.Event(), asyncio.Event()
    real: Callable[..., object] = getattr(email_rows, name)

    def look(connection: sa.Connection, *values: object, **more: object) -> object:
        found = real(connection, *values, **more)
        if more.get("to_change") and not looked.is_set():
            looked.set()
            await_only(go_on.wait())
        return found

    monkeypatch.setattr(email_rows, name, look)
    return looked, go_on


async def test_a_dot_recorded_while_another_host_looks_at_the_dead_claim_is_never_overlooked(
    postgres_url: str, blobs, clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    databases = [await open_database(postgres_url) for _ in range(2)]
    ours, theirs = (DatabaseLedger(each, blobs, clock=clock, hostname="mx.test") for each in databases)
    email_id = new_id()
    await accept(ours, email_id=email_id)
    claim = await ours.claim(email_id, ANN, ticket_id="t", lifetime_seconds=60)
    assert isinstance(claim, Claim)
    clock.now += timedelta(seconds=61)
    looked, go_on = held_after_look(monkeypatch, "row_of")
    taking = asyncio.create_task(theirs.claim(email_id, ANN, ticket_id="u", lifetime_seconds=60))
    await looked.wait()
    dot = asyncio.create_task(ours.record_dot_sent(claim))
    await asyncio.wait([dot], timeout=0.3)
    go_on.set()
    taken = await taking
    # Whoever was first: never both a new claim and a dot of the old one.
    assert isinstance(taken, Claim)
    with pytest.raises(ClaimLost):
        await dot
    [recipient] = await ours.recipients(email_id)
    assert (recipient.copies, recipient.dot_sent_at) == (0, None)
    for each in databases:
        await each.close()


async def test_two_sweepers_share_the_work_and_do_nothing_twice(ledgers, databases, clock) -> None:
    for _ in range(30):
        await accept(ledgers[0], "a@example.org", "b@example.org")
    clock.now += timedelta(days=8)
    swept = await asyncio.gather(*(each.sweep_expired(limit=25) for each in ledgers * 4))
    again = [await each.sweep_expired() for each in ledgers]
    assert sum(swept) + sum(again) == 60
    events = sa.select(sa.func.count()).where(schema.outbox.c.type == "email.expired")
    assert (await rows(databases[0], events))[0][0] == 60


def post(clock, **values: object) -> NewPost:
    given = {"mailbox": "a@localhost", "kind": "posts", "author": "", "author_address": "", "title": "t", "text": ""}
    return NewPost(**given | {"html": None, "created_at": clock()} | values)


async def receive(mails: Mails, clock, *, content_key: str = "") -> str:
    arrived = Envelope(mail_id=new_id(), mail_from=ANN, rcpt_to=("a@localhost",), received_at=clock(), door="smtp")
    await mails.record_received(arrived, b"octets", 6, "0", content_key=content_key)
    return arrived.mail_id


async def test_a_mail_redelivered_to_all_hosts_at_once_is_kept_once(posts_rooms, databases, clock) -> None:
    for number in range(8):
        arrived = Envelope(
            mail_id=new_id(), mail_from="", rcpt_to=("a@localhost", "b@localhost"), received_at=clock(), door="smtp"
        )
        new = await asyncio.gather(*(each.record_received(arrived, b"o", 1, "0") for each in posts_rooms))
        assert sorted(new) == [False] * (HOSTS - 1) + [True]
        outcomes = await asyncio.gather(
            *(each.record_delivered(arrived.mail_id, "a@localhost", "a@localhost", post(clock)) for each in posts_rooms)
        )
        assert len({outcome.post_id for outcome in outcomes}) == 1
        assert (await rows(databases[0], sa.select(sa.func.count()).select_from(schema.posts)))[0][0] == number + 1


async def test_of_copies_that_come_at_once_one_is_delivered_and_the_others_are_its_duplicates(
    posts_rooms, databases, clock
) -> None:
    for number in range(8):
        ids = [await receive(each, clock, content_key=f"k{number}") for each in posts_rooms]
        outcomes = await asyncio.gather(
            *(
                each.record_delivered(mail_id, "a@localhost", "a@localhost", post(clock))
                for each, mail_id in zip(posts_rooms, ids, strict=True)
            )
        )
        found = sorted(outcome.disposition for outcome in outcomes)
        assert found == [Disposition.DELIVERED] + [Disposition.DUPLICATE] * (HOSTS - 1)


async def test_two_mails_of_one_subject_at_once_are_one_thread(posts_rooms, databases, clock) -> None:
    for number in range(8):
        ids = [await receive(each, clock) for each in posts_rooms]
        clues = ThreadClues(subject_key=f"s{number}", author_key=ANN)
        told = post(clock, address="help@localhost", thread=clues)
        await asyncio.gather(
            *(
                each.record_delivered(mail_id, "a@localhost", "a@localhost", told)
                for each, mail_id in zip(posts_rooms, ids, strict=True)
            )
        )
        query = sa.select(schema.posts.c.thread_id).where(schema.posts.c.subject_key == f"s{number}").distinct()
        assert len(await rows(databases[0], query)) == 1


async def test_a_post_an_app_makes_on_two_hosts_at_once_is_made_once(posts_rooms, clock) -> None:
    for _ in range(8):
        post_id = new_id()
        outcomes = await asyncio.gather(
            *(each.record_posted(post(clock), post_id=post_id, app="a", content_hash="h") for each in posts_rooms)
        )
        assert sorted(outcomes) == [Acceptance.ACCEPTED] + [Acceptance.KNOWN] * (HOSTS - 1)
