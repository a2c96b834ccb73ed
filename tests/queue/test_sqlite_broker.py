"""What is particular to the SQLite engine: lives, debts after an outage, replies nobody fetched."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.errors import QueueUnavailable
from gateway.queue.broker import Done, Event
from gateway.queue.shares import Shares
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import EMAIL_SEND_SERIAL, MAIL_INBOUND, Ticket

HOLDER = """
import asyncio, os, signal, sys
from pathlib import Path
from gateway.queue.sqlite import SqliteBroker
async def main():
    async with SqliteBroker(Path(sys.argv[1])) as broker:
        async with broker.consume({"mail.inbound": 1}, concurrency=5) as consumer:
            async for lease in consumer:
                print("leased", flush=True)
                await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


def ticket(id: str = "1", queue: str = MAIL_INBOUND) -> Ticket:
    return Ticket(queue=queue, id=id, body=b"")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


async def ready(broker: SqliteBroker, name: str = MAIL_INBOUND) -> int:
    return sum(depth.ready for depth in await broker.depths() if depth.name == name)


@pytest.mark.parametrize("has_watcher", [True, False])
async def test_leases_of_a_killed_process_come_back_in_seconds(path: Path, has_watcher: bool) -> None:
    async with SqliteBroker(path) as broker:
        await broker.publish([ticket()])
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "leased\n"
        async with broker.consume({MAIL_INBOUND: 1}, concurrency=1) as consumer:
            if not has_watcher:
                consumer.pause()
            waiting = asyncio.create_task(anext(aiter(consumer)))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.communicate)
            consumer.resume()
            begun = time.monotonic()
            lease = await asyncio.wait_for(waiting, 5)
            assert time.monotonic() - begun < 3
            assert lease.delivery_count == 1
        assert len(list(path.with_name("queue.db.lives").iterdir())) == 1


async def test_a_serial_queue_is_handed_over_in_order_by_who_stops_and_by_who_dies(path: Path) -> None:
    async with SqliteBroker(path, reap_seconds=0.02) as broker, SqliteBroker(path, reap_seconds=0.02) as other:
        await broker.publish([ticket(str(number), EMAIL_SEND_SERIAL) for number in range(3)])
        async with broker.consume({EMAIL_SEND_SERIAL: 1}, concurrency=5, lease_seconds=0.3) as consumer:
            stopping = await anext(aiter(consumer))
            consumer.stop()
            async with other.consume({EMAIL_SEND_SERIAL: 1}, concurrency=5) as elsewhere:
                waiting = asyncio.create_task(anext(aiter(elsewhere)))
                await stopping.settle(Done())
                lease = await asyncio.wait_for(waiting, 5)
                assert lease.ticket.id == "1"
        async with broker.consume({EMAIL_SEND_SERIAL: 1}, concurrency=5, lease_seconds=0.05) as silent:
            assert (await anext(aiter(silent))).ticket.id == "1"
            silent.stop()
            async with other.consume({EMAIL_SEND_SERIAL: 1}, concurrency=5) as elsewhere:
                lease = await asyncio.wait_for(anext(aiter(elsewhere)), 5)
                assert (lease.ticket.id, lease.delivery_count) == ("1", 1)


async def test_lives_of_the_dead_are_cleared_away_at_the_start(path: Path) -> None:
    lives = path.with_name("queue.db.lives")
    lives.mkdir()
    (lives / "dead").touch()
    async with SqliteBroker(path), SqliteBroker(path):
        assert len(list(lives.iterdir())) == 2
    assert list(lives.iterdir()) == []


async def test_a_done_that_could_not_be_written_is_written_after_the_outage(path: Path) -> None:
    async with SqliteBroker(path) as broker:
        await broker.publish([ticket("1")])
        async with broker.consume({MAIL_INBOUND: 1}, concurrency=1) as consumer:
            lease = await anext(aiter(consumer))
            path.rename(path.with_suffix(".away"))
            await lease.settle(Done())
            with pytest.raises(QueueUnavailable):
                await anext(aiter(consumer))
            path.with_suffix(".away").rename(path)
            await broker.publish([ticket("2")])
            async with asyncio.timeout(5):
                assert (await anext(aiter(consumer))).ticket.id == "2"
        (inbound,) = [depth for depth in await broker.depths() if depth.name == MAIL_INBOUND]
        assert (inbound.ready, inbound.leased) == (1, 0)


async def test_a_claim_of_unknown_outcome_is_given_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SqliteBroker(path) as broker:
        await broker.publish([ticket()])
        write = broker._write

        async def commit_and_fail(*args, **values):
            monkeypatch.setattr(broker, "_write", write)
            await write(*args, **values)
            raise QueueUnavailable("no answer in time")

        async with broker.consume({MAIL_INBOUND: 1}, concurrency=1) as consumer:
            monkeypatch.setattr(broker, "_write", commit_and_fail)
            with pytest.raises(QueueUnavailable):
                await anext(aiter(consumer))
            assert await ready(broker) == 0
            lease = await asyncio.wait_for(anext(aiter(consumer)), 5)
            assert lease.delivery_count == 0


async def test_a_cancelled_wait_loses_no_lease(path: Path) -> None:
    async with SqliteBroker(path) as broker:
        async with broker.consume({MAIL_INBOUND: 1}, concurrency=50) as consumer:
            for n in range(50):
                await broker.publish([ticket(str(n))])
                waiting = asyncio.create_task(anext(aiter(consumer)))
                for _ in range(n % 7):
                    await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
        assert await ready(broker) == 50


async def test_answers_nobody_fetched_go_after_an_hour(path: Path) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    async with SqliteBroker(path, clock=lambda: now, reap_seconds=0) as broker:
        await broker.answer(Ticket(queue=MAIL_INBOUND, id="1", body=b"", reply_to="reply.gone"), b"late")

        def bodies():
            return broker._file.read(lambda c: c.execute("SELECT count(*) FROM bodies").fetchone()[0])

        async with broker.consume({MAIL_INBOUND: 1}, concurrency=1) as consumer:
            waiting = asyncio.create_task(anext(aiter(consumer)))
            await asyncio.sleep(0.05)
            assert await bodies() == 1
            now += timedelta(hours=1, seconds=1)
            async with asyncio.timeout(5):
                while await bodies():
                    await asyncio.sleep(0.01)
            waiting.cancel()


async def test_subscribing_again_replaces_the_patterns(path: Path) -> None:
    async with SqliteBroker(path) as broker:
        await broker.subscribe("shop", ["email.*"])
        queue = await broker.subscribe("shop", ["mail.*"])
        await broker.publish_events([Event(key=key, id=key, body=b"") for key in ("email.a", "mail.a")])
        assert await ready(broker, queue) == 1


async def test_an_idle_consumer_costs_next_to_nothing(path: Path) -> None:
    async with SqliteBroker(path) as broker, broker.consume({MAIL_INBOUND: 1}, concurrency=1) as consumer:
        waiting = asyncio.create_task(anext(aiter(consumer)))
        begun = time.process_time()
        await asyncio.sleep(1)
        assert time.process_time() - begun < 0.05
        waiting.cancel()


def test_shares_are_smooth() -> None:
    shares = Shares({"a": 3, "b": 1})
    lines = {"a": ["a"] * 12, "b": ["b"] * 12}
    assert "".join(shares.pick(lines, 8)) == "aabaaaba"
    assert shares.pick({"a": [], "b": ["b", "b"]}, 5) == ["b", "b"]
    assert shares.pick({}, 5) == []


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two users")
NOBODY = 65534
AS_NOBODY = """
import asyncio, concurrent.futures.thread, os, sys
from pathlib import Path
from gateway.queue.broker import Done
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import Ticket
os.setgid(65534), os.setuid(65534)
async def main():
    async with SqliteBroker(Path(sys.argv[1])) as broker:
        await broker.publish([Ticket(queue="mail.inbound", id="1", body=b"")])
        async with broker.consume({"mail.inbound": 1}, concurrency=1) as consumer:
            async with asyncio.timeout(10):
                await (await anext(consumer)).settle(Done())
asyncio.run(main())
"""


@pytest.fixture
def path_of_nobody() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own folders are closed to other users
        os.chown(folder, NOBODY, NOBODY)
        yield Path(folder) / "queue.db"


async def as_nobody(path: Path) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", AS_NOBODY, str(path), stderr=subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


@needs_root
async def test_what_root_makes_beside_the_services_file_belongs_to_the_service(path_of_nobody: Path) -> None:
    path = path_of_nobody
    await as_nobody(path)
    for sidecar in (".turn", ".lives", ".bells"):
        item = path.with_name(path.name + sidecar)
        item.unlink() if item.is_file() else item.rmdir()
    async with SqliteBroker(path) as broker, broker.consume({"other": 1}, concurrency=1):
        made = [item for item in path.parent.rglob("*") if item.exists()]
        assert {item.name.removeprefix("queue.db") for item in made} >= {".turn", ".lives", ".bells"}
        assert [item for item in made if item.stat().st_uid != NOBODY] == []
        await as_nobody(path)
    await as_nobody(path)


@needs_root
async def test_a_life_that_may_not_be_asked_counts_as_alive_and_stops_nobody(path_of_nobody: Path) -> None:
    path = path_of_nobody
    await as_nobody(path)
    life = path.with_name(path.name + ".lives") / "of-root"
    life.touch(mode=0o600)
    await as_nobody(path)
    assert life.exists()


async def test_a_clock_set_back_delays_only_what_has_its_time(path: Path) -> None:
    now = datetime(2030, 1, 1, 12, tzinfo=UTC)
    async with SqliteBroker(path, clock=lambda: now + timedelta(hours=2)) as early:
        await early.publish([ticket(), replace(ticket("2"), due_at=now + timedelta(hours=3))])
    async with SqliteBroker(path, clock=lambda: now) as broker, asyncio.timeout(20):
        async with broker.consume({MAIL_INBOUND: 1}, concurrency=2) as consumer:
            lease = await anext(aiter(consumer))
            assert lease.ticket.id == "1"
            await lease.settle(Done())
        (depth,) = [depth for depth in await broker.depths() if depth.name == MAIL_INBOUND]
        assert (depth.ready, depth.delayed) == (0, 1)
