"""Ingest on the real queue, store, cage and blobs: what a mail becomes, and what it cannot do to others."""

from __future__ import annotations

import asyncio
import base64
import smtplib
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

import pytest
from conftest import House

from gateway.errors import PermanentFailure, StoreUnavailable
from gateway.inbound.mailbox import Context, Discard, Forward, Hold, Outcome, ReceivedMail, Refuse
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.queue.broker import Done
from gateway.queue.ticket import MAIL_INBOUND, Ticket, retry_queue

JPEG = bytes.fromhex("ffd8ffe000104a46494600010101004800480000ffdb004300") + b"\xff" * 64
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
BOMB = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + b"--x\r\n\r\n\r\n" * 5_000 + b"--x--\r\n"


def envelope(*rcpt_to: str) -> Envelope:
    return Envelope(
        mail_id="",
        mail_from="ann@example.org",
        rcpt_to=rcpt_to or ("posts@localhost",),
        received_at=datetime(2026, 1, 1, tzinfo=UTC),
        door="smtp",
    )


def mail(subject: str = "Hello", text: str = "Some words.") -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Änne Müller <ann@example.org>"
    message["To"] = "posts@localhost"
    message["Subject"] = subject
    message.set_content(text)
    return message


def octets_of(message: EmailMessage) -> bytes:
    return message.as_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


async def ingested(house: House, octets: bytes, *rcpt_to: str) -> list[dict[str, Any]]:
    """Accepts a mail and works its tickets, without a worker; returns the rows."""
    ingest = house.ingest or await house.open_ingest()
    await house.intake().accept(envelope(*rcpt_to), octets)
    for ticket in await house.tickets():
        assert await ingest.handle(ticket) == Done()
    assert house.mails is not None
    return await house.lists.newest("mails")


async def post_of(house: House, row: dict[str, Any]) -> dict[str, Any]:
    assert house.mails is not None
    post = await house.mails.post(row["post_id"])
    assert post is not None
    return post


async def test_a_mail_through_the_door_becomes_a_post_with_its_photos(house: House) -> None:
    door = await house.open_door()
    await house.open_ingest()
    await house.start_worker()
    message = mail("Grüße vom Fußballplatz ⚽", "Hallo!\nZwei Fotos.")
    message.add_attachment(JPEG, maintype="image", subtype="jpeg", filename="straße.jpg")
    message.add_attachment(PNG, maintype="application", subtype="octet-stream", filename="tor")

    def send() -> None:
        host, _, port = door.address.rpartition(":")
        with smtplib.SMTP(host, int(port)) as client:
            client.send_message(message, "ann@example.org", ["posts@localhost", "postmaster@localhost"])

    await asyncio.to_thread(send)
    rows = await house.rows(lambda rows: len(rows) == 2 and all(row["post_id"] for row in rows))

    assert {(row["rcpt_to"], row["mailbox"], row["disposition"]) for row in rows} == {
        ("posts@localhost", "posts", "delivered"),
        ("postmaster@localhost", "postmaster", "delivered"),
    }
    post = await post_of(house, next(row for row in rows if row["mailbox"] == "posts"))
    assert post["title"] == "Grüße vom Fußballplatz ⚽"
    assert (post["author"], post["author_address"]) == ("Änne Müller", "ann@example.org")
    assert post["text"] == "Hallo!\nZwei Fotos."
    photos = post["attachments"]
    assert [(item["filename"], item["content_type"], item["sniffed"]) for item in photos] == [
        ("straße.jpg", "image/jpeg", "image/jpeg"),
        ("tor", "application/octet-stream", "image/png"),
    ]
    assert await house.blobs.get("sha256:" + photos[0]["sha256"]) == JPEG
    assert (await post_of(house, next(row for row in rows if row["mailbox"] == "postmaster")))["kind"] == "postmaster"


async def test_the_stored_octets_are_the_ones_received(house: House) -> None:
    octets = b"Subject: \xff\xfe odd \r\nX-Broken\r\n\r\n.\r\ntrailing \t \r\n\r\n"
    (row,) = await ingested(house, octets)
    assert house.mails is not None
    assert await house.mails.octets(row["id"]) == octets


async def test_a_large_mail_is_ingested_from_its_blob(house: House) -> None:
    message = mail("large")
    message.add_attachment(b"\xff\xd8\xff\xe0" + bytes(600_000), maintype="image", subtype="jpeg", filename="big.jpg")
    (row,) = await ingested(house, octets_of(message))
    assert row["disposition"] == "delivered"
    assert (await post_of(house, row))["attachments"][0]["size"] == 600_004
    assert house.mails is not None
    assert await house.mails.octets(row["id"]) == octets_of(message)


async def test_a_photo_without_words_is_a_post(house: House) -> None:
    message = EmailMessage()
    message["From"] = "Änne <ann@example.org>"
    message.add_attachment(JPEG, maintype="image", subtype="jpeg", filename="a.jpg")
    (row,) = await ingested(house, octets_of(message))
    post = await post_of(house, row)
    assert (post["title"], post["text"], len(post["attachments"])) == ("Photo from Änne", "", 1)


async def test_an_empty_mail_is_a_post_too(house: House) -> None:
    (row,) = await ingested(house, b"")
    post = await post_of(house, row)
    assert (post["title"], post["author"], post["text"]) == ("Mail from ann@example.org", "ann@example.org", "")


async def test_without_a_subject_the_first_words_are_the_title(house: House) -> None:
    (row,) = await ingested(
        house,
        b"\r\n\r\n  The quick brown fox jumps over the lazy dog, and then it goes on and on for more than a line.\r\nNext\r\n",
    )
    assert (await post_of(house, row))[
        "title"
    ] == "The quick brown fox jumps over the lazy dog, and then it goes on and on for …"


async def test_only_html_gives_text_and_safe_html(house: House) -> None:
    header = b"Subject: x\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    octets = header + b"<h1>Hi</h1><p onclick=x>a<b>b</b></p><script>evil()</script>"
    (row,) = await ingested(house, octets)
    post = await post_of(house, row)
    assert post["text"] == "Hi\n\nab"
    assert post["html"] == "<h1>Hi</h1><p>a<b>b</b></p>"


async def test_a_hopeless_mail_is_held_with_its_octets_and_the_next_goes_on(house: House) -> None:
    rows = await ingested(house, BOMB, "posts@localhost", "postmaster@localhost")
    assert [(row["disposition"], row["mailbox"]) for row in rows] == [("held", "posts"), ("held", "postmaster")]
    assert "more than 1000 parts" in rows[0]["reason"]
    assert house.mails is not None
    assert await house.mails.octets(rows[0]["id"]) == BOMB
    rows = await ingested(house, octets_of(mail("next")))
    assert rows[-1]["disposition"] == "delivered"


async def test_the_same_ticket_again_changes_nothing(house: House) -> None:
    ingest = await house.open_ingest()
    await house.intake().accept(envelope(), octets_of(mail()))
    (ticket,) = await house.tickets()
    for _ in range(3):
        await ingest.handle(ticket)
    assert house.mails is not None
    assert len(await house.lists.newest("mails")) == 1
    assert len(await house.lists.newest("posts")) == 1


class Raises:
    """A mailbox with a bug, until it is mended."""

    def __init__(self, times: int) -> None:
        self.times = times

    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        self.times -= 1
        if self.times >= 0:
            raise KeyError("bug")
        return Discard(reason="mended")


async def test_a_mailbox_that_raises_delays_its_own_recipient_only(house: House) -> None:
    house.mailboxes["broken"] = Raises(1)
    await house.open_ingest(ladder="1s")
    await house.start_worker()
    await house.intake().accept(envelope("broken@localhost", "posts@localhost"), octets_of(mail()))
    rows = await house.rows(
        lambda rows: any(row["disposition"] == "delivered" for row in rows) and rows[0]["attempts"] > 0
    )
    waiting = next(row for row in rows if row["rcpt_to"] == "broken@localhost")
    assert waiting["disposition"] == "pending"
    assert "KeyError: 'bug'" in waiting["reason"]
    rows = await house.rows(lambda rows: all(row["disposition"] != "pending" for row in rows))
    assert {(row["rcpt_to"], row["disposition"]) for row in rows} == {
        ("broken@localhost", "discarded"),
        ("posts@localhost", "delivered"),
    }
    assert house.mails is not None
    assert len(await house.lists.newest("posts")) == 1


async def test_a_mailbox_that_always_raises_ends_as_held_with_its_reason(house: House) -> None:
    house.mailboxes["broken"] = Raises(100)
    published: list[Ticket] = []
    ingest = await house.open_ingest(ladder="1s 1s")

    async def publish(tickets: Any) -> None:
        published.extend(tickets)

    ingest._publish = publish
    await house.intake().accept(envelope("broken@localhost", "posts@localhost"), octets_of(mail()))
    (ticket,) = await house.tickets()
    for attempt in (1, 2):
        await ingest.handle(ticket)
        ticket = published.pop()
        assert (ticket.queue, ticket.attempt, ticket.headers["rcpt_to"]) == (
            retry_queue(MAIL_INBOUND),
            attempt,
            ["broken@localhost"],
        )
        assert ticket.due_at is not None
    await ingest.handle(ticket)
    assert published == []
    assert house.mails is not None
    row = next(row for row in await house.lists.newest("mails") if row["rcpt_to"] == "broken@localhost")
    assert row["disposition"] == "held"
    assert row["reason"].startswith("gave up after 3 attempts: mailbox broken failed: KeyError")


@pytest.mark.parametrize(
    ("outcome", "disposition", "reason"),
    [
        (Hold(reason="unproven"), "held", "unproven"),
        (Refuse(reason="not for you"), "failed", "not for you"),
        (Discard(reason="seen"), "discarded", "seen"),
        (Forward(to="bob@example.org"), "held", "to be forwarded to bob@example.org, which is not possible yet"),
        ("nonsense", "pending", "mailbox broken answered str, which is no outcome"),
    ],
)
async def test_what_a_mailbox_decides_is_recorded(outcome: Any, disposition: str, reason: str, house: House) -> None:
    class Decided:
        async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
            return outcome  # type: ignore[no-any-return]

    house.mailboxes["broken"] = Decided()
    (row,) = await ingested(house, octets_of(mail()), "broken@localhost")
    assert (row["disposition"], row["reason"]) == (disposition, reason)


async def test_a_recipient_without_a_mailbox_is_held_not_lost(house: House) -> None:
    ingest = await house.open_ingest()
    headers = envelope("gone@localhost").to_headers()
    await ingest.handle(
        Ticket(queue=MAIL_INBOUND, id="01890000-0000-7000-8000-000000000000", body=b"x\r\n", headers=headers)
    )
    assert house.mails is not None
    (row,) = await house.lists.newest("mails")
    assert (row["disposition"], row["reason"]) == ("held", "no mailbox: gone@localhost is unknown here")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"received_at": None}, "no mail"),
        ({"rcpt_to": []}, "rcpt_to is not a list of addresses"),
        ({"mail_from": ...}, "mail_from"),
        ({"sha256": "0" * 64}, "the door promised"),
        ({"blob": "../../etc/passwd"}, "is not a digest"),
    ],
)
async def test_a_ticket_that_is_no_mail_dies_with_its_reason(change: dict[str, Any], reason: str, house: House) -> None:
    ingest = await house.open_ingest()
    headers = {key: value for key, value in (envelope().to_headers() | change).items() if value is not ...}
    with pytest.raises(PermanentFailure, match=reason):
        await ingest.handle(Ticket(queue=MAIL_INBOUND, id=new_id(), body=b"x\r\n", headers=headers))
    assert house.mails is not None
    assert await house.lists.newest("mails") == []


async def test_a_blob_folder_that_is_not_mounted_is_waited_for(house: House) -> None:
    ingest = await house.open_ingest()
    octets = octets_of(mail(text="large " * 100_000))
    await house.intake().accept(envelope(), octets)
    (ticket,) = await house.tickets()
    folder = house.folder / "blobs"
    folder.rename(house.folder / "elsewhere")
    with pytest.raises(StoreUnavailable):
        await ingest.handle(ticket)

    folder.mkdir()  # the mount point without what is to be mounted
    with pytest.raises(StoreUnavailable, match="the store is not there"):
        await ingest.handle(ticket)

    folder.rmdir()
    (house.folder / "elsewhere").rename(folder)
    assert await ingest.handle(ticket) == Done()


async def test_a_store_that_is_down_is_not_blamed_on_the_mail(house: House) -> None:
    ingest = await house.open_ingest()
    assert house.database is not None
    await house.intake().accept(envelope(), octets_of(mail()))
    (ticket,) = await house.tickets()
    await house.database.close()
    with pytest.raises(StoreUnavailable):
        await ingest.handle(ticket)


async def test_deciding_writes_nothing(house: House) -> None:
    ingest = await house.open_ingest()
    read = await ingest.decider.read(envelope(), octets_of(mail("dry run")))
    decision = await ingest.decider.decide(envelope(), read, "posts@localhost")
    assert decision.mailbox == "posts"
    assert getattr(decision.outcome, "title", "") == "dry run"
    assert house.mails is not None
    assert await house.lists.newest("mails") == []
