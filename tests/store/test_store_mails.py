"""The verbs of inbound work: each recipient once, whole, and final."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
import store_children

from gateway.mail.disposition import Disposition
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.mail.loop_guard import Telling
from gateway.mail.threads import ThreadClues
from gateway.reply import Reply
from gateway.store import schema
from gateway.store.blobs import FileBlobStore
from gateway.store.database import Database, open_database
from gateway.store.lists import Lists
from gateway.store.mails import Mails
from gateway.store.posts import NewAttachment, NewPost

OCTETS = b"Subject: Gr\xfc\xdfe\r\n\r\nraw \x00 octets\r\n"
SHA256 = hashlib.sha256(OCTETS).hexdigest()


def envelope(clock, *rcpt_to: str, mail_id: str = "") -> Envelope:
    return Envelope(
        mail_id=mail_id or new_id(),
        mail_from="ann@example.org",
        rcpt_to=rcpt_to or ("posts@localhost",),
        received_at=clock(),
        door="smtp",
        client="192.0.2.1",
    )


def new_post(clock, **changes: object) -> NewPost:
    attachment = NewAttachment(
        position=0,
        filename="a.png",
        content_type="image/png",
        sniffed="image/png",
        size=3,
        sha256="0" * 64,
        content_id="x@y",
        inline=True,
    )
    values = {
        "mailbox": "posts@localhost",
        "kind": "posts",
        "author": "Ann",
        "author_address": "ann@example.org",
        "title": "Grüße",
        "text": "hello",
        "html": None,
        "created_at": clock(),
        "attachments": (attachment,),
    }
    return NewPost(**(values | changes))


async def receive(mails: Mails, arrived: Envelope, octets: bytes = OCTETS) -> bool:
    sha256 = hashlib.sha256(octets).hexdigest()
    return await mails.record_received(arrived, octets, len(octets), sha256, subject="Grüße", telling=Telling())


async def events(database: Database) -> list[dict[str, object]]:
    query = sa.select(schema.outbox.c.body).order_by(schema.outbox.c.id)
    return [
        json.loads(body) for body in await database.read(lambda connection: connection.execute(query).scalars().all())
    ]


async def test_a_mail_is_kept_exactly_with_a_pending_delivery_for_each_recipient(mails: Mails, clock, database) -> None:
    arrived = envelope(clock, "b@localhost", "a@localhost", "b@localhost")
    assert await receive(mails, arrived)
    assert await mails.octets(arrived.mail_id) == OCTETS
    assert [(row.rcpt_to, row.disposition) for row in await mails.deliveries(arrived.mail_id)] == [
        ("b@localhost", Disposition.PENDING),
        ("a@localhost", Disposition.PENDING),
    ]
    [event] = await events(database)
    assert event["type"] == "mail.received"
    assert event["data"]["recipients"] == ["b@localhost", "a@localhost"]


async def test_the_same_mail_id_again_is_no_record_but_a_further_ticket_adds_its_recipients(
    mails, clock, database
) -> None:
    arrived = envelope(clock, "a@localhost")
    assert await receive(mails, arrived)
    assert not await receive(mails, arrived)
    assert len(await events(database)) == 1
    assert not await receive(mails, envelope(clock, "b@localhost", mail_id=arrived.mail_id))
    assert [row.rcpt_to for row in await mails.deliveries(arrived.mail_id)] == ["a@localhost", "b@localhost"]
    assert [event["data"]["recipients"] for event in await events(database)] == [["a@localhost"], ["b@localhost"]]


async def test_large_octets_go_to_the_blob_store_and_come_back(mails: Mails, clock, blobs: FileBlobStore) -> None:
    large = os.urandom(300 * 1024)
    arrived = envelope(clock)
    await receive(mails, arrived, large)
    assert await blobs.exists("sha256:" + hashlib.sha256(large).hexdigest())
    assert await mails.octets(arrived.mail_id) == large
    by_digest = envelope(clock)
    await mails.record_received(by_digest, await blobs.put(large), len(large), hashlib.sha256(large).hexdigest())
    assert await mails.octets(by_digest.mail_id) == large
    assert await mails.octets(new_id()) is None


async def test_a_subject_learnt_later_fills_an_empty_one(mails: Mails, lists: Lists, clock) -> None:
    arrived = envelope(clock)
    await mails.record_received(arrived, OCTETS, len(OCTETS), SHA256)
    await mails.record_received(arrived, OCTETS, len(OCTETS), SHA256, subject="known now")
    await mails.record_received(arrived, OCTETS, len(OCTETS), SHA256, subject="not again")
    [line] = await lists.newest("mails")
    assert line["subject"] == "known now"


async def test_delivered_writes_delivery_post_attachments_and_both_events_together(mails, clock, database) -> None:
    arrived = envelope(clock)
    await receive(mails, arrived)
    post_id = (
        await mails.record_delivered(arrived.mail_id, "posts@localhost", "posts@localhost", new_post(clock), "partial")
    ).post_id
    state = await mails.delivery_state(arrived.mail_id, "posts@localhost")
    assert (state.disposition, state.post_id, state.reason) == (Disposition.DELIVERED, post_id, "partial")
    post = await mails.post(post_id)
    assert (post["title"], post["mail_id"], post["attachments"][0]["filename"]) == ("Grüße", arrived.mail_id, "a.png")
    told = await events(database)
    assert [event["type"] for event in told] == ["mail.received", "mail.delivered", "post.created"]
    assert [event["subject"] for event in told] == [arrived.mail_id, arrived.mail_id, post_id]
    assert [int(event["sequence"]) for event in told] == [1, 2, 1]
    assert told[1]["data"]["recipient"] == "posts@localhost"
    assert told[1]["specversion"] == "1.0"
    assert told[1]["source"] == "//mx.test/gateway"
    assert not {"Grüße", "hello"} & {str(value) for event in told for value in event["data"].values()}


async def test_a_final_delivery_is_never_changed(mails: Mails, lists: Lists, clock, database: Database) -> None:
    arrived = envelope(clock)
    await receive(mails, arrived)
    one = (arrived.mail_id, "posts@localhost", "posts@localhost")
    post_id = (await mails.record_delivered(*one, new_post(clock))).post_id
    before = await events(database)
    assert (await mails.record_delivered(*one, new_post(clock))).post_id == post_id
    assert not await mails.record_held(*one, "late")
    assert not await mails.record_failed(*one, "late")
    assert not await mails.record_discarded(*one, "late")
    assert not await mails.record_dead(*one, "late")
    assert not await mails.record_deferred(*one[:2], reason="late", attempts=1, next_attempt_at=clock())
    assert await events(database) == before
    assert len(await lists.newest("posts")) == 1


@pytest.mark.parametrize("fact", ["held", "failed", "discarded", "dead"])
async def test_each_other_end_is_recorded_once_with_its_event(
    mails: Mails, lists: Lists, clock, database: Database, fact: str
) -> None:
    arrived = envelope(clock)
    await receive(mails, arrived)
    verb = getattr(mails, f"record_{fact}")
    assert await verb(arrived.mail_id, "posts@localhost", "posts@localhost", "why")
    assert not await verb(arrived.mail_id, "posts@localhost", "posts@localhost", "why")
    assert [event["type"] for event in await events(database)] == ["mail.received", f"mail.{fact}"]
    [line] = await lists.newest("mails", disposition=fact)
    assert (line["reason"], line["mailbox"]) == ("why", "posts@localhost")


async def test_a_held_delivery_can_still_be_delivered(mails: Mails, clock) -> None:
    arrived = envelope(clock)
    await receive(mails, arrived)
    await mails.record_held(arrived.mail_id, "posts@localhost", "posts@localhost", "unparsable")
    assert await mails.record_delivered(arrived.mail_id, "posts@localhost", "posts@localhost", new_post(clock))


async def test_a_deferred_delivery_waits_and_says_why(mails: Mails, clock) -> None:
    arrived = envelope(clock)
    await receive(mails, arrived)
    reply = Reply(code=451, enhanced_status="4.3.0", text="later")
    wait = {"reason": "mailbox raised", "attempts": 2, "next_attempt_at": clock(), "reply": reply}
    assert await mails.record_deferred(arrived.mail_id, "posts@localhost", **wait)
    state = await mails.delivery_state(arrived.mail_id, "posts@localhost")
    assert (state.disposition, state.attempts, state.next_attempt_at) == (Disposition.PENDING, 2, clock())
    story = await mails.story(arrived.mail_id)
    assert story["recipients"][0]["reply_text"] == "later"


async def test_a_delivery_that_never_was_received_is_a_mistake_of_the_caller(mails: Mails, clock) -> None:
    with pytest.raises(LookupError):
        await mails.record_held(new_id(), "x@localhost", "", "why")
    assert await mails.delivery_state(new_id(), "x@localhost") is None
    assert await mails.story(new_id()) is None
    assert await mails.post_story(new_id()) is None


async def test_hostile_text_is_kept_as_text(mails: Mails, clock) -> None:
    arrived = envelope(clock)
    await receive(mails, arrived)
    hostile = new_post(clock, title="a\x00b\ud800c", author="'; DROP TABLE posts;--\u202e")
    post_id = (
        await mails.record_delivered(arrived.mail_id, "posts@localhost", "posts@localhost", hostile, "\udfff\x00")
    ).post_id
    post = await mails.post(post_id)
    assert post["title"] == "ab?c"
    assert post["author"] == "'; DROP TABLE posts;--\u202e"


async def test_lists_are_oldest_first_and_filtered(mails: Mails, lists: Lists, clock) -> None:
    ids = []
    for i in range(3):
        arrived = envelope(clock, f"a{i}@localhost", "b@localhost")
        ids.append(arrived.mail_id)
        await receive(mails, arrived)
        await mails.record_delivered(arrived.mail_id, "b@localhost", "b@localhost", new_post(clock, title=str(i)))
        clock.advance(1)
    lines = await lists.newest("mails")
    assert [(line["id"], line["rcpt_to"]) for line in lines] == [
        (mail_id, rcpt_to) for i, mail_id in enumerate(ids) for rcpt_to in (f"a{i}@localhost", "b@localhost")
    ]
    wanted = [
        "id",
        "received_at",
        "mail_from",
        "rcpt_to",
        "mailbox",
        "disposition",
        "reason",
        "sha256",
        "size",
        "subject",
        "post_id",
    ]
    assert set(wanted) <= set(lines[0])
    json.dumps(lines)
    assert [line["rcpt_to"] for line in await lists.newest("mails", id=ids[1])] == ["a1@localhost", "b@localhost"]
    assert len(await lists.newest("mails", disposition="delivered")) == 3
    assert [line["id"] for line in await lists.newest("mails", rcpt_to="b@localhost", limit=2)] == ids[1:]
    posts = await lists.newest("posts", limit=2)
    assert [post["title"] for post in posts] == ["1", "2"]
    assert {"id", "mailbox", "author", "title", "created_at", "attachments"} <= set(posts[0])
    assert await lists.newest("mails", id="%") == []


async def test_ids_are_found_by_their_beginning(mails: Mails, clock) -> None:
    arrived = envelope(clock)
    await receive(mails, arrived)
    post_id = (
        await mails.record_delivered(arrived.mail_id, "posts@localhost", "posts@localhost", new_post(clock))
    ).post_id
    assert await mails.find(arrived.mail_id) == [("mail", arrived.mail_id)]
    assert await mails.find(arrived.mail_id.upper()) == [("mail", arrived.mail_id)]
    assert ("post", post_id) in await mails.find(post_id[:-1])
    for nothing in ("", "%", "zz", arrived.mail_id + "0", "' OR 1"):
        assert await mails.find(nothing) == []


async def test_a_story_tells_every_step_in_order(mails: Mails, clock) -> None:
    arrived = envelope(clock)
    await receive(mails, arrived)
    await mails.record_deferred(arrived.mail_id, "posts@localhost", reason="r", attempts=1, next_attempt_at=clock())
    post_id = (
        await mails.record_delivered(arrived.mail_id, "posts@localhost", "posts@localhost", new_post(clock))
    ).post_id
    story = await mails.story(arrived.mail_id)
    assert [line["step"] for line in story["timeline"]] == ["received", "deferred", "delivered"]
    assert [line["step"] for line in (await mails.post_story(post_id))["timeline"]] == ["created"]
    json.dumps(story)


@pytest.mark.parametrize("place", ["store.received.after", "store.delivered.before", "store.delivered.after"])
async def test_killed_here_and_run_again_the_post_is_there_once(
    database_url: str, tmp_path: Path, run_child, place: str
) -> None:
    mail_id = new_id()
    assert await run_child("deliver", database_url, tmp_path, mail_id, failpoint=place) == -9
    await store_children.deliver(database_url, str(tmp_path), mail_id)
    database = await open_database(database_url)
    told = await events(database)
    assert [event["type"] for event in told] == ["mail.received", "mail.delivered", "post.created"]
    await database.close()


@pytest.mark.parametrize("key", ["message_id", "subject_key", "author_key"])
async def test_words_too_long_for_an_index_still_make_a_post_and_lead_to_its_thread(
    mails: Mails, clock, key: str
) -> None:
    # Of random letters: PostgreSQL squeezes what repeats itself into an index.
    endless = base64.b64encode(random.Random(1).randbytes(40_000)).decode()
    clues = {"message_id": "first@example.org", "subject_key": "hello", "author_key": "ann@example.org"} | {
        key: endless
    }
    first, second = envelope(clock), envelope(clock)
    post = new_post(clock, address="support@localhost", thread=ThreadClues(**clues))
    answer = ThreadClues(references=(clues["message_id"],)) if key == "message_id" else ThreadClues(**clues)
    threads = []
    for arrived, made in ((first, post), (second, replace(post, thread=answer))):
        await receive(mails, arrived, octets=arrived.mail_id.encode())
        delivered = await mails.record_delivered(arrived.mail_id, "posts@localhost", "support", made)
        threads.append((await mails.post(delivered.post_id or "") or {})["thread_id"])
    assert threads[0] == threads[1]


async def test_names_to_hold_may_have_letters_no_database_takes(mails: Mails, clock) -> None:
    arrived = envelope(clock)
    await receive(mails, arrived)
    thread = ThreadClues(message_id="\0", subject_key="a\0\ud800", author_key="\ud800")
    made = new_post(clock, address="support@localhost", thread=thread)
    delivered = await mails.record_delivered(arrived.mail_id, "posts@localhost", "support", made)
    assert delivered.disposition is Disposition.DELIVERED
