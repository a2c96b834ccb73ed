"""Tickets of mails that end as dead letters: their recipients are told so, and nobody else's rows are touched."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import House

from gateway.errors import FaultOwner, PermanentFailure, StoreUnavailable, TransientFailure
from gateway.inbound.mailbox import Context, Outcome, ReceivedMail
from gateway.inbound.mailboxes.posts import Posts
from gateway.inbound.replay import replay_tickets
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.queue.broker import Done
from gateway.queue.ticket import MAIL_INBOUND, Ticket

LARGE = b"Subject: x\r\n\r\n" + b"many words\r\n" * 50_000
BOTH = ("broken@localhost", "posts@localhost")


def envelope(*rcpt_to: str) -> Envelope:
    received_at = datetime(2026, 1, 1, tzinfo=UTC)
    return Envelope(mail_id="", mail_from="ann@example.org", rcpt_to=rcpt_to, received_at=received_at, door="smtp")


async def accept(house: House, octets: bytes, *rcpt_to: str) -> Ticket:
    await house.intake().accept(envelope(*rcpt_to), octets)
    (ticket,) = await house.tickets()
    return ticket


async def rows(house: House) -> list[tuple[Any, ...]]:
    assert house.mails is not None
    return [(row["rcpt_to"], row["disposition"], row["size"]) for row in await house.lists.newest("mails")]


class Raises:
    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        raise KeyError("bug")


async def test_a_mail_whose_blob_vanished_before_its_first_turn_ends_dead_and_shown(house: House) -> None:
    ingest = await house.open_ingest(ladder="1s")
    house.mailboxes["broken"] = Posts()
    ticket = await accept(house, LARGE, *BOTH)
    (blob,) = (house.folder / "blobs").glob("??/*")
    blob.rename(house.folder / "elsewhere")
    with pytest.raises(TransientFailure, match="is not in the store"):
        await ingest.handle(ticket)
    assert await rows(house) == [], "the ladder is climbed first"
    last = Ticket(queue=MAIL_INBOUND, id=ticket.id, body=b"", headers=ticket.headers, attempt=1)
    with pytest.raises(TransientFailure, match="is not in the store"):
        await ingest.handle(last)
    assert await rows(house) == [(rcpt_to, "dead", len(LARGE)) for rcpt_to in BOTH]

    (house.folder / "elsewhere").rename(blob)
    assert house.mails is not None
    mail = await house.mails.stored(ticket.id)
    assert mail is not None
    for again in replay_tickets(mail, BOTH):
        assert await ingest.handle(again) == Done()
    assert await rows(house) == [(rcpt_to, "delivered", len(LARGE)) for rcpt_to in BOTH]


async def test_a_recipient_whose_retry_lost_its_blob_does_not_stay_pending_for_ever(house: House) -> None:
    house.mailboxes["broken"] = Raises()
    ingest = await house.open_ingest(ladder="1s")
    published: list[Ticket] = []

    async def publish(tickets: Any) -> None:
        published.extend(tickets)

    ingest._publish = publish
    await ingest.handle(await accept(house, LARGE, *BOTH))
    (retry,) = published
    for blob in (house.folder / "blobs").glob("??/*"):
        blob.unlink()
    with pytest.raises(TransientFailure, match="is not in the store"):
        await ingest.handle(retry)
    assert await rows(house) == [(BOTH[0], "dead", len(LARGE)), (BOTH[1], "delivered", len(LARGE))]


@pytest.mark.parametrize("is_mount_point", [True, False])
async def test_while_the_blob_store_is_not_there_a_large_mail_waits_and_spends_no_attempt(
    house: House, is_mount_point: bool
) -> None:
    ingest = await house.open_ingest(ladder="1s")
    ticket = await accept(house, LARGE, "posts@localhost")
    (house.folder / "blobs").rename(house.folder / "elsewhere")
    if is_mount_point:
        (house.folder / "blobs").mkdir()
    last = Ticket(queue=MAIL_INBOUND, id=ticket.id, body=b"", headers=ticket.headers, attempt=9)
    with pytest.raises(StoreUnavailable, match="the store is not there"):
        await ingest.handle(last)
    assert await rows(house) == []
    if is_mount_point:
        (house.folder / "blobs").rmdir()
    (house.folder / "elsewhere").rename(house.folder / "blobs")
    assert await ingest.handle(last) == Done()
    assert await rows(house) == [("posts@localhost", "delivered", len(LARGE))]


async def test_a_damaged_blob_climbs_the_ladder_and_heals_when_the_mail_comes_again(house: House) -> None:
    ingest = await house.open_ingest(ladder="1s")
    ticket = await accept(house, LARGE, "posts@localhost")
    (path,) = (house.folder / "blobs").glob("??/*")
    path.write_bytes(b"x" * len(LARGE))
    last = Ticket(queue=MAIL_INBOUND, id=ticket.id, body=b"", headers=ticket.headers, attempt=1)
    for turn in (ticket, last):
        with pytest.raises(TransientFailure, match="is damaged") as caught:
            await ingest.handle(turn)
        assert caught.value.owner is FaultOwner.CONTENT, "it climbs the ladder"
    assert await rows(house) == [("posts@localhost", "dead", len(LARGE))]
    await house.intake().accept(envelope("posts@localhost"), LARGE)
    assert await ingest.handle(ticket) == Done()
    assert await rows(house) == [("posts@localhost", "delivered", len(LARGE))]


async def test_what_no_turn_could_work_is_recorded_dead_with_the_last_one(house: House) -> None:
    ingest = await house.open_ingest(ladder="1s")
    ticket = await accept(house, b"Subject: x\r\n\r\nx\r\n", "posts@localhost")

    async def read(*given: Any) -> Any:
        raise ZeroDivisionError("a bug of ours")

    ingest.decider.read = read  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        await ingest.handle(ticket)
    last = Ticket(queue=MAIL_INBOUND, id=ticket.id, body=ticket.body, headers=ticket.headers, attempt=1)
    with pytest.raises(ZeroDivisionError):
        await ingest.handle(last)
    assert await rows(house) == [("posts@localhost", "dead", 17)]


@pytest.mark.parametrize("id", ["", "m", "0193A1B2-0000-7000-8000-00000000000"])
async def test_a_ticket_without_a_mail_id_is_a_dead_letter(id: str, house: House) -> None:
    ingest = await house.open_ingest()
    headers = envelope("posts@localhost").to_headers()
    with pytest.raises(PermanentFailure, match="no mail: id"):
        await ingest.handle(Ticket(queue=MAIL_INBOUND, id=id, body=b"x\r\n", headers=headers))
    assert await rows(house) == []


async def test_another_mail_under_a_known_id_is_a_dead_letter_not_a_redelivery(house: House) -> None:
    ingest = await house.open_ingest()
    house.mailboxes["broken"] = Raises()
    id, headers = new_id(), envelope(*BOTH).to_headers()
    await ingest.handle(Ticket(queue=MAIL_INBOUND, id=id, body=b"Subject: first\r\n\r\n1\r\n", headers=headers))
    before = await rows(house)
    other = Ticket(queue=MAIL_INBOUND, id=id, body=b"Subject: second\r\n\r\n2\r\n", headers=headers)
    with pytest.raises(PermanentFailure, match="is another mail's id"):
        await ingest.handle(other)
    assert await rows(house) == before, "the first mail's recipient goes on waiting"
