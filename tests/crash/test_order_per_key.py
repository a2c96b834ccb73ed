"""Order per key under load: two workers, one of them killed, a relay that refuses a third of the emails twice, a blocked key.

What is proved is read at the relay: the order in which it first took each key's emails is the order they were published in.
`make test-long` does it with a thousand emails and the sweeper's own times; the small form has a quicker ladder and sweeper.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import serial_worker

import gateway
from gateway.client import Client
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


class StubbornRelay:
    """Refuses recipients named `…-twice@` two times, answers gibberish to the first dot for `…-gibberish@`."""

    def __init__(self) -> None:
        self.port = 0
        self.tries: Counter[str] = Counter()
        self.order: list[str] = []
        self.refused = 0
        self.taken = asyncio.Event()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[StubbornRelay]:
        server = await asyncio.start_server(self._session, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        yield self
        server.close()

    async def wait_taken(self, count: int, within_seconds: float) -> None:
        async with asyncio.timeout(within_seconds):
            while len(self.order) < count:
                self.taken.clear()
                await self.taken.wait()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # a worker was killed: that is the test
            await self._talk(reader, writer)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recipient = ""
        writer.write(b"220 stubborn ESMTP\r\n")
        while line := (await reader.readline()).decode("latin-1").strip():
            verb, answer = line.upper().split(":")[0].split(" ")[0], "250 2.0.0 ok"
            if verb == "RCPT":
                recipient = line.partition("<")[2].partition("@")[0]
                answer = self._judge(recipient)
            elif verb == "DATA":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                answer = self._take(recipient)
            writer.write(f"{answer}\r\n".encode())
            await writer.drain()

    def _judge(self, recipient: str) -> str:
        self.tries[recipient] += 1
        if recipient.endswith("-twice") and self.tries[recipient] <= 2:
            self.refused += 1
            return "450 4.2.0 not now"
        return "250 2.1.5 ok"

    def _take(self, recipient: str) -> str:
        if recipient.endswith("-gibberish") and self.tries[recipient] == 1:
            return "650 what"
        if recipient not in self.order:
            self.order.append(recipient)
            self.taken.set()
        return "250 2.0.0 taken"


@dataclass
class Shop:
    """An app that publishes in order, and two workers."""

    folder: Path
    relay: StubbornRelay
    load: Load
    names: dict[str, list[str]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_worker(self) -> subprocess.Popen[bytes]:
        load = self.load
        words = [self.folder, f"smtp://127.0.0.1:{self.relay.port}", load.ladder]
        command = [sys.executable, serial_worker.__file__, *words, load.sweep_seconds, load.overdue_seconds]
        with (self.folder / "workers.log").open("ab") as log:
            self.workers.append(subprocess.Popen(list(map(str, command)), stdout=log, stderr=log))
        return self.workers[-1]

    async def publish_all(self) -> None:
        async with gateway.connect(f"sqlite:///{self.folder}/queue.db") as client:
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


@pytest.mark.parametrize("load", [SMALL, pytest.param(WHOLE, marks=pytest.mark.long)], ids=["small", "whole"])
async def test_each_key_leaves_in_order_though_a_worker_dies(relay: StubbornRelay, tmp_path: Path, load: Load) -> None:
    shop = Shop(tmp_path, relay, load)
    await shop.publish_all()
    try:
        victim = shop.start_worker()
        shop.start_worker()
        await relay.wait_taken(load.emails // 3, load.within_seconds)
        victim.kill()
        shop.start_worker()
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
    database = await open_database(f"sqlite:///{shop.folder}/store.db")
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
