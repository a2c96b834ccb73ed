"""RabbitMQ nodes killed, stopped and restarted under load: nothing confirmed is lost, nothing comes twice without a reason.

One node killed and started again; and three nodes, hit one at a time, the leader of the queue among them.
`make chaos-cluster` does all of it, `make test-services` two minutes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chaos.load import Load
from services.rabbitmq import Cluster, Epmd, Node, require

from gateway.queue.ticket import MAIL_INBOUND

IDLE_SECONDS = 120.0
STOPPED_SECONDS = 6.0


@pytest.fixture
def folder() -> Iterator[Path]:
    require()
    folder = Path(tempfile.mkdtemp(prefix="gateway-chaos-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_node_killed_in_the_middle_of_publishing_and_consuming_keeps_what_it_confirmed(folder: Path) -> None:
    epmd = Epmd()
    node = Node(folder / "node", epmd)
    node.start()
    try:
        load = Load([node.url()], pairs=1)
        running = asyncio.create_task(load.run())
        for _ in range(3):
            await more(load, 500)
            await asyncio.to_thread(node.kill)
            await asyncio.to_thread(node.start)
        await more(load, 500)
        load.stop()
        await load.drain(idle_seconds=IDLE_SECONDS)
        await running
    finally:
        node.end()
        epmd.end()
    assert load.outages > 0, "the kills were seen"
    assert (load.lost, load.unexplained) == (set(), {})


async def more(load: Load, count: int) -> None:
    """Waits until so many more tickets are confirmed."""
    wanted = len(load.confirmed) + count
    async with asyncio.timeout(IDLE_SECONDS):
        while len(load.confirmed) < wanted:
            await asyncio.sleep(0.05)


@dataclass
class Monkey:
    """Hits one node at a time, and waits until the queue is whole again before the next."""

    cluster: Cluster
    done: list[str] = field(default_factory=list)
    leaders_hit: int = 0

    def hit(self, number: int) -> None:
        fault = (self._kill, self._stop, self._restart)[number % 3]
        leader = self.cluster.leader(MAIL_INBOUND, asked=self.cluster.nodes[0])
        others = [node for node in self.cluster.nodes if node is not leader]
        victim = leader if number % 2 == 0 else others[number // 2 % 2]
        self.leaders_hit += victim is leader
        fault(victim)
        self.done.append(f"{fault.__name__.strip('_')} {victim.name}{' (leader)' if victim is leader else ''}")
        self.cluster.wait_until_whole(MAIL_INBOUND)

    def _kill(self, node: Node) -> None:
        node.kill()
        time.sleep(1)
        node.start()

    def _stop(self, node: Node) -> None:
        node.signal(signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        node.signal(signal.SIGCONT)

    def _restart(self, node: Node) -> None:
        node.ctl("stop_app")
        node.ctl("start_app")


async def chaos(folder: Path, *, is_enough: Callable[[Load, Monkey], bool]) -> tuple[Load, Monkey]:
    cluster = Cluster(folder)
    try:
        await asyncio.to_thread(cluster.start)
        load, monkey = Load([node.url() for node in cluster.nodes]), Monkey(cluster)
        running = asyncio.create_task(load.run())
        await more(load, 200)
        for number in itertools.count():
            if is_enough(load, monkey):
                break
            await asyncio.to_thread(monkey.hit, number)
            await more(load, 50)
            print(f"{len(load.confirmed)} confirmed, {load.settled.total()} settled: {monkey.done[-1]}", flush=True)
        load.stop()
        await load.drain(idle_seconds=IDLE_SECONDS)
        await running
    finally:
        await asyncio.to_thread(cluster.end)
    doubts = f"{load.outages} publishes repeated, {load.redelivered.total()} tickets redelivered"
    print(f"{len(load.confirmed)} confirmed, {len(monkey.done)} faults, {monkey.leaders_hit} of a leader; {doubts}")
    return load, monkey


@pytest.mark.skipif(
    os.environ.get("TEST_SERVICES") != "required", reason="two minutes of chaos: `make test-services` runs them"
)
async def test_two_minutes_of_chaos_in_a_cluster_lose_nothing(folder: Path) -> None:
    begun = time.monotonic()
    load, monkey = await chaos(
        folder, is_enough=lambda _, monkey: len(monkey.done) >= 3 and time.monotonic() - begun > 100
    )
    assert monkey.leaders_hit
    assert (load.lost, load.unexplained) == (set(), {})


@pytest.mark.long
async def test_twenty_faults_in_a_cluster_lose_none_of_a_hundred_thousand_tickets(folder: Path) -> None:
    load, monkey = await chaos(
        folder, is_enough=lambda load, monkey: len(monkey.done) >= 20 and len(load.confirmed) >= 100_000
    )
    assert monkey.leaders_hit >= 5
    assert (load.lost, load.unexplained) == (set(), {})
