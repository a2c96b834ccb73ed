"""The collector's rounds: dead letters are noted first, one process works at a time, a fault ends a round and no more."""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.errors import QueueUnavailable
from gateway.maillog import MailLog
from gateway.queue.broker import Dead, DeadTicket
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import Ticket
from gateway.runtime import Stop, utc_now
from gateway.store.blob_collector import Collector
from gateway.store.blobs import FileBlobStore
from gateway.store.database import Database
from gateway.watch import collect as rounds


class Broker:
    def __init__(self, *letters: DeadTicket) -> None:
        self.letters = list(letters)
        self.asked = 0
        self.is_away = False

    async def all_dead(self) -> AsyncIterator[DeadTicket]:
        self.asked += 1
        if self.is_away:
            raise QueueUnavailable("away")
        for letter in self.letters:
            yield letter


def letter(**values: object) -> DeadTicket:
    ticket = Ticket(**{"queue": "email.send", "id": "t", "body": b""} | values)
    return DeadTicket(number="1", ticket=ticket, queue="email.send", reason="r", died_at=datetime.now(UTC))


@pytest.fixture
def collector(database: Database, blobs: FileBlobStore) -> Collector:
    return Collector(database, blobs, clock=utc_now)


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(said: io.StringIO) -> MailLog:
    return MailLog(stream=said)


async def put_old(blobs: FileBlobStore, folder: Path, *octets: bytes) -> list[str]:
    digests = [await blobs.put(item) for item in octets]
    for path in folder.glob("blobs/??/*"):
        os.utime(path, (time.time() - 31 * 86400,) * 2)
    return digests


async def test_a_round_keeps_what_dead_letters_carry_in_header_or_body_and_tells_what_it_took(
    collector: Collector, blobs: FileBlobStore, tmp_path: Path, log: MailLog, said: io.StringIO
) -> None:
    mail, attached, forgotten = await put_old(blobs, tmp_path, b"mail", b"attached", b"forgotten")
    body = json.dumps({"attachments": [{"blob": attached}]}).encode()
    await rounds.collect_once(collector, Broker(letter(headers={"blob": mail}), letter(id="u", body=body)), log=log)
    assert [await blobs.exists(each) for each in (mail, attached, forgotten)] == [True, True, False]
    assert "collector-collected" in said.getvalue()


async def test_without_the_queues_word_nothing_is_taken_and_the_next_round_comes(
    collector: Collector, blobs: FileBlobStore, tmp_path: Path, log: MailLog, said: io.StringIO
) -> None:
    [forgotten] = await put_old(blobs, tmp_path, b"forgotten")
    broker, stop = Broker(), Stop()
    broker.is_away = True
    running = asyncio.create_task(rounds.collect(collector, broker, stop=stop, log=log, interval_seconds=0.01))
    async with asyncio.timeout(30):
        while broker.asked < 2:
            await asyncio.sleep(0.01)
        assert await blobs.exists(forgotten)
        assert "collector-failed" in said.getvalue()
        broker.is_away = False
        while await blobs.exists(forgotten):
            await asyncio.sleep(0.01)
    stop.set()
    await running


async def test_however_many_letters_there_are_all_are_looked_through(
    collector: Collector, blobs: FileBlobStore, tmp_path: Path, log: MailLog
) -> None:
    carried, forgotten = await put_old(blobs, tmp_path, b"carried", b"forgotten")
    last = letter(id="u", body=json.dumps({"blob": carried}).encode())
    await rounds.collect_once(collector, Broker(*[letter()] * 2500, last), log=log)
    assert [await blobs.exists(each) for each in (carried, forgotten)] == [True, False]


async def test_what_the_body_of_a_real_queues_dead_letter_names_is_kept(
    collector: Collector, blobs: FileBlobStore, tmp_path: Path, log: MailLog
) -> None:
    carried, forgotten = await put_old(blobs, tmp_path, b"carried", b"forgotten")
    async with SqliteBroker(tmp_path / "queue.db") as broker:
        body = json.dumps({"attachments": [{"filename": "a", "blob": carried}]}).encode()
        await broker.publish([Ticket(queue="email.send", id="u", body=body)])
        async with broker.consume({"email.send": 1}, concurrency=1) as consumer:
            async with asyncio.timeout(30):
                await (await anext(aiter(consumer))).settle(Dead(reason="r"))
        await rounds.collect_once(collector, broker, log=log)
    assert [await blobs.exists(each) for each in (carried, forgotten)] == [True, False]


async def test_one_collector_works_at_a_time(
    collector: Collector, database: Database, blobs: FileBlobStore, log: MailLog
) -> None:
    other, broker = Collector(database, blobs, clock=utc_now), Broker()
    await rounds.collect_once(collector, broker, log=log)
    await rounds.collect_once(other, broker, log=log)
    await rounds.collect_once(collector, broker, log=log)
    assert broker.asked == 2
