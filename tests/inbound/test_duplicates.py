"""A mail sent again: the same sender, recipient and content within a week of its delivery is a duplicate, nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import House

from gateway.inbound.mailbox import Context, Hold, Outcome, ReceivedMail, Refuse
from gateway.inbound.mailboxes.posts import Posts
from gateway.mail.envelope import Envelope
from gateway.mail.fingerprint import content_key
from gateway.runtime import utc_now

MAIL = b"Received: by a\r\n\tfolded\r\nMessage-ID: <1@example.org>\r\nSubject: x\r\n\r\nwords\r\n"
AGAIN = b"Return-Path: <ann@example.org>\r\nReceived: by another\r\nDelivered-To: posts@localhost\r\n" + MAIL.split(
    b"folded\r\n"
)[1].join([b"X-Original-To: y\r\n", b""])
NAMELESS = b"Received: by a\r\nSubject: x\r\n\r\nwords\r\n"


async def take(
    house: House, octets: bytes, *, mail_from: str = "ann@example.org", rcpt_to: str = "posts@localhost"
) -> dict[str, Any]:
    """Brings one mail all the way; returns its row."""
    ingest = house.ingest or await house.open_ingest()
    envelope = Envelope(
        mail_id="", mail_from=mail_from, rcpt_to=(rcpt_to,), received_at=datetime(2026, 1, 1, tzinfo=UTC), door="smtp"
    )
    mail_id = await house.intake().accept(envelope, octets)
    for ticket in await house.tickets():
        await ingest.handle(ticket)
    assert house.mails is not None
    return next(row for row in await house.lists.newest("mails") if row["id"] == mail_id)


async def test_a_copy_is_a_duplicate_that_points_to_the_first_and_is_logged_so(house: House) -> None:
    first = await take(house, MAIL)
    copy = await take(house, AGAIN)
    assert first["disposition"] == "delivered"
    assert (copy["disposition"], copy["duplicate_of"], copy["post_id"]) == ("duplicate", first["id"], first["post_id"])
    assert copy["reason"] == f"the same mail as {first['id']}"
    assert house.mails is not None
    assert len(await house.lists.newest("posts")) == 1
    log = house.log._log._logger._file.getvalue()  # type: ignore[attr-defined]
    assert log.count("disposition='delivered'") == log.count("disposition='duplicate'") == 1


@pytest.mark.parametrize(
    "other",
    [
        {"mail_from": "bob@example.org"},
        {"rcpt_to": "postmaster@localhost"},
        {"octets": MAIL.replace(b"words", b"other words")},
        {"octets": MAIL.replace(b"Subject: x", b"Subject: y")},
    ],
)
async def test_another_sender_recipient_or_content_is_another_mail(other: dict[str, Any], house: House) -> None:
    await take(house, MAIL)
    assert (await take(house, **{"octets": MAIL} | other))["disposition"] == "delivered"


async def test_without_a_message_id_only_equal_octets_are_a_copy(house: House) -> None:
    await take(house, NAMELESS)
    assert (await take(house, NAMELESS.replace(b"by a", b"by b")))["disposition"] == "delivered"
    assert (await take(house, NAMELESS))["disposition"] == "duplicate"


async def test_after_a_week_it_is_a_mail_of_its_own(house: House) -> None:
    await house.open_ingest()
    assert house.mails is not None
    journal = house.mails._journal
    journal._clock = lambda: utc_now() - timedelta(days=7, minutes=1)
    await take(house, MAIL)
    journal._clock = utc_now
    assert (await take(house, MAIL))["disposition"] == "delivered"
    assert (await take(house, MAIL))["disposition"] == "duplicate"


@pytest.mark.parametrize("outcome", [Hold(reason="wait"), Refuse(reason="no")])
async def test_copies_of_held_and_failed_mails_are_processed_anew(outcome: Outcome, house: House) -> None:
    class Decided:
        async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
            return outcome

    house.mailboxes["broken"] = Decided()
    first = await take(house, MAIL, rcpt_to="broken@localhost")
    assert first["disposition"] in ("held", "failed")
    house.mailboxes["broken"] = Posts()
    assert (await take(house, MAIL, rcpt_to="broken@localhost"))["disposition"] == "delivered"


def test_trace_headers_count_only_where_there_is_no_message_id() -> None:
    assert content_key(MAIL) == content_key(AGAIN)
    assert content_key(NAMELESS) != content_key(NAMELESS.replace(b"by a", b"by b"))
    later = MAIL.replace(b"Subject: x\r\n", b"Subject: x\r\nReceived: below\r\n")
    assert content_key(later) != content_key(MAIL), "only leading ones are trace"
