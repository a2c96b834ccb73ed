"""Random kill -9 of publishers and consumers: what was confirmed is consumed, and the file stays whole."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.queue.broker import Done
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import MAIL_INBOUND, retry_queue
from gateway.sqlite_file import SqliteFile

ACTORS = Path(__file__).with_name("kill_actors.py")
ROLES = ("publish", "publish", "publish", "consume", "consume")
KILL_EVERY_SECONDS = 0.3


class Crowd:
    """The five processes; whoever is killed is started again."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "queue.db"
        self.logs = {role: folder / f"{role}.log" for role in ROLES}
        self._processes = [self._start(role) for role in ROLES]

    def _start(self, role: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, ACTORS, role, self.file, self.logs[role]], stderr=subprocess.PIPE)

    def kill_one(self) -> None:
        place = random.randrange(len(ROLES))
        self.end(self._processes[place])
        self._processes[place] = self._start(ROLES[place])

    def end(self, process: subprocess.Popen[bytes]) -> None:
        ended_by_itself = process.poll() is not None
        process.kill()
        complaint = process.communicate()[1]
        assert not ended_by_itself, complaint.decode()[-3000:]

    def end_all(self) -> None:
        for process in self._processes:
            self.end(process)

    def ids(self, role: str) -> list[str]:
        return self.logs[role].read_text().split("\n")[:-1] if self.logs[role].exists() else []


@contextmanager
def crowd_in(folder: Path) -> Iterator[Crowd]:
    crowd = Crowd(folder)
    try:
        yield crowd
    finally:
        for process in crowd._processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


async def kill_for(crowd: Crowd, seconds: float) -> int:
    kills = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(KILL_EVERY_SECONDS)
        crowd.kill_one()
        kills += 1
    crowd.end_all()
    return kills + len(ROLES)


async def consume_the_rest(path: Path) -> list[str]:
    found = []
    queues = {MAIL_INBOUND: 1, retry_queue(MAIL_INBOUND): 1}
    async with SqliteBroker(path) as broker:
        async with broker.consume(queues, concurrency=50) as consumer:
            while any(depth.ready + depth.leased + depth.delayed for depth in await broker.depths()):
                for _ in range(500):
                    try:
                        async with asyncio.timeout(1):
                            lease = await anext(aiter(consumer))
                    except TimeoutError:
                        break
                    found.append(lease.ticket.id)
                    await lease.settle(Done())
        assert await broker.dead() == []
    return found


async def prove(folder: Path, seconds: float) -> None:
    with crowd_in(folder) as crowd:
        kills = await kill_for(crowd, seconds)
        confirmed, done = crowd.ids("publish"), crowd.ids("consume")
    rest = await consume_the_rest(crowd.file)
    lost = set(confirmed) - set(done) - set(rest)
    sys.stderr.write(
        f"{kills} kills, {len(confirmed)} confirmed, {len(done)} done, {len(rest)} after, {len(lost)} lost\n"
    )
    assert len(confirmed) > 100 * seconds
    assert len(done) > 10 * seconds
    assert not lost
    assert not [line for line in done if line.startswith("torn")]
    async with SqliteFile(crowd.file) as file:
        assert await file.read(lambda c: c.execute("PRAGMA integrity_check").fetchall()) == [("ok",)]
        assert await file.read(lambda c: c.execute("SELECT count(*) FROM bodies").fetchone()) == (0,)


async def test_eight_seconds_of_kill_9_lose_nothing(tmp_path: Path) -> None:
    await prove(tmp_path, 8)


@pytest.mark.long
async def test_a_minute_of_kill_9_loses_nothing(tmp_path: Path) -> None:
    await prove(tmp_path, 60)
