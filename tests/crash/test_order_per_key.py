"""Order per key under load: two workers, one of them killed, a relay that refuses two fifths of the emails twice, a blocked key.

On SQLite, and on RabbitMQ with PostgreSQL, where the broker is killed, too, and comes back.
What is proved is read at the relay: the order in which it first took each key's emails is the order they were published in.
`make test-long` does it with a thousand emails and the sweeper's own times; the small form has a quicker ladder and sweeper.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import serial_worker
from fakes.stubborn_relay import StubbornRelay
from services.rabbitmq import Epmd, Node, require

import gateway
from gateway.client import Client, open_broker
from gateway.contract.email_send import SendEmail
from gateway.runtime import utc_now
from gateway.store.blobs import FileBlobStore
from gateway.store.database import open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.lists import Lists

BLOCKED = "blocked"


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much, and how patient workers and sweeper are."""

    emails: int
    keys: int
    ladder: str
    sweep_seconds: float
    overdue_seconds: float
    within_seconds: float


SMALL = Load(emails=40, keys=4, ladder="0.1s 0.2s 0.4s", sweep_seconds=0.5, overdue_seconds=1.5, within_seconds=120)
WHOLE = Load(emails=1000, keys=20, ladder="1s 2s 4s", sweep_seconds=10, overdue_seconds=120, within_seconds=1200)


@dataclass(frozen=True, kw_only=True)
class Engines:
    """A queue and a store, and the broker's node where there is one to kill."""

    queue_url: str
    database_url: str
    node: Node | None = None

    def kill_broker(self) -> None:
        """Kills the node and starts it on what it has on disk."""
        if self.node is not None:
            self.node.kill()
            self.node.start()


@dataclass
class Shop:
    """An app that publishes in order, and two workers."""

    folder: Path
    engines: Engines
    relay: StubbornRelay
    load: Load
    names: dict[str, list[str]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_worker(self) -> subprocess.Popen[bytes]:
        load = self.load
        urls = [self.engines.queue_url, self.engines.database_url, f"smtp://127.0.0.1:{self.relay.port}"]
        words = [self.folder, *urls, load.ladder]
        command = [sys.executable, serial_worker.__file__, *words, load.sweep_seconds, load.overdue_seconds]
        with (self.folder / "workers.log").open("ab") as log:
            self.workers.append(subprocess.Popen(list(map(str, command)), stdout=log, stderr=log))
        return self.workers[-1]

    async def publish_all(self) -> None:
        async with open_broker(self.engines.queue_url, receipts=self.folder / "receipts.db"):
            pass  # an app declares nothing: a process of the gateway's own has been there before it
        async with gateway.connect(self.engines.queue_url) as client:
            await self.publish(client, BLOCKED, f"{BLOCKED}-0-gibberish", on_unknown="hold")
            await self.publish(client, BLOCKED, f"{BLOCKED}-1")
            for number in range(self.load.emails):
                key = f"k{number % self.load.keys}"
                kind = "-twice" if number // self.load.keys % 5 in (1, 3) else ""
                await self.publish(client, key, f"{key}-{number}{kind}")

    async def publish(self, client: Client, key: str, name: str, **fields: str) -> None:
        to = (f"{name}@example.org",)
        email = SendEmail(to=to, subject="s", text="t", serial_key=key, **fields)
        self.ids[name] = await client.send(email)
        self.names.setdefault(key, []).append(name)

    def taken(self, key: str) -> list[str]:
        return [name for name in self.relay.order if name.partition("-")[0] == key]


@pytest.fixture
async def relay() -> AsyncIterator[StubbornRelay]:
    async with StubbornRelay().serving() as found:
        yield found


@pytest.fixture(params=["sqlite", "rabbitmq"])
def engines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engines]:
    if request.param == "sqlite":
        yield Engines(queue_url=f"sqlite:///{tmp_path}/queue.db", database_url=f"sqlite:///{tmp_path}/store.db")
        return
    require()
    database_url = request.getfixturevalue("postgres_url")
    folder = Path(tempfile.mkdtemp(prefix="gateway-order-"))
    epmd = Epmd()
    node = Node(folder / "node", epmd)
    try:
        node.start()
        yield Engines(queue_url=node.url(), database_url=database_url, node=node)
    finally:
        node.end()
        epmd.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("load", [SMALL, pytest.param(WHOLE, marks=pytest.mark.long)], ids=["small", "whole"])
async def test_each_key_leaves_in_order_though_a_worker_and_the_broker_die(
    relay: StubbornRelay, tmp_path: Path, engines: Engines, load: Load
) -> None:
    shop = Shop(tmp_path, engines, relay, load)
    await shop.publish_all()
    try:
        victim = shop.start_worker()
        shop.start_worker()
        await relay.wait_taken(load.emails // 3, load.within_seconds)
        victim.kill()
        shop.start_worker()
        await relay.wait_taken(load.emails // 2, load.within_seconds)
        await asyncio.to_thread(engines.kill_broker)
        await relay.wait_taken(load.emails, load.within_seconds)

        assert shop.taken(BLOCKED) == [], "nobody decided on the first of it"
        for key in (f"k{number}" for number in range(load.keys)):
            assert shop.taken(key) == shop.names[key], f"{key} left in another order"
        assert relay.refused >= 2 * 0.3 * load.emails
        await decide(shop)
    finally:
        for worker in shop.workers:
            worker.kill()
            worker.wait()


async def decide(shop: Shop) -> None:
    """A person lets the blocked key go on; then everything is relayed, and what came twice was `unknown` between."""
    database = await open_database(shop.engines.database_url)
    ledger = DatabaseLedger(database, FileBlobStore(shop.folder / "blobs"), clock=utc_now, hostname="mx.test")
    story = await ledger.story(shop.ids[f"{BLOCKED}-1"])
    assert story is not None
    first = shop.ids[f"{BLOCKED}-0-gibberish"]
    assert story["recipients"][0]["reason"] == f"waits for {first}, position 2 of key {BLOCKED}"
    assert await ledger.release(first, by="ann") == 1
    await shop.relay.wait_taken(shop.load.emails + 2, shop.load.within_seconds)
    assert shop.taken(BLOCKED) == shop.names[BLOCKED]
    async with asyncio.timeout(shop.load.within_seconds), database.bell() as bell:
        while set(await Lists(database).counts("emails")) != {"relayed"}:
            await bell.wait(1)
    assert await Lists(database).counts("emails") == {"relayed": shop.load.emails + 2}
    await database.close()
