"""The worker: what becomes of tickets when handlers succeed, fail, hang, or are asked to stop."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.contract.versions import NewerVersion
from gateway.errors import FaultOwner, LeaseLost, PermanentFailure, QueueUnavailable, StoreUnavailable, TransientFailure
from gateway.queue.broker import Depth, Done, Later
from gateway.queue.ladder import Ladder
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import DEAD_CRASHED, EMAIL_SEND, EMAIL_SEND_SERIAL, HOME_QUEUE, SUSPECT, Ticket, retry_queue
from gateway.queue.worker import Handler, work
from gateway.runtime import Stop, utc_now

RETRY = retry_queue(EMAIL_SEND)
START = datetime(2030, 1, 1, tzinfo=UTC)


class Hands:
    """A clock to turn, and everything the worker told."""

    def __init__(self) -> None:
        self.now = START
        self.suspects: list[tuple[str, str, int]] = []
        self.failures: list[tuple[str, str, BaseException, str]] = []
        self.parked: list[tuple[str, str, str]] = []

    def clock(self) -> datetime:
        return self.now

    def handler_failed(self, queue: str, ticket_id: str, *, error: BaseException, next_step: str) -> None:
        self.failures.append((queue, ticket_id, error, next_step))

    def ticket_suspected(self, queue: str, ticket_id: str, *, deliveries: int) -> None:
        self.suspects.append((queue, ticket_id, deliveries))

    def ticket_parked(self, queue: str, ticket_id: str, *, why: str) -> None:
        self.parked.append((queue, ticket_id, why))


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
async def broker(tmp_path: Path, hands: Hands) -> AsyncIterator[SqliteBroker]:
    async with SqliteBroker(tmp_path / "queue.db", clock=hands.clock) as broker:
        yield broker


@asynccontextmanager
async def working(broker: SqliteBroker, hands: Hands, handler: Handler, **values: Any) -> AsyncIterator[Stop]:
    stop = Stop()
    options: dict[str, Any] = {
        "queues": {EMAIL_SEND: 2, RETRY: 1},
        "handlers": {EMAIL_SEND: handler},
        "concurrency": 5,
        "ladder": Ladder.parse("1m 5m"),
        "clock": hands.clock,
        "observer": hands,
        "jitter": lambda: 0.5,
        "grace_seconds": 5,
        "probe_seconds": 0.05,
    }
    task = asyncio.create_task(work(broker, stop=stop, **(options | values)))
    try:
        yield stop
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


async def depth(broker: SqliteBroker, name: str = EMAIL_SEND) -> Depth:
    empty = Depth(name=name, ready=0, leased=0, delayed=0, dead=0, oldest_seconds=None)
    return next((item for item in await broker.depths() if item.name == name), empty)


async def publish(broker: SqliteBroker, *ids: str) -> None:
    await broker.publish([Ticket(queue=EMAIL_SEND, id=id, body=b"") for id in ids or ("1",)])


def is_delayed(broker: SqliteBroker) -> Callable[[], Any]:
    async def look() -> bool:
        return (await depth(broker, RETRY)).delayed == 1

    return look


async def test_a_request_of_a_later_version_is_parked_without_an_attempt(broker: SqliteBroker, hands: Hands) -> None:
    async def handle(ticket: Ticket) -> Done:
        raise NewerVersion("version 2 of email.send, this worker reads 1")

    await publish(broker)
    async with working(broker, hands, handle):
        await until(is_delayed(broker))
    hands.now += timedelta(hours=1)
    async with broker.consume({RETRY: 1}, concurrency=1) as consumer:
        lease = await anext(aiter(consumer))
    assert (lease.ticket.attempt, lease.ticket.due_at) == (0, START + timedelta(hours=1))
    assert hands.failures == []
    assert hands.parked == [(EMAIL_SEND, "1", "version 2 of email.send, this worker reads 1")]


async def test_done_tickets_go_and_all_are_handled(broker: SqliteBroker, hands: Hands) -> None:
    seen: set[str] = set()

    async def handle(ticket: Ticket) -> Done:
        seen.add(ticket.id)
        return Done()

    await publish(broker, *map(str, range(50)))
    async with working(broker, hands, handle):
        await until(lambda: len(seen) == 50)
    assert await depth(broker) == Depth(name=EMAIL_SEND, ready=0, leased=0, delayed=0, dead=0, oldest_seconds=None)
    assert hands.failures == []


async def test_a_handlers_later_is_obeyed(broker: SqliteBroker, hands: Hands) -> None:
    seen: list[tuple[str, int]] = []

    async def handle(ticket: Ticket) -> Done | Later:
        seen.append((ticket.queue, ticket.attempt))
        return Later(at=START + timedelta(hours=1)) if len(seen) == 1 else Done()

    await publish(broker)
    async with working(broker, hands, handle):
        await until(is_delayed(broker))
        hands.now += timedelta(hours=1)
        await until(lambda: len(seen) == 2)
    assert seen == [(EMAIL_SEND, 0), (RETRY, 1)]


@pytest.mark.parametrize(
    "error",
    [
        TransientFailure("busy", owner=FaultOwner.DOMAIN),
        TransientFailure("mailbox full", owner=FaultOwner.RECIPIENT),
        ZeroDivisionError("a bug"),
    ],
)
async def test_a_failure_climbs_the_ladder_and_dies_at_its_end(
    broker: SqliteBroker, hands: Hands, error: Exception
) -> None:
    times: list[datetime] = []

    async def handle(ticket: Ticket) -> Done:
        times.append(hands.now)
        raise error

    await publish(broker)
    async with working(broker, hands, handle):
        for seconds in (60, 300):
            await until(is_delayed(broker))
            hands.now += timedelta(seconds=seconds)

        async def is_dead() -> bool:
            return bool(await broker.dead())

        await until(is_dead)
    assert times == [START, START + timedelta(seconds=60), START + timedelta(seconds=360)]
    (dead,) = await broker.dead()
    assert type(error).__name__ in dead.reason
    assert [step for *_, step in hands.failures] == ["again in 60 s", "again in 300 s", "dead letter"]


@pytest.mark.parametrize("error", [StoreUnavailable("locked"), TransientFailure("no relay", owner=FaultOwner.RELAY)])
async def test_faults_of_ours_and_the_relays_take_the_fixed_step_and_never_climb(
    broker: SqliteBroker, hands: Hands, error: Exception
) -> None:
    attempts: list[int] = []

    async def handle(ticket: Ticket) -> Done:
        attempts.append(ticket.attempt)
        if len(attempts) < 6:
            raise error
        return Done()

    await publish(broker)
    async with working(broker, hands, handle):
        for n in range(1, 6):
            await until(is_delayed(broker))
            assert len(attempts) == n
            hands.now += timedelta(seconds=30)
        await until(lambda: len(attempts) == 6)
    assert attempts == [0] * 6


async def test_a_permanent_failure_is_dead_at_once_with_its_reason(broker: SqliteBroker, hands: Hands) -> None:
    async def handle(ticket: Ticket) -> Done:
        raise PermanentFailure("no such template")

    async def is_dead() -> bool:
        return bool(await broker.dead())

    await publish(broker)
    async with working(broker, hands, handle):
        await until(is_dead)
    assert "no such template" in (await broker.dead())[0].reason


class Panic(BaseException):
    """As extension modules raise it."""


@pytest.mark.parametrize("error", [Panic("rust"), asyncio.CancelledError(), TimeoutError(), LeaseLost("gone")])
async def test_nothing_a_handler_raises_ends_the_worker(
    broker: SqliteBroker, hands: Hands, error: BaseException
) -> None:
    seen: list[str] = []

    async def handle(ticket: Ticket) -> Done:
        seen.append(ticket.id)
        if seen.count("bad") == 1 and ticket.id == "bad":
            raise error
        return Done()

    await publish(broker, "bad")
    async with working(broker, hands, handle, concurrency=1):
        await until(lambda: len(hands.failures) == 1)
        await publish(broker, "good")
        await until(lambda: "good" in seen)


async def test_a_handler_that_returns_nothing_is_a_failure(broker: SqliteBroker, hands: Hands) -> None:
    async def handle(ticket: Ticket) -> Any:
        return None

    await publish(broker)
    async with working(broker, hands, handle):
        await until(is_delayed(broker))
    assert isinstance(hands.failures[0][2], TypeError)


async def test_a_hanging_handler_is_ended_at_its_deadline_and_blocks_nobody(broker: SqliteBroker, hands: Hands) -> None:
    seen: list[str] = []

    async def handle(ticket: Ticket) -> Done:
        seen.append(ticket.id)
        if ticket.id == "hangs":
            await asyncio.Event().wait()
        return Done()

    await publish(broker, "hangs", "next")
    async with working(broker, hands, handle, concurrency=1, handler_seconds=0.1):
        await until(lambda: "next" in seen)
        await until(is_delayed(broker))
    assert "0.1 s" in str(hands.failures[0][2])


async def test_stop_lets_handlers_finish_and_leases_no_more(broker: SqliteBroker, hands: Hands) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    async def handle(ticket: Ticket) -> Done:
        began.set()
        await go_on.wait()
        seen.append(ticket.id)
        return Done()

    await publish(broker)
    async with working(broker, hands, handle) as stop:
        await began.wait()
        stop.set()
        await asyncio.sleep(0)
        await publish(broker, "2")
        go_on.set()
    assert seen == ["1"]
    found = await depth(broker)
    assert (found.ready, found.leased) == (1, 0)


async def test_stop_gives_back_what_did_not_finish_in_its_grace(broker: SqliteBroker, hands: Hands) -> None:
    began = asyncio.Event()

    async def handle(ticket: Ticket) -> Done:
        began.set()
        await asyncio.Event().wait()
        return Done()

    await publish(broker)
    async with working(broker, hands, handle, grace_seconds=0.1) as stop:
        await began.wait()
        stop.set()
    found = await depth(broker)
    assert (found.ready, found.leased, found.delayed) == (1, 0, 0)
    assert hands.failures == []
    async with broker.consume({EMAIL_SEND: 1}, concurrency=1) as consumer:
        lease = await anext(aiter(consumer))
        assert (lease.delivery_count, lease.ticket.attempt) == (0, 0)


async def test_tickets_stay_ready_while_the_gate_is_closed(broker: SqliteBroker, hands: Hands) -> None:
    opened = asyncio.Event()
    seen: list[str] = []

    async def handle(ticket: Ticket) -> Done:
        seen.append(ticket.id)
        return Done()

    async def look() -> bool:
        return (await depth(broker)).ready == 10

    async with working(broker, hands, handle, gate=opened.wait):
        await publish(broker, *map(str, range(10)))
        await asyncio.sleep(0.2)
        await until(look)
        assert seen == []
        opened.set()
        await until(lambda: len(seen) == 10)
        opened.clear()
        await publish(broker, *map(str, range(10)))
        await asyncio.sleep(0.2)
        await until(look)
    assert len(seen) == 10
    async with broker.consume({EMAIL_SEND: 1}, concurrency=1) as consumer:
        assert (await anext(aiter(consumer))).delivery_count == 0


async def test_an_outage_of_the_queue_is_survived_and_told(broker: SqliteBroker, hands: Hands, tmp_path: Path) -> None:
    seen: list[str] = []
    go_on = asyncio.Event()

    async def handle(ticket: Ticket) -> Done | Later:
        seen.append(ticket.id)
        if ticket.id == "settles in the outage":
            await go_on.wait()
            return Later(at=START)
        return Done()

    path = tmp_path / "queue.db"
    await publish(broker, "settles in the outage")
    async with working(broker, hands, handle):
        await until(lambda: len(seen) == 1)
        path.rename(tmp_path / "away")
        with pytest.raises(QueueUnavailable):
            await publish(broker, "lost")
        go_on.set()
        await until(
            lambda: {step for *_, step in hands.failures} == {"settles again in 0.05 s", "leases again in 0.05 s"}
        )
        (tmp_path / "away").rename(path)
        await publish(broker, "kept")
        await until(lambda: "kept" in seen and seen.count("settles in the outage") >= 2)


async def test_every_queue_needs_a_handler(broker: SqliteBroker, hands: Hands) -> None:
    with pytest.raises(ValueError, match=r"mail\.inbound"):
        await work(
            broker,
            queues={"mail.inbound.retry": 1},
            handlers={},
            concurrency=1,
            stop=Stop(),
            ladder=Ladder.parse("1m"),
            observer=hands,
        )


async def dies_with(folder: Path, *queues: str, times: int) -> None:
    """Leases everything `times` times in processes that are killed before they say a word."""
    script = """
import asyncio, os, signal, sys
from pathlib import Path
from gateway.queue.sqlite import SqliteBroker

async def main():
    async with SqliteBroker(Path(sys.argv[1])) as broker:
        async with broker.consume(dict.fromkeys(sys.argv[2:], 1), concurrency=50) as consumer:
            async for lease in consumer:
                os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    for _ in range(times):
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(folder / "queue.db"), *queues)
        async with asyncio.timeout(30):
            assert await child.wait() == -signal.SIGKILL


@pytest.fixture
async def real_broker(tmp_path: Path) -> AsyncIterator[SqliteBroker]:
    """One on the system's clock, as the doomed processes have it."""
    async with SqliteBroker(tmp_path / "queue.db") as broker:
        yield broker


async def test_what_two_workers_died_with_is_a_suspect_before_anything_else(
    real_broker: SqliteBroker, hands: Hands, tmp_path: Path
) -> None:
    worked: list[str] = []

    async def handler(ticket: Ticket) -> Done:
        worked.append(ticket.id)
        return Done()

    await publish(real_broker, "1", "2")
    await dies_with(tmp_path, EMAIL_SEND, times=2)
    await publish(real_broker, "3")
    async with working(real_broker, hands, handler, clock=utc_now):
        await until(lambda: worked == ["3"] and len(hands.suspects) == 2)
    assert hands.suspects == [(EMAIL_SEND, "1", 2), (EMAIL_SEND, "2", 2)]
    assert (await depth(real_broker, SUSPECT)).ready == 2


async def test_a_suspect_is_worked_by_the_handler_of_its_home_and_as_if_it_were_there(
    real_broker: SqliteBroker, hands: Hands
) -> None:
    worked: list[Ticket] = []

    async def handler(ticket: Ticket) -> Done:
        worked.append(ticket)
        return Done()

    home = Ticket(queue=RETRY, id="1", body=b"")
    await real_broker.publish([replace(home, queue=SUSPECT, headers={HOME_QUEUE: RETRY})])
    async with working(real_broker, hands, handler, queues={SUSPECT: 1}, concurrency=1, clock=utc_now):
        await until(lambda: worked == [home])


async def test_a_suspect_without_a_handler_is_dead_with_that_reason(real_broker: SqliteBroker, hands: Hands) -> None:
    async def handler(ticket: Ticket) -> Done:
        raise AssertionError

    await real_broker.publish([Ticket(queue=SUSPECT, id="1", body=b"", headers={HOME_QUEUE: "unheard.of"})])
    async with working(real_broker, hands, handler, queues={SUSPECT: 1}, concurrency=1, clock=utc_now):
        await until(real_broker.dead)
    (found,) = await real_broker.dead()
    assert (found.queue, found.reason) == ("unheard.of", "PermanentFailure: no handler for unheard.of")


async def test_a_suspect_that_kills_three_workers_more_is_recorded_and_dead(
    real_broker: SqliteBroker, hands: Hands, tmp_path: Path
) -> None:
    buried: list[tuple[Ticket, str]] = []
    downs = [StoreUnavailable("down"), StoreUnavailable("down")]

    async def handler(ticket: Ticket) -> Done:
        raise AssertionError("a killer is not tried a fourth time")

    async def bury(ticket: Ticket, reason: str) -> None:
        if downs:
            raise downs.pop()
        buried.append((ticket, reason))

    home = Ticket(queue=EMAIL_SEND, id="1", body=b"")
    await real_broker.publish([replace(home, queue=SUSPECT, headers={HOME_QUEUE: EMAIL_SEND})])
    await dies_with(tmp_path, SUSPECT, times=3)
    values: dict[str, Any] = {"queues": {SUSPECT: 1}, "concurrency": 1, "clock": utc_now, "buries": {EMAIL_SEND: bury}}
    async with working(real_broker, hands, handler, **values):
        await until(real_broker.dead)
    (found,) = await real_broker.dead()
    assert (found.box, found.queue) == (DEAD_CRASHED, EMAIL_SEND)
    assert buried == [(home, found.reason)]
    assert found.reason == "its worker died 3 times although it worked on nothing else"


async def test_a_pause_and_one_fault_of_the_queue_do_not_stop_the_consuming(
    broker: SqliteBroker, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = asyncio.Event()
    asked = asyncio.Event()
    seen: list[str] = []

    async def gate() -> None:
        asked.set()
        await opened.wait()

    async def handle(ticket: Ticket) -> Done:
        seen.append(ticket.id)
        return Done()

    write = SqliteBroker._write

    async def write_or_fail(self: SqliteBroker, *args: Any, place: str = "", **values: Any) -> Any:
        if place == "queue.releasing" and not hands.failures:
            raise QueueUnavailable("disk full for a moment")
        return await write(self, *args, place=place or "queue.writing", **values)

    monkeypatch.setattr(SqliteBroker, "_write", write_or_fail)
    await publish(broker, *map(str, range(3)))
    async with working(broker, hands, handle, gate=gate):
        await asked.wait()
        await until(lambda: any(step.startswith("leases again") for *_, step in hands.failures))
        opened.set()
        await until(lambda: len(set(seen)) == 3)


async def test_an_observer_that_raises_costs_no_ticket_and_no_place(broker: SqliteBroker, hands: Hands) -> None:
    seen: list[str] = []
    unlogged: list[dict[str, Any]] = []

    class Mute(Hands):
        def handler_failed(self, queue: str, ticket_id: str, *, error: BaseException, next_step: str) -> None:
            raise OSError("nobody reads the log")

    async def handle(ticket: Ticket) -> Done:
        seen.append(ticket.id)
        if ticket.id == "fails":
            raise PermanentFailure("no such thing")
        return Done()

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unlogged.append(context))
    await publish(broker, "fails")
    async with working(broker, Mute(), handle, concurrency=1, clock=hands.clock):
        await until(lambda: bool(seen))
        await publish(broker, "next")
        await until(lambda: "next" in seen)
        (dead,) = await broker.dead()
    assert dead.reason == "PermanentFailure: no such thing"
    assert "no such thing" in unlogged[0]["message"]


async def test_a_fault_of_the_worker_itself_ends_the_lease_all_the_same(broker: SqliteBroker, hands: Hands) -> None:
    seen: list[str] = []

    async def handle(ticket: Ticket) -> Done:
        seen.append(ticket.id)
        if ticket.id == "fails":
            raise TransientFailure("busy", owner=FaultOwner.DOMAIN)
        return Done()

    await publish(broker, "fails")
    async with working(broker, hands, handle, concurrency=1, jitter=lambda: 1 / 0):
        await until(is_delayed(broker))
        await publish(broker, "next")
        await until(lambda: "next" in seen)
    ((*_, error, next_step),) = hands.failures
    assert (type(error), next_step) == (ZeroDivisionError, "again in 30 s")


async def test_a_reason_that_is_no_text_is_kept_as_well_as_it_can_be(broker: SqliteBroker, hands: Hands) -> None:
    async def handle(ticket: Ticket) -> Done:
        raise PermanentFailure("bad octets \udcff\0")

    async def look() -> bool:
        return bool(await broker.dead())

    await publish(broker)
    async with working(broker, hands, handle):
        await until(look)
    (dead,) = await broker.dead()
    assert dead.reason == "PermanentFailure: bad octets ?"


async def test_an_outcome_the_engine_cannot_write_is_replaced(broker: SqliteBroker, hands: Hands) -> None:
    async def handle(ticket: Ticket) -> Later:
        return Later(at="soon")  # type: ignore[arg-type]

    await publish(broker)
    async with working(broker, hands, handle):
        await until(lambda: bool(hands.failures))
        await until(is_delayed(broker))


async def test_a_fault_of_ours_costs_no_serial_ticket_its_place(broker: SqliteBroker, hands: Hands) -> None:
    faults = {"first": [StoreUnavailable("down"), StoreUnavailable("down")]}
    tried: list[str] = []

    async def handle(ticket: Ticket) -> Done:
        tried.append(ticket.id)
        if faults.get(ticket.id):
            raise faults[ticket.id].pop()
        return Done()

    await broker.publish([Ticket(queue=EMAIL_SEND_SERIAL, id=id, body=b"") for id in ("first", "second")])
    queues = {EMAIL_SEND_SERIAL: 1, retry_queue(EMAIL_SEND_SERIAL): 1}
    async with working(broker, hands, handle, queues=queues, handlers={EMAIL_SEND_SERIAL: handle}):
        await until(lambda: "second" in tried)
    assert tried == ["first", "first", "first", "second"]
    assert hands.suspects == []


async def test_a_serial_ticket_waits_for_no_gate_as_nothing_is_sent_of_it(broker: SqliteBroker, hands: Hands) -> None:
    seen: list[str] = []

    async def handle(ticket: Ticket) -> Done:
        seen.append(ticket.id)
        return Done()

    await broker.publish([Ticket(queue=EMAIL_SEND_SERIAL, id="1", body=b"")])
    queues = {EMAIL_SEND_SERIAL: 1}
    closed = asyncio.Event()
    async with working(broker, hands, handle, queues=queues, handlers={EMAIL_SEND_SERIAL: handle}, gate=closed.wait):
        await until(lambda: seen == ["1"])


async def test_a_serial_ticket_is_suspected_later_since_a_suspect_loses_its_place(
    real_broker: SqliteBroker, hands: Hands, tmp_path: Path
) -> None:
    async def handle(ticket: Ticket) -> Done:
        return Done()

    await real_broker.publish([Ticket(queue=EMAIL_SEND_SERIAL, id="1", body=b"")])
    values: dict[str, Any] = {"queues": {EMAIL_SEND_SERIAL: 1}, "handlers": {EMAIL_SEND_SERIAL: handle}}
    await dies_with(tmp_path, EMAIL_SEND_SERIAL, times=4)
    async with working(real_broker, hands, handle, clock=utc_now, **values):
        await until(lambda: is_empty(real_broker))
    assert hands.suspects == []
    await real_broker.publish([Ticket(queue=EMAIL_SEND_SERIAL, id="2", body=b"")])
    await dies_with(tmp_path, EMAIL_SEND_SERIAL, times=5)
    async with working(real_broker, hands, handle, clock=utc_now, **values):
        await until(lambda: bool(hands.suspects))
    assert hands.suspects == [(EMAIL_SEND_SERIAL, "2", 5)]


async def is_empty(broker: SqliteBroker) -> bool:
    return (await depth(broker, EMAIL_SEND_SERIAL)).ready + (await depth(broker, EMAIL_SEND_SERIAL)).leased == 0
