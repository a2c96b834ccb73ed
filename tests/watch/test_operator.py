"""The operator's desk: each action changes what it says, leaves the rest alone, and is noted with who did it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.contract.email_send import SendEmail
from gateway.errors import PermanentFailure
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.queue.broker import Dead, Done
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import EMAIL_SEND, MAIL_INBOUND, Ticket
from gateway.runtime import utc_now
from gateway.store import outbox
from gateway.store.accounting import Accounting
from gateway.store.blobs import FileBlobStore
from gateway.store.database import open_database
from gateway.store.decisions import Decisions
from gateway.store.emails import DatabaseLedger
from gateway.store.mails import Mails
from gateway.watch.operator import Operator
from gateway.watch.reconcile import reconcile

ANN, BEN = "ann@localhost", "ben@localhost"
OCTETS = b"Subject: hello\r\n\r\nhello\r\n"


class Desk:
    """A store, a queue and an operator called Olga."""

    def __init__(self, operator: Operator, database: Any) -> None:
        self.operator = operator
        self.mails, self.ledger, self.broker = operator.mails, operator.ledger, operator.broker
        self.database = database

    async def held_mail(self) -> str:
        mail_id = new_id()
        envelope = Envelope(
            mail_id=mail_id, mail_from="v@example.org", rcpt_to=(ANN, BEN), received_at=utc_now(), door="t"
        )
        await self.mails.record_received(envelope, OCTETS, len(OCTETS), "0" * 64, subject="hello")
        await self.mails.record_held(mail_id, ANN, "posts", "unproven")
        await self.mails.record_failed(mail_id, BEN, "posts", "refused")
        return mail_id

    async def email(self) -> str:
        email = SendEmail(to=(ANN,), subject="s", text="t")
        facts = {"app": "shop", "ticket_id": email.id, "stream": "normal", "message_id": f"<{email.id}@mx.test>"}
        await self.ledger.record_accepted(email, content_hash=email.content_hash(), **facts)
        return email.id

    async def die(self, ticket: Ticket) -> str:
        """Makes a dead letter of a ticket; returns its number."""
        await self.broker.publish([ticket])
        async with self.broker.consume({ticket.queue: 1}, concurrency=1) as consumer:
            async for lease in consumer:
                await lease.settle(Dead(reason="it broke"))
                break
        return (await self.broker.dead())[-1].number

    async def tickets(self, queue: str, count: int) -> list[Ticket]:
        found: list[Ticket] = []
        async with self.broker.consume({queue: 1}, concurrency=1) as consumer:
            async for lease in consumer:
                found.append(lease.ticket)
                await lease.settle(Done())
                if len(found) == count:
                    break
        return found

    async def state(self, item: str) -> dict[str, str]:
        kind, _ = await self.operator.the_one(item)
        told = await (self.mails.story if kind == "mail" else self.ledger.story)(item)
        return {row.get("rcpt_to") or row["recipient"]: row["disposition"] for row in told["recipients"]}

    async def noted(self, item: str) -> list[tuple[str, str]]:
        """The steps that name somebody, with whom."""
        kind, _ = await self.operator.the_one(item)
        told = await (self.mails.story if kind == "mail" else self.ledger.story)(item)
        return [(line["step"], line["data"]["by"]) for line in told["timeline"] if "by" in line["data"]]

    async def events(self) -> list[str]:
        found = await self.database.read(lambda connection: outbox.unpublished(connection, limit=100))
        return [item.type for item in found]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        database = await open_database(f"sqlite:///{tmp_path}/store.db")
        stack.push_async_callback(database.close)
        broker = await stack.enter_async_context(SqliteBroker(tmp_path / "queue.db"))
        common = {"clock": utc_now, "hostname": "mx.test"}
        blobs = FileBlobStore(tmp_path / "blobs")
        operator = Operator(
            mails=Mails(database, blobs, **common),
            ledger=DatabaseLedger(database, blobs, **common),
            decisions=Decisions(database, **common),
            broker=broker,
            by="olga",
        )
        yield Desk(operator, database)


async def test_an_email_is_held_and_let_go_and_a_mail_is_not_held_by_hand(desk: Desk) -> None:
    email_id, mail_id = await desk.email(), await desk.held_mail()
    assert await desk.operator.hold(email_id) == 1
    assert await desk.state(email_id) == {ANN: "held"}
    assert await desk.operator.hold(email_id) == 0
    assert await desk.operator.release(email_id) == 1
    assert await desk.noted(email_id) == [("held", "olga"), ("released", "olga")]
    with pytest.raises(PermanentFailure, match="only emails can be held"):
        await desk.operator.hold(mail_id)


async def test_a_held_mail_is_released_by_a_ticket_that_says_so(desk: Desk) -> None:
    mail_id = await desk.held_mail()
    assert await desk.operator.release(mail_id[:23]) == 1
    (ticket,) = await desk.tickets(MAIL_INBOUND, 1)
    assert (ticket.id, ticket.headers["rcpt_to"], ticket.headers["released"]) == (mail_id, [ANN], True)
    assert await desk.noted(mail_id) == [("release_asked", "olga")]


async def test_discarding_a_held_mail_ends_what_is_held_of_it_and_nothing_else(desk: Desk) -> None:
    mail_id = await desk.held_mail()
    assert await desk.operator.discard(mail_id) == 1
    assert await desk.state(mail_id) == {ANN: "discarded", BEN: "failed"}
    assert await desk.noted(mail_id) == [("discarded", "olga")]
    assert (await desk.events())[-1] == "mail.discarded"
    assert await desk.operator.discard(mail_id) == 0, "twice is once"
    assert await desk.mails.octets(mail_id) == OCTETS


async def test_a_held_email_is_released_or_discarded(desk: Desk) -> None:
    kept, thrown = await desk.email(), await desk.email()
    for email_id in (kept, thrown):
        await desk.ledger.record_held(email_id, reason="the template broke")
    assert await desk.operator.release(kept) == 1
    assert await desk.operator.discard(thrown) == 1
    assert (await desk.state(kept), await desk.state(thrown)) == ({ANN: "pending"}, {ANN: "cancelled"})
    assert await desk.noted(kept) == [("released", "olga")]
    assert await desk.noted(thrown) == [("cancelled", "olga")]
    assert await desk.operator.discard(kept) == 0, "it is not held any more"


async def test_a_replay_names_who_asked_and_takes_the_dead_letter_away(desk: Desk) -> None:
    mail_id = await desk.held_mail()
    await desk.die(Ticket(queue=MAIL_INBOUND, id=mail_id, body=b"", headers={"rcpt_to": [BEN]}))
    lines = await desk.operator.replay([mail_id])
    assert [line["action"] for line in lines] == ["replayed", "replayed"]
    assert await desk.noted(mail_id) == [("replay_asked", "olga")]
    assert await desk.broker.dead() == []
    assert len(await desk.tickets(MAIL_INBOUND, 2)) == 2


async def test_a_dead_letter_goes_back_into_its_queue_and_its_story_says_who_did_it(desk: Desk) -> None:
    email_id = await desk.email()
    number = await desk.die(Ticket(queue=EMAIL_SEND, id=email_id, body=b"{}"))
    assert await desk.operator.retry_dead(number)
    assert await desk.noted(email_id) == [("retry_asked", "olga")]
    assert [ticket.id for ticket in await desk.tickets(EMAIL_SEND, 1)] == [email_id]
    assert not await desk.operator.retry_dead(number)


async def test_a_dropped_dead_letter_ends_the_recipients_it_stood_for(desk: Desk) -> None:
    email_id, mail_id = await desk.email(), await desk.held_mail()
    await desk.ledger.record_dead(email_id, reason="it broke", ticket_id=email_id)
    await desk.mails.record_dead(mail_id, ANN, "posts", "it broke")
    letters = [
        Ticket(queue=EMAIL_SEND, id=email_id, body=b"{}"),
        Ticket(queue=MAIL_INBOUND, id=mail_id, body=b"", headers={"rcpt_to": [ANN]}),
    ]
    for letter in letters:
        assert await desk.operator.drop_dead(await desk.die(letter))
    assert await desk.broker.dead() == []
    assert await desk.state(email_id) == {ANN: "cancelled"}
    assert await desk.state(mail_id) == {ANN: "discarded", BEN: "failed"}
    assert await desk.noted(email_id) == [("drop_asked", "olga"), ("cancelled", "olga")]


async def test_a_row_that_is_lost_is_named_also_where_a_dead_letter_of_its_mail_was_dropped(desk: Desk) -> None:
    mail_id, email_id = await desk.held_mail(), await desk.email()
    await desk.mails.record_dead(mail_id, ANN, "posts", "it broke")
    unknown = new_id()
    letters = [
        Ticket(queue=MAIL_INBOUND, id=mail_id, body=b"", headers={"rcpt_to": [ANN, BEN]}),
        Ticket(queue=EMAIL_SEND, id=email_id, body=b"{}"),
        Ticket(queue=MAIL_INBOUND, id=unknown, body=b"", headers={"rcpt_to": [ANN, BEN]}),
    ]
    for letter in letters:
        assert await desk.operator.drop_dead(await desk.die(letter))
    assert (await reconcile(desk.broker, Accounting(desk.database))).is_balanced
    for table, column, item in (("deliveries", "mail_id", mail_id), ("email_recipients", "email_id", email_id)):
        remove = sa.text(
            f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE {column} = :item LIMIT 1)"
        )
        await desk.database.write(
            lambda connection, remove=remove, item=item: connection.execute(remove, {"item": item}) and None
        )
    missing = (await reconcile(desk.broker, Accounting(desk.database))).missing
    assert {item.id for item in missing} == {mail_id, email_id}


async def test_dropping_leaves_alone_what_another_ticket_works(desk: Desk) -> None:
    email_id = await desk.email()
    number = await desk.die(Ticket(queue=EMAIL_SEND, id=email_id, body=b"{}"))
    assert await desk.operator.drop_dead(number)
    assert await desk.state(email_id) == {ANN: "pending"}


async def test_cancelling_names_who_did_it_and_leaves_mails_alone(desk: Desk) -> None:
    email_id, mail_id = await desk.email(), await desk.held_mail()
    assert (await desk.operator.cancel(email_id), await desk.operator.cancel(mail_id)) == (1, 0)
    assert await desk.noted(email_id) == [("cancelled", "olga")]
    with pytest.raises(PermanentFailure, match="nothing is known of ffff"):
        await desk.operator.cancel("ffff")
