"""Read your own write: a post is there for its app from the moment it is queued, in memory or through a shared cache."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import gateway
from gateway.cage import Cage
from gateway.client import Client
from gateway.contract.post_create import CreatePost
from gateway.errors import SettingsError, StoreUnavailable
from gateway.inbound.post_create import PostDesk
from gateway.mail.ids import new_id
from gateway.maillog import MailLog
from gateway.pending import PendingInMemory, PendingInRedis, open_pending
from gateway.queue.broker import Done
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import POST_CREATE, Ticket
from gateway.runtime import utc_now
from gateway.store.blobs import FileBlobStore
from gateway.store.database import open_database
from gateway.store.mails import Mails

WORDS = {"author": "Ann", "title": "Hello", "text": "from the app"}


@asynccontextmanager
async def app(folder: Path, database_url: str = "", cache_url: str = "") -> AsyncIterator[Client]:
    async with gateway.connect(
        f"sqlite:///{folder / 'queue.db'}", database_url=database_url, cache_url=cache_url
    ) as it:
        yield it


async def work(folder: Path, database_url: str) -> None:
    """The gateway's part: takes the one waiting post.create and works it."""
    database = await open_database(database_url)
    blobs = FileBlobStore(folder / "blobs")
    mails = Mails(database, blobs, clock=utc_now, hostname="gateway.test")
    async with SqliteBroker(folder / "queue.db") as broker, Cage(children=1) as cage:
        log = MailLog()
        desk = PostDesk(mails=mails, blobs=blobs, cage=cage, answer=broker.answer, log=log, clock=utc_now)
        async with broker.consume({POST_CREATE: 1}, concurrency=1) as consumer:
            lease = await asyncio.wait_for(anext(aiter(consumer)), 30)
            try:
                await desk.handle(lease.ticket)
            except gateway.PermanentFailure:
                pass  # a dead letter in the real house; its reason is recorded by now
            await lease.settle(Done())
    await database.close()


async def test_a_post_is_pending_then_stored(tmp_path: Path, database_url: str) -> None:
    await (await open_database(database_url)).close()
    async with app(tmp_path, database_url) as client:
        post_id = await client.create_post(**WORDS)
        pending = await client.post(post_id)
        assert pending is not None
        assert (pending["status"], pending["title"], pending["text"]) == ("pending", "Hello", "from the app")
        await work(tmp_path, database_url)
        stored = await client.post(post_id)
        assert stored is not None
        assert (stored["status"], stored["text"], stored["attachments"]) == ("stored", "from the app", [])


async def test_a_request_that_failed_says_so(tmp_path: Path, database_url: str) -> None:
    await (await open_database(database_url)).close()
    await FileBlobStore(tmp_path / "blobs").begin()
    async with app(tmp_path, database_url) as client:
        missing = {"filename": "a.png", "content_type": "image/png", "blob": "sha256:" + "0" * 64}
        post_id = await client.create_post(CreatePost.model_validate(WORDS | {"attachments": [missing]}))
        await work(tmp_path, database_url)
        failed = await client.post(post_id)
        assert failed is not None
        assert failed["status"] == "failed"
        assert "is not in the store" in failed["reason"]


class _Refusing:
    """A queue whose acceptance says no, or that is away."""

    def __init__(self, status: str = "") -> None:
        self._status = status

    async def ask(self, ticket: Ticket, *, timeout_seconds: float) -> bytes:
        if not self._status:
            raise gateway.QueueUnavailable("away")
        return json.dumps({"id": ticket.id, "status": self._status}).encode()


async def test_what_was_refused_or_never_queued_is_not_pending() -> None:
    post = CreatePost.model_validate(WORDS)
    refused, away = Client(broker=_Refusing("rejected")), Client(broker=_Refusing())  # type: ignore[arg-type]
    assert (await refused.ask_post(post)).status == "rejected"
    assert await refused.post(post.id) is None
    with pytest.raises(gateway.QueueUnavailable):
        await away.ask_post(post)
    assert await away.post(post.id) is None


async def test_others_know_nothing_of_it_without_a_cache(tmp_path: Path) -> None:
    async with app(tmp_path) as client, app(tmp_path) as other:
        post_id = await client.create_post(**WORDS)
        assert await other.post(post_id) is None
        assert await other.post(new_id()) is None


async def test_others_see_it_through_the_cache(tmp_path: Path, redis_url: str) -> None:
    async with app(tmp_path, cache_url=redis_url) as client, app(tmp_path, cache_url=redis_url) as other:
        post_id = await client.create_post(**WORDS)
        assert await other.post(post_id) == await client.post(post_id)


async def test_a_cache_that_is_away_delays_nothing_and_is_told(tmp_path: Path) -> None:
    told: list[Exception] = []
    async with gateway.connect(f"sqlite:///{tmp_path / 'queue.db'}") as opened:
        pending = PendingInRedis("redis://127.0.0.1:1/0", on_fault=told.append)
        client = Client(broker=opened._open_broker, pending=pending)
        async with client:
            post_id = await client.create_post(**WORDS)
            assert (await client.post(post_id) or {})["status"] == "pending"
            assert await client.post(new_id()) is None
        await pending.close()
    assert len(told) == 2


async def test_a_strangers_value_in_the_cache_is_no_post(redis_url: str) -> None:
    told: list[Exception] = []
    pending = PendingInRedis(redis_url, on_fault=told.append)
    post_id = new_id()
    await pending._redis.set(f"gateway:post:{post_id}", "[not json")
    assert await pending.recall(post_id) is None
    assert len(told) == 1
    await pending.close()


async def test_memory_forgets_by_time_and_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.pending.REMEMBERED_POSTS", 2)
    memory, posts = PendingInMemory(), [CreatePost.model_validate(WORDS) for _ in range(3)]
    for post in posts:
        await memory.remember(post)
    assert [await memory.recall(post.id) is not None for post in posts] == [False, True, True]
    monkeypatch.setattr("gateway.pending.REMEMBERED_SECONDS", 0)
    await memory.remember(posts[0])
    assert await memory.recall(posts[0].id) is None


def test_a_url_that_names_no_cache_is_refused() -> None:
    with pytest.raises(SettingsError, match="cache_url: 'memcached' is no cache"):
        open_pending("memcached://localhost")


def test_the_blocking_client_reads_its_own_write(tmp_path: Path) -> None:
    with gateway.connect_blocking(f"sqlite:///{tmp_path / 'queue.db'}") as client:
        post_id = client.create_post(**WORDS)
        assert (client.post(post_id) or {})["status"] == "pending"


async def test_an_app_starts_and_sends_while_the_store_is_away_and_finds_it_when_it_comes(
    tmp_path: Path, bare_database_url: str
) -> None:
    """No file yet, or a server's database with nothing in it: made by the gateway while the app is at work."""
    async with app(tmp_path, bare_database_url) as client:
        post_id = await client.create_post(**WORDS)
        assert (await client.post(post_id) or {})["status"] == "pending"
        with pytest.raises(StoreUnavailable, match="database_url"):
            await client.post(new_id())
        assert not list(tmp_path.glob("store.db*")), "a look makes no store"
        await work(tmp_path, bare_database_url)
        async with asyncio.timeout(30):
            while (await client.post(post_id) or {})["status"] != "stored":
                await asyncio.sleep(0.05)


async def test_what_fails_half_way_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="database_url"):
        async with app(tmp_path, "mysql://db/gateway"):
            pass
    assert not [thread.name for thread in threading.enumerate() if "queue.db" in thread.name]


async def test_an_id_that_is_none_is_nobodys_post(tmp_path: Path) -> None:
    async with app(tmp_path) as client:
        assert await client.post("../etc/passwd") is None


@pytest.mark.parametrize("url", ["memcached://host", "redis://:s3cret@host:port/0"])
def test_a_cache_that_is_none_is_refused_by_its_key(url: str) -> None:
    with pytest.raises(SettingsError, match="cache_url") as refused:
        gateway.connect("sqlite:///queue.db", cache_url=url)
    assert "s3cret" not in str(refused.value)


def test_a_blocking_client_that_is_not_open_says_so(tmp_path: Path) -> None:
    client = gateway.connect_blocking(f"sqlite:///{tmp_path / 'queue.db'}")
    with pytest.raises(RuntimeError, match="the client is not open"):
        client.create_post(**WORDS)
    with client:
        client.create_post(**WORDS)
    with pytest.raises(RuntimeError, match="the client is not open"):
        client.create_post(**WORDS)
