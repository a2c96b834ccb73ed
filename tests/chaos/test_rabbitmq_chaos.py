"""RabbitMQ nodes killed, stopped and restarted under load: nothing confirmed is lost, nothing is stored twice.

One node killed and started again under a load of tickets, which come twice for a reason only; and three nodes, hit one at a
time, leaders among them, while mail and email pass the real doors of `gateway run` on PostgreSQL.
`make chaos-cluster` does all of it, `make test-services` two minutes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chaos.load import Load
from chaos.traffic import Amount, Traffic
from fakes.stubborn_relay import StubbornRelay
from services.postgres import PostgresServer
from services.rabbitmq import Cluster, Epmd, Node, require

from gateway.queue.ticket import MAIL_INBOUND

IDLE_SECONDS = 120.0
STOPPED_SECONDS = 6.0
QUICK_SECONDS = 80.0
QUICK = Amount(houses=1, sessions=3, senders=2, pace_seconds=0.2, on_its_way=60)
WHOLE = Amount(houses=2, sessions=6, senders=4, pace_seconds=0.4, on_its_way=100)
TICKETS_PACE_SECONDS = 1.2


@pytest.fixture
def folder() -> Iterator[Path]:
    require()
    folder = Path(tempfile.mkdtemp(prefix="gateway-chaos-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server(postgres_server: PostgresServer) -> PostgresServer:
    """A server that can copy a database with its schema; making that needs a loop of its own."""
    postgres_server.make_template()
    return postgres_server


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


async def more(load: Load | Traffic, count: int) -> None:
    """Waits until so many more tickets are confirmed."""
    wanted = load.count + count
    async with asyncio.timeout(IDLE_SECONDS):
        while load.count < wanted:
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


@dataclass
class Chaos:
    """A cluster under traffic through the doors and, in a vhost of its own, under a load of tickets (`tickets_pace_seconds`)."""

    folder: Path
    server: PostgresServer
    amount: Amount
    tickets_pace_seconds: float = 0.0

    async def run(self, is_enough: Callable[[Monkey, int], bool]) -> Monkey:
        """Hits until it is enough (asked with how many are confirmed), then waits for the end of all and looks at it."""
        cluster, relay = Cluster(self.folder / "cluster"), StubbornRelay()
        async with relay.serving(), AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, cluster.end)
            await asyncio.to_thread(cluster.start)
            traffic = Traffic(self.folder, [node.url() for node in cluster.nodes], self.server, relay, self.amount)
            stack.callback(traffic.end)
            await traffic.start()
            load, running = await self._begin_tickets(cluster)
            monkey = Monkey(cluster)
            await more(traffic, 100)
            while not is_enough(monkey, traffic.count + load.count):
                await asyncio.to_thread(monkey.hit, len(monkey.done))
                await more(traffic, 50)
                print(f"{traffic.count} + {load.count} confirmed: {monkey.done[-1]}", flush=True)
            load.stop()
            await traffic.stop()
            await load.drain(idle_seconds=IDLE_SECONDS)
            await asyncio.gather(*running)
            await traffic.drain(idle_seconds=IDLE_SECONDS)
            faults = await asyncio.to_thread(traffic.faults)
            print(
                f"{len(monkey.done)} faults, {monkey.leaders_hit} of a leader; {await asyncio.to_thread(traffic.told)}"
            )
            print(f"{load.told()}; faults: {faults}")
            assert (faults, load.lost, load.unexplained) == ([], set(), {})
        return monkey

    async def _begin_tickets(self, cluster: Cluster) -> tuple[Load, list[asyncio.Task[None]]]:
        urls = [node.url("tickets") for node in cluster.nodes]
        load = Load(urls, pace_seconds=self.tickets_pace_seconds)
        if not self.tickets_pace_seconds:
            return load, []
        first = cluster.nodes[0]
        await asyncio.to_thread(first.ctl, "add_vhost", "tickets")
        await asyncio.to_thread(first.ctl, "set_permissions", "-p", "tickets", "guest", ".*", ".*", ".*")
        return load, [asyncio.create_task(load.run())]


@pytest.mark.skipif(
    os.environ.get("TEST_SERVICES") != "required", reason="two minutes of chaos: `make test-services` runs them"
)
async def test_two_minutes_of_chaos_lose_nothing_and_store_nothing_twice(folder: Path, server: PostgresServer) -> None:
    begun = time.monotonic()
    monkey = await Chaos(folder, server, QUICK).run(
        lambda monkey, _: len(monkey.done) >= 3 and time.monotonic() - begun > QUICK_SECONDS
    )
    assert monkey.leaders_hit


@pytest.mark.long
async def test_twenty_faults_lose_none_of_a_hundred_thousand_and_store_none_twice(
    folder: Path, server: PostgresServer
) -> None:
    monkey = await Chaos(folder, server, WHOLE, tickets_pace_seconds=TICKETS_PACE_SECONDS).run(
        lambda monkey, confirmed: len(monkey.done) >= 20 and confirmed >= 100_000
    )
    assert monkey.leaders_hit >= 5
