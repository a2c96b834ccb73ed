"""What people are told while the store is there: each stage, what of it is whitelisted, and how much in a day."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
import telling_desk
from telling_desk import OCTETS, Clock, Desk

from gateway.cage import Cage
from gateway.mail.disposition import Disposition
from gateway.mail.ids import new_id
from gateway.mail.loop_guard import Telling
from gateway.reply import Reply
from gateway.store import schema
from gateway.store.database import insert_absent
from gateway.store.posts import NewAttachment, NewPost


def read(octets: bytes) -> email.message.EmailMessage:
    message = email.message_from_bytes(octets, policy=email.policy.default)
    assert isinstance(message, email.message.EmailMessage)
    return message


def words_of(octets: bytes) -> str:
    part = read(octets).get_body(("plain",))
    assert part is not None
    return part.get_content()


async def test_a_mail_that_waits_is_told_after_the_first_delay_and_again_after_the_second(desk: Desk, clock) -> None:
    arrived = await desk.receive()
    await desk.defer(arrived)
    await desk.teller.tell_due()
    assert await desk.told() == []
    clock.advance(901)
    await desk.defer(arrived, attempts=2)
    await desk.teller.tell_due()
    [first] = await desk.told()
    assert (first["recipient"], first["disposition"]) == ("ann@example.org", "pending")
    clock.advance(4 * 3600)
    await desk.teller.tell_due()
    _, second = await desk.told()
    assert "Still waiting" in second["subject"]
    assert desk.issued == [first["id"], second["id"]]
    assert (await desk.steps(arrived.mail_id)).count("notice_sent") == 2


async def test_a_notice_is_an_email_from_nobody_that_answers_the_mail(desk: Desk) -> None:
    arrived = await desk.receive()
    await desk.fail(arrived)
    await desk.teller.tell_due()
    [row] = await desk.told()
    message = read(await desk.octets(row["id"]))
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["In-Reply-To"] == message["References"] == "<garden@example.org>"
    assert message["Message-ID"] == f"<{row['id']}@gateway.example.org>"
    assert message["From"] == '"gateway.example.org" <postmaster@in.example.org>'
    assert message["To"] == "ann@example.org"
    assert message["Subject"] == "Not delivered: Our garden"


async def test_a_refusal_is_told_with_its_reason_the_id_and_a_signed_link_and_nothing_of_the_body(desk: Desk) -> None:
    arrived = await desk.receive()
    await desk.fail(arrived)
    await desk.teller.tell_due()
    [row] = await desk.told()
    octets = await desk.octets(row["id"])
    words = words_of(octets)
    assert "this address takes no mail any more" in words
    assert arrived.mail_id in words
    token = words.partition("/status/")[2].split()[0]
    assert telling_desk.HOUSE.links.mail_id(token) == arrived.mail_id
    assert b"secret body" not in octets


async def test_why_a_mail_waits_inside_is_not_told(desk: Desk, clock) -> None:
    arrived = await desk.receive()
    await desk.defer(arrived)
    await desk.mails.record_held(arrived.mail_id, arrived.rcpt_to[0], "photos", "KeyError: 'a secret of ours'")
    await desk.teller.tell_due()
    clock.advance(901)
    await desk.teller.tell_due()
    told = await desk.told()
    assert len(told) == 1
    assert b"secret" not in await desk.octets(told[0]["id"])


async def test_what_was_refused_of_an_album_is_named(desk: Desk, clock) -> None:
    arrived = await desk.receive()
    refused = NewAttachment(
        position=0,
        filename="<b>big</b>.tiff",
        content_type="image/tiff",
        sniffed="image/tiff",
        size=1,
        sha256="0" * 64,
        photo="refused",
        refusal="has 120 megapixels, at most 100",
    )
    post = NewPost(
        mailbox="photos",
        kind="album",
        author="",
        author_address="",
        title="t",
        text="",
        html=None,
        created_at=clock(),
        attachments=(refused,),
    )
    await desk.mails.record_delivered(arrived.mail_id, arrived.rcpt_to[0], "photos", post, "partial")
    await desk.teller.tell_due()
    [row] = await desk.told()
    message = read(await desk.octets(row["id"]))
    html = message.get_body(("html",))
    assert html is not None
    assert "&lt;b&gt;big&lt;/b&gt;.tiff" in html.get_content()
    assert "<b>big</b>.tiff: has 120 megapixels" in words_of(await desk.octets(row["id"]))


async def test_what_is_no_longer_true_is_not_told(desk: Desk, clock) -> None:
    arrived = await desk.receive()
    await desk.defer(arrived)
    await desk.mails.record_discarded(arrived.mail_id, arrived.rcpt_to[0], "photos", "")
    clock.advance(5 * 3600)
    await desk.teller.tell_due()
    assert await desk.told() == []


async def test_who_must_not_be_told_has_a_line_in_the_story_that_says_why(desk: Desk, clock) -> None:
    arrived = await desk.receive(untold="it comes from a list (list-id)")
    await desk.defer(arrived)
    await desk.defer(arrived, attempts=2)
    await desk.mails.record_held(arrived.mail_id, arrived.rcpt_to[0], "photos", "r")
    clock.advance(5 * 3600)
    await desk.teller.tell_due()
    assert await desk.told() == []
    story = await desk.mails.story(arrived.mail_id)
    assert story is not None
    lines = [line["data"] for line in story["timeline"] if line["step"] == "nobody_told"]
    assert lines == [{"of": stage, "why": "it comes from a list (list-id)"} for stage in ("delayed", "held")]


async def test_one_delay_a_day_for_each_sender_and_stage(desk: Desk, clock) -> None:
    for _ in range(5):
        await desk.defer(await desk.receive())
    other = await desk.receive(mail_from="bob@example.org")
    await desk.defer(other)
    clock.advance(1000)
    await desk.teller.tell_due()
    assert sorted(row["recipient"] for row in await desk.told()) == ["ann@example.org", "bob@example.org"]
    clock.advance(86400)
    late = await desk.receive()
    await desk.defer(late)
    clock.advance(1000)
    await desk.teller.tell_due()
    assert [row["recipient"] for row in await desk.told()].count(
        "ann@example.org"
    ) == 3  # the second stage, the new day


async def test_three_ends_are_told_by_name_and_the_rest_in_one_digest(desk: Desk, clock) -> None:
    arrived = [await desk.receive(subject=f"Mail {number}") for number in range(6)]
    for envelope in arrived:
        await desk.fail(envelope)
        await desk.teller.tell_due()
    assert len(await desk.told()) == 3
    clock.advance(86401)
    await desk.teller.tell_due()
    await desk.teller.tell_due()
    *_, digest = await desk.told()
    assert len(await desk.told()) == 4
    words = words_of(await desk.octets(digest["id"]))
    assert [number for number in range(6) if f"Mail {number}" in words] == [3, 4, 5]
    for envelope in arrived:
        assert (await desk.steps(envelope.mail_id)).count("notice_sent") == 1


async def test_each_notice_is_an_event_of_its_mail(desk: Desk) -> None:
    arrived = await desk.receive()
    await desk.fail(arrived)
    await desk.teller.tell_due()
    query = sa.select(schema.outbox.c.body).where(schema.outbox.c.type == "notice.sent")
    [body] = await desk.database.read(lambda connection: connection.execute(query).scalars().all())
    event = json.loads(body)
    assert event["subject"] == arrived.mail_id
    assert event["data"]["to"] == "ann@example.org"


async def test_telling_again_and_again_tells_once(desk: Desk, tmp_path: Path, clock: Clock, cage: Cage) -> None:
    for number in range(3):
        await desk.fail(await desk.receive(mail_from=f"ann{number}@example.org"))
    async with AsyncExitStack() as stack:
        other = await telling_desk.open_desk(tmp_path, clock, cage, stack)
        await asyncio.gather(desk.teller.tell_due(), other.teller.tell_due())
        await asyncio.gather(desk.teller.tell_due(), other.teller.tell_due())
        assert len(desk.issued) + len(other.issued) == 3
    assert len(await desk.told()) == 3


async def test_a_broken_template_makes_a_notice_wait_and_no_other(desk: Desk, clock, monkeypatch) -> None:
    await desk.fail(await desk.receive())
    writer = desk.teller._writer

    async def broken(template: str, params: object, locale: str) -> object:
        raise ValueError("no such words")

    whole = writer._fill
    monkeypatch.setattr(writer, "_fill", broken)
    await desk.teller.tell_due()
    assert await desk.told() == []
    assert desk.log.counters["notice-failed"] == 1
    monkeypatch.setattr(writer, "_fill", whole)
    clock.advance(601)
    await desk.teller.tell_due()
    assert len(await desk.told()) == 1


async def claimed(desk: Desk, email_id: str) -> object:
    return await desk.ledger.claim(email_id, "bob@example.net", ticket_id=email_id, lifetime_seconds=60)


async def test_an_apps_people_hear_of_a_failure_but_not_what_was_in_the_email(desk: Desk) -> None:
    sent = await desk.accept(params={}, subject="Your code is 1234", text="1234")
    reply = Reply(code=550, enhanced_status="5.1.1", text="no such user")
    await desk.ledger.record_failed(await claimed(desk, sent.id), relay="r", reply=reply, reason="recipient")
    await desk.teller.tell_due()
    [row] = await desk.told()
    octets = await desk.octets(row["id"])
    words = words_of(octets)
    assert row["recipient"] == "ops@example.com"
    assert "550 5.1.1 no such user" in words
    assert sent.id in words
    assert "1234" not in words
    assert read(octets).get_content_type() == "multipart/alternative"


@pytest.mark.parametrize("end", ["expired", "dead", "unknown"])
async def test_an_apps_people_hear_of_every_end_they_cannot_see(desk: Desk, clock, end: str) -> None:
    sent = await desk.accept(on_unknown="hold")
    if end == "expired":
        clock.advance(8 * 86400)
        await desk.ledger.sweep_expired()
    elif end == "dead":
        await desk.ledger.record_dead(sent.id, reason="its worker died")
    else:
        await desk.ledger.record_unknown(await claimed(desk, sent.id), relay="r", reason="no reply")
    assert [row.disposition for row in await desk.ledger.recipients(sent.id)] == [Disposition(end)]
    await desk.teller.tell_due()
    [row] = await desk.told()
    assert "bob@example.net" in row["subject"]
    story = await desk.ledger.story(sent.id)
    assert story is not None
    assert [line["step"] for line in story["timeline"]][-1] == "notice_sent"


async def test_a_notice_that_fails_is_told_to_nobody(desk: Desk) -> None:
    await desk.fail(await desk.receive())
    await desk.teller.tell_due()
    [row] = await desk.told()
    reply = Reply(code=550, enhanced_status="5.1.1", text="no such user")
    [record] = await desk.ledger.recipients(row["id"])
    claim = await desk.ledger.claim(row["id"], record.recipient, ticket_id="", lifetime_seconds=60)
    await desk.ledger.record_failed(claim, relay="r", reply=reply, reason="recipient")  # type: ignore[arg-type]
    await desk.teller.tell_due()
    assert len(await desk.told()) == 1


def test_the_octets_of_this_test_hold_the_secret() -> None:
    assert b"secret body" in OCTETS


async def test_a_mail_whose_octets_are_lost_keeps_nobody_else_from_being_told(desk: Desk) -> None:
    lost = desk.envelope(mail_from="bob@example.org")
    blob = "sha256:" + "0" * 64
    await desk.mails.record_received(lost, blob, 300_000, "0" * 64, subject="Photos", telling=Telling(subject="Photos"))
    await desk.fail(lost)
    await desk.fail(await desk.receive())
    await desk.teller.tell_due()
    assert [row["recipient"] for row in await desk.told()] == ["ann@example.org"]
    assert desk.log.counters["notice-failed"] == 1
    await desk.teller.tell_due()
    assert desk.log.counters["notice-failed"] == 1, "it comes again later"


async def test_a_notice_of_something_that_is_gone_keeps_nobody_else_from_being_told(desk: Desk) -> None:
    row = {"id": new_id(), "subject": new_id(), "kind": "email", "recipient": "bob@example.net", "stage": "asked"}
    row |= {"addressee": "ops@example.com", "reason": "failed", "facts": {}, "state": "planned", "due_at": desk.clock()}
    await desk.database.write(lambda connection: insert_absent(connection, schema.notices, row))
    await desk.fail(await desk.receive())
    await desk.teller.tell_due()
    assert [row["recipient"] for row in await desk.told()] == ["ann@example.org"]
    assert desk.log.counters["notice-failed"] == 1
