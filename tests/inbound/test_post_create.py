"""Posts of apps through the real queue, cage and store: the same path as a mail's post, once for each id."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from conftest import House

from gateway.cage import Cage
from gateway.client import Client
from gateway.contract.email_send import Attachment
from gateway.contract.versions import NewerVersion
from gateway.errors import InvalidRequest, PermanentFailure, StoreUnavailable
from gateway.inbound.post_create import PostDesk
from gateway.queue.broker import Done
from gateway.queue.ladder import Ladder
from gateway.queue.ticket import POST_CREATE, Ticket
from gateway.queue.worker import work
from gateway.runtime import Stop, utc_now
from gateway.store.accounting import Accounting
from gateway.watch.reconcile import reconcile

ID = "0193a1b2-0000-7000-8000-000000000001"
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452")


@asynccontextmanager
async def working(house: House) -> AsyncIterator[tuple[Client, PostDesk]]:
    await house.open_ingest()
    assert house.mails is not None
    stop = Stop()
    async with Cage(children=1) as cage, Client(broker=house.broker) as client:
        desk = PostDesk(
            mails=house.mails, blobs=house.blobs, cage=cage, answer=house.broker.answer, log=house.log, clock=utc_now
        )
        running = asyncio.create_task(
            work(
                house.broker,
                queues={POST_CREATE: 1},
                handlers={POST_CREATE: desk.handle},
                concurrency=2,
                stop=stop,
                ladder=Ladder.parse("1s"),
                observer=house.log,
            )
        )
        try:
            yield client, desk
        finally:
            stop.set()
            await running


async def test_a_later_version_is_left_to_who_can_read_it(house: House) -> None:
    async with working(house) as (_, desk):
        body = json.dumps({"version": 2, "id": ID, "new": "words"}).encode()
        with pytest.raises(NewerVersion, match=r"version 2 of post.create"):
            await desk.handle(Ticket(queue=POST_CREATE, id=ID, body=body))


async def test_an_apps_post_is_recorded_as_a_mailbox_would_write_it(house: House) -> None:
    async with working(house) as (client, _):
        answer = await client.ask_post(
            id=ID,
            author="Änne",
            author_address="anne@example.org",
            title="From the web",
            html="<p onclick=x>Hello <b>you</b></p><script>evil()</script><img src='cid:dot.png'>",
            attachments=[Attachment.of("dot.png", PNG, inline=True), Attachment.of("a.txt", b"words", "text/plain")],
            timeout_seconds=20,
        )
    assert (answer.id, answer.status, answer.errors) == (ID, "accepted", ())
    assert house.mails is not None
    post = await house.mails.post(ID)
    assert post is not None
    assert (post["mailbox"], post["author"], post["mail_id"]) == ("posts", "Änne", None)
    assert "evil" not in post["html"]
    assert "onclick" not in post["html"]
    assert post["text"].startswith("Hello you")
    assert [(item["filename"], item["sniffed"], item["content_id"]) for item in post["attachments"]] == [
        ("dot.png", "image/png", "dot.png"),
        ("a.txt", "text/plain", ""),
    ]
    assert await house.blobs.get("sha256:" + post["attachments"][0]["sha256"]) == PNG
    story = await house.mails.post_story(ID)
    assert story is not None
    assert [line["step"] for line in story["timeline"]] == ["created"]


async def test_the_same_id_is_recorded_once_and_other_content_is_a_conflict(house: House) -> None:
    async with working(house) as (client, _):
        same = {"id": ID, "author": "Ann", "title": "One", "text": "words", "timeout_seconds": 20}
        answers = [await client.ask_post(**same), await client.ask_post(**same)]
        other = await client.ask_post(**same | {"title": "Two"})
    assert [answer.status for answer in answers] == ["accepted", "accepted"]
    assert (other.status, other.errors) == ("conflict", ("id: is taken by a post with other content",))
    assert house.mails is not None
    assert [post["title"] for post in await house.lists.newest("posts")] == ["One"]


async def test_a_bad_post_is_answered_with_every_problem(house: House) -> None:
    await house.blobs.begin()
    async with working(house) as (_, _):
        body = json.dumps({"id": ID, "author": "", "colour": 1, "attachments": [{"filename": "../x", "data": "?"}]})
        question = Ticket(queue=POST_CREATE, id=ID, body=body.encode())
        answer = json.loads(await house.broker.ask(question, timeout_seconds=20))
        missing = Attachment(filename="a", blob="sha256:" + "0" * 64)
        post = {"id": ID, "author": "Ann", "title": "x", "attachments": [missing.model_dump(exclude_none=True)]}
        question = Ticket(queue=POST_CREATE, id=ID, body=json.dumps(post).encode())
        unknown = json.loads(await house.broker.ask(question, timeout_seconds=20))
        assert house.database is not None
        balance = await reconcile(house.broker, Accounting(house.database))
    assert (answer["id"], answer["status"]) == (ID, "rejected")
    assert (balance.accepted, balance.missing) == (1, ()), "a request answered with no is accounted for"
    paths = {error.partition(":")[0] for error in answer["errors"]}
    assert {"author", "title", "colour", "attachments[0].filename"} <= paths
    assert unknown["errors"] == [f"attachments[0].blob: sha256:{'0' * 64} is not in the store"]


async def test_html_that_costs_too_much_is_answered_as_a_bad_post_is(house: House) -> None:
    async with working(house) as (client, _):
        answer = await client.ask_post(id=ID, author="Ann", title="x", html="<div>" * 160_000, timeout_seconds=30)
    assert answer.status == "rejected"
    assert answer.errors[0].startswith("html: costs too much to clean (cpu")


async def test_a_bad_post_nobody_waits_for_is_a_dead_letter_not_silence(house: House) -> None:
    async with working(house) as (_, desk):
        with pytest.raises(PermanentFailure, match=r"rejected: .*title"):
            await desk.handle(Ticket(queue=POST_CREATE, id="x", body=b'{"author": "Ann"}'))


async def test_the_client_refuses_a_bad_post_before_it_is_queued(house: House) -> None:
    async with Client(broker=house.broker) as client:
        with pytest.raises(InvalidRequest, match="title"):
            await client.create_post(author="Ann")
        assert await client.create_post(id=ID.upper(), author="Ann", title="x") == ID


async def test_a_post_too_large_to_be_one_is_a_dead_letter_before_it_is_parsed(house: House) -> None:
    endless = b'{"title": "x", "text": [' + b"[]," * 200_000 + b"[]]}"
    async with working(house) as (_, desk):
        with pytest.raises(PermanentFailure, match="too many values"):
            await desk.handle(Ticket(queue=POST_CREATE, id=ID, body=endless))


async def test_while_the_blob_store_is_not_there_no_post_is_refused_for_its_sake(house: House) -> None:
    digest = await house.blobs.put(b"an attachment")
    named = Attachment(filename="a.bin", blob=digest).model_dump(exclude_none=True)
    body = json.dumps({"id": ID, "author": "Ann", "title": "x", "attachments": [named]}).encode()
    question = Ticket(queue=POST_CREATE, id=ID, body=body)
    (house.folder / "blobs").rename(house.folder / "elsewhere")
    (house.folder / "blobs").mkdir()
    async with working(house) as (_, desk):
        with pytest.raises(StoreUnavailable, match="the store is not there"):
            await desk.handle(question)
        assert await house.mails.post_refusal(ID) is None
        (house.folder / "blobs").rmdir()
        (house.folder / "elsewhere").rename(house.folder / "blobs")
        assert await desk.handle(question) == Done()
    assert await house.mails.post(ID) is not None
