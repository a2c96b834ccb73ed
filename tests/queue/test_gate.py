"""The gate before a worker: an outage costs the tickets in hand one step and all others nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.errors import BlobDamaged, StoreUnavailable
from gateway.queue.broker import Done, Later
from gateway.queue.gate import FaultGate
from gateway.queue.ladder import Ladder
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import EMAIL_SEND, Ticket
from gateway.queue.worker import work
from gateway.runtime import Stop

TICKETS = 20


class Store:
    """Something all handlers need, which can be away."""

    def __init__(self) -> None:
        self.is_away = True
        self.asked = 0
        self.handled: set[str] = set()
        self.failed: list[str] = []
        self.was_asked = asyncio.Event()
        self.is_done = asyncio.Event()

    async def ask(self) -> None:
        self.asked += 1
        self.was_asked.set()
        if self.is_away:
            raise StoreUnavailable("away")

    async def handle(self, ticket: Ticket) -> Done | Later:
        if self.is_away:
            raise StoreUnavailable("away")
        self.handled.add(ticket.id)
        if len(self.handled) + len(self.failed) == TICKETS:
            self.is_done.set()
        return Done()

    def handler_failed(self, queue: str, ticket_id: str, *, error: BaseException, next_step: str) -> None:
        self.failed.append(ticket_id)

    def ticket_suspected(self, queue: str, ticket_id: str, *, deliveries: int) -> None:
        raise AssertionError(ticket_id)

    def ticket_parked(self, queue: str, ticket_id: str, *, why: str) -> None:
        raise AssertionError(ticket_id)


async def test_while_the_store_is_away_tickets_stay_ready_and_go_on_when_it_answers(tmp_path: Path) -> None:
    store, stop = Store(), Stop()
    gate = FaultGate(StoreUnavailable, store.ask, probe_seconds=0.05)
    async with SqliteBroker(tmp_path / "queue.db") as broker, asyncio.TaskGroup() as group:
        await broker.publish([Ticket(queue=EMAIL_SEND, id=str(number), body=b"{}") for number in range(TICKETS)])
        worker = work(
            broker,
            queues={EMAIL_SEND: 1},
            handlers={EMAIL_SEND: gate.minded(store.handle)},
            concurrency=2,
            stop=stop,
            ladder=Ladder.parse("1s"),
            observer=store,
            gate=gate.wait_open,
        )
        group.create_task(worker)
        async with asyncio.timeout(20):
            for _ in range(3):
                store.was_asked.clear()
                await store.was_asked.wait()
            [depth] = [depth for depth in await broker.depths() if depth.name == EMAIL_SEND]
            assert len(store.failed) <= 3, "only what was in hand"
            assert depth.ready >= TICKETS - 3
            store.is_away = False
            await store.is_done.wait()
        stop.set()
    assert store.handled.isdisjoint(store.failed), "those wait their step"


async def test_a_fault_that_is_one_tickets_own_keeps_no_other() -> None:
    store = Store()
    store.is_away = False
    gate = FaultGate(StoreUnavailable, store.ask, probe_seconds=600)

    async def damaged(ticket: Ticket) -> Done | Later:
        raise BlobDamaged("other octets")

    for asked in (1, 2):
        with pytest.raises(BlobDamaged):
            await gate.minded(damaged)(Ticket(queue=EMAIL_SEND, id="1", body=b"{}"))
        async with asyncio.timeout(5):
            await gate.wait_open()
        assert store.asked == asked


@pytest.mark.parametrize("fault", [RuntimeError("no such table"), PermissionError("not yours")])
async def test_who_answers_anything_else_is_there(fault: Exception) -> None:
    async def ask() -> None:
        raise fault

    async def away(ticket: Ticket) -> Done | Later:
        raise StoreUnavailable("away")

    gate = FaultGate(StoreUnavailable, ask, probe_seconds=600)
    with pytest.raises(StoreUnavailable):
        await gate.minded(away)(Ticket(queue=EMAIL_SEND, id="1", body=b"{}"))
    async with asyncio.timeout(5):
        await gate.wait_open()
