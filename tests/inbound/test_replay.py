"""Replay and release: what was held, failed or dead goes its way again from the octets as received; the rest is left alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from conftest import House

from gateway.inbound.mailbox import Context, Hold, Outcome, ReceivedMail, Refuse
from gateway.inbound.mailboxes.posts import Posts, post_of
from gateway.inbound.replay import is_replayable, replay_tickets
from gateway.mail.envelope import Envelope
from gateway.queue.ticket import Ticket

BOTH = ("broken@localhost", "posts@localhost")


class Decided:
    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        return self.outcome


class WaitsForRelease:
    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        return post_of(mail) if context.is_released else Hold(reason="unproven")


async def taken(house: House, octets: bytes = b"Subject: x\r\n\r\nwords\r\n") -> Ticket:
    """Brings a mail to both recipients; returns its ticket."""
    ingest = house.ingest or await house.open_ingest()
    received_at = datetime(2026, 1, 1, tzinfo=UTC)
    envelope = Envelope(mail_id="", mail_from="ann@example.org", rcpt_to=BOTH, received_at=received_at, door="smtp")
    await house.intake().accept(envelope, octets)
    (ticket,) = await house.tickets()
    await ingest.handle(ticket)
    return ticket


async def replayed(house: House, mail_id: str, **values: Any) -> list[Ticket]:
    assert house.mails is not None
    assert house.ingest is not None
    mail = await house.mails.stored(mail_id)
    assert mail is not None
    rows = await house.mails.deliveries(mail_id)
    tickets = replay_tickets(mail, [row.rcpt_to for row in rows if is_replayable(row)], **values)
    for ticket in tickets:
        await house.ingest.handle(ticket)
    return tickets


async def state(house: House, mail_id: str) -> dict[str, str]:
    assert house.mails is not None
    return {row.rcpt_to: str(row.disposition) for row in await house.mails.deliveries(mail_id)}


async def test_a_failed_recipient_is_processed_anew_and_the_delivered_one_left_alone(house: House) -> None:
    house.mailboxes["broken"] = Decided(Refuse(reason="no"))
    mail_id = (await taken(house)).id
    assert await state(house, mail_id) == {BOTH[0]: "failed", BOTH[1]: "delivered"}
    house.mailboxes["broken"] = Posts()
    tickets = await replayed(house, mail_id)
    assert [ticket.headers["rcpt_to"] for ticket in tickets] == [[BOTH[0]]]
    assert await state(house, mail_id) == {BOTH[0]: "delivered", BOTH[1]: "delivered"}
    assert house.ingest is not None
    assert house.mails is not None
    await house.ingest.handle(tickets[0])
    assert await replayed(house, mail_id) == [], "twice is once"
    assert len(await house.lists.newest("posts")) == 2
    story = await house.mails.story(mail_id)
    assert story is not None
    steps = [line["step"] for line in story["timeline"] if line["recipient"] == BOTH[0]]
    assert steps == ["failed", "replayed", "delivered"]


async def test_a_large_mail_is_replayed_from_its_blob(house: House) -> None:
    house.mailboxes["broken"] = Decided(Hold(reason="wait"))
    octets = b"Subject: x\r\n\r\n" + b"many words\r\n" * 50_000
    mail_id = (await taken(house, octets)).id
    house.mailboxes["broken"] = Posts()
    (ticket,) = await replayed(house, mail_id)
    assert (ticket.body, bool(ticket.headers["blob"])) == (b"", True)
    assert (await state(house, mail_id))[BOTH[0]] == "delivered"


async def test_a_redelivered_ticket_does_not_open_what_waits_for_a_person(house: House) -> None:
    house.mailboxes["broken"] = Decided(Hold(reason="wait"))
    ticket = await taken(house)
    house.mailboxes["broken"] = Posts()
    assert house.ingest is not None
    await house.ingest.handle(ticket)
    assert (await state(house, ticket.id))[BOTH[0]] == "held"


async def test_a_mailbox_hears_of_a_release_and_may_hold_a_mere_replay_again(house: House) -> None:
    house.mailboxes["broken"] = WaitsForRelease()
    mail_id = (await taken(house)).id
    await replayed(house, mail_id)
    assert (await state(house, mail_id))[BOTH[0]] == "held"
    await replayed(house, mail_id, is_release=True)
    assert (await state(house, mail_id))[BOTH[0]] == "delivered"


async def test_a_buried_ticket_leaves_its_open_recipients_dead_and_a_retry_of_it_works_them(house: House) -> None:
    ingest = await house.open_ingest()
    received_at = datetime(2026, 1, 1, tzinfo=UTC)
    envelope = Envelope(mail_id="", mail_from="ann@example.org", rcpt_to=BOTH, received_at=received_at, door="smtp")
    house.mailboxes["broken"] = Posts()
    mail_id = await house.intake().accept(envelope, b"Subject: x\r\n\r\nwords\r\n")
    (ticket,) = await house.tickets()
    await ingest.bury(ticket, "it kills")
    assert await state(house, mail_id) == dict.fromkeys(BOTH, "dead")
    await ingest.handle(ticket)
    assert await state(house, mail_id) == dict.fromkeys(BOTH, "delivered")
    await ingest.bury(Ticket(queue="mail.inbound", id="x", body=b"", headers={}), "no mail at all")
