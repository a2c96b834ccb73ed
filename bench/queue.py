"""The queue on one SQLite file: publish, wake-up and throughput under load, beside one commit a publish the plain way.

Three publisher and two consumer processes share the file; publishers keep 20 publishes in flight each and fill the disk
as fast as they can.  The plain way has the same five processes, each statement its own transaction, and leaves waiting to
SQLite's busy handler and checkpoints to SQLite.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gateway.queue.broker import Done
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import MAIL_INBOUND, Ticket

SECONDS = float(os.environ.get("BENCH_SECONDS", "6"))
BODY = b"x" * 4096
IN_FLIGHT = 20
WAKE_UPS = 300
ROLES = ("publish", "publish", "publish", "consume", "consume")


@dataclass
class Tally:
    """What one process measured."""

    count: int = 0
    latencies: list[float] = field(default_factory=list)


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


# Ours


async def publish(path: Path, end: float) -> Tally:
    tally = Tally()

    async def one(broker: SqliteBroker) -> None:
        while time.time() < end:
            begun = time.perf_counter()
            await broker.publish([Ticket(queue=MAIL_INBOUND, id=str(uuid.uuid4()), body=BODY)])
            tally.latencies.append(time.perf_counter() - begun)
            tally.count += 1

    async with SqliteBroker(path) as broker:
        await asyncio.gather(*(one(broker) for _ in range(IN_FLIGHT)))
    return tally


async def consume(path: Path, end: float) -> Tally:
    tally = Tally()
    async with SqliteBroker(path) as broker, broker.consume({MAIL_INBOUND: 1}, concurrency=50) as consumer:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0, end - time.time())):
                async for lease in consumer:
                    await lease.settle(Done())
                    tally.count += 1
    return tally


async def wake(path: Path, end: float) -> Tally:
    """An idle consumer: how long after the publisher's clock reading does the ticket arrive here?"""
    tally = Tally()
    async with SqliteBroker(path) as broker, broker.consume({"wake": 1}, concurrency=1) as consumer:
        async for lease in consumer:
            tally.latencies.append(time.time() - float(lease.ticket.headers["at"]))
            await lease.settle(Done())
            if len(tally.latencies) == WAKE_UPS:
                break
    return tally


# The plain way


def plain_open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS tickets (number INTEGER PRIMARY KEY, id TEXT, body BLOB, leased INTEGER)"
    )
    return connection


async def plain_publish(path: Path, end: float) -> Tally:
    connection, tally = plain_open(path), Tally()
    while time.time() < end:
        begun = time.perf_counter()
        connection.execute("INSERT INTO tickets (id, body) VALUES (?, ?)", (str(uuid.uuid4()), BODY))
        tally.latencies.append(time.perf_counter() - begun)
        tally.count += 1
    return tally


async def plain_consume(path: Path, end: float) -> Tally:
    connection, tally = plain_open(path), Tally()
    lease = """UPDATE tickets SET leased = 1 WHERE number = (SELECT number FROM tickets WHERE leased IS NULL LIMIT 1)
        RETURNING number, body"""
    while time.time() < end:
        if rows := connection.execute(lease).fetchall():
            connection.execute("DELETE FROM tickets WHERE number = ?", (rows[0][0],))
            tally.count += 1
        else:
            await asyncio.sleep(0.001)
    return tally


# The crowd


def run_crowd(path: Path, prefix: str) -> tuple[dict[str, Tally], int]:
    """Runs the five processes; returns what they measured together and how large the WAL became."""
    end = time.time() + SECONDS + 1
    processes = [(role, start(prefix + role, path, end)) for role in ROLES]
    stop, sizes = threading.Event(), [0]
    watching = threading.Thread(target=watch_wal, args=(Path(f"{path}-wal"), sizes, stop))
    watching.start()
    tallies = {role: Tally() for role in ROLES}
    for role, process in processes:
        found = Tally(**json.loads(process.communicate(timeout=SECONDS + 60)[0]))
        tallies[role].count += found.count
        tallies[role].latencies += found.latencies
    stop.set()
    watching.join()
    return tallies, max(sizes)


def start(role: str, path: Path, end: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "bench.queue", role, path, str(end)], stdout=subprocess.PIPE)


def watch_wal(wal: Path, sizes: list[int], stop: threading.Event) -> None:
    while not stop.wait(0.005):
        with suppress(FileNotFoundError):
            sizes.append(wal.stat().st_size)


async def measure_wake_ups(path: Path) -> list[float]:
    process = start("wake", path, 0)
    async with SqliteBroker(path) as broker:
        for n in range(WAKE_UPS):
            await broker.publish([Ticket(queue="wake", id=str(n), body=b"", headers={"at": time.time()})])
            await asyncio.sleep(0.01)
    tally = json.loads((await asyncio.to_thread(process.communicate))[0])
    return list(tally["latencies"][50:])  # the first ones waited for the process to start


def line(name: str, ours: float, plain: float | None, goal: str = "") -> None:
    ratio = "" if not plain or not ours else f"{plain / ours:8.1f}x" if "ms" in name else f"{ours / plain:8.1f}x"
    print(f"{name:<32}{ours:>12.1f}{'' if plain is None else f'{plain:.1f}':>12}{ratio:>10}   {goal}")


def main() -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        ours, wal = run_crowd(Path(folder) / "queue.db", "")
        plain, plain_wal = run_crowd(Path(folder) / "plain.db", "plain_")
        wakes = asyncio.run(measure_wake_ups(Path(folder) / "wake.db"))
    mine, theirs = ours["publish"], plain["publish"]
    print(f"queue: 3 publishers, 2 consumers, {len(BODY)} B bodies, {SECONDS:g} s")
    print(f"{'':<32}{'ours':>12}{'plain':>12}{'gain':>10}   goal")
    line("published /s", mine.count / SECONDS, theirs.count / SECONDS)
    line("consumed /s", ours["consume"].count / SECONDS, plain["consume"].count / SECONDS)
    for percent in (50, 99, 99.9, 100):
        milliseconds = [percentile(tally.latencies, percent) * 1000 for tally in (mine, theirs)]
        line(f"publish ms, p{percent:g}", *milliseconds, goal="<= 50" if percent == 99 else "")
    line("largest WAL, MB", wal / 1e6, plain_wal / 1e6, "<= 64")
    line("wake-up elsewhere ms, p50", percentile(wakes, 50) * 1000, None)
    line("wake-up elsewhere ms, p99", percentile(wakes, 99) * 1000, None, "<= 20")


def act(role: str, path: str, end: str) -> None:
    roles = {
        "publish": publish,
        "consume": consume,
        "wake": wake,
        "plain_publish": plain_publish,
        "plain_consume": plain_consume,
    }
    tally = asyncio.run(roles[role](Path(path), float(end)))
    print(json.dumps({"count": tally.count, "latencies": tally.latencies}))


if __name__ == "__main__":
    act(*sys.argv[1:]) if len(sys.argv) > 1 else main()
