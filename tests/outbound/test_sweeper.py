"""The sweeper: re-issues only what has provably lost its ticket, ends what expired, outlives faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from conftest import FakeClock
from outbound_desk import Desk, request, ticket_of
from scripted_relay import ScriptedRelay

from gateway.errors import QueueUnavailable, TransientFailure
from gateway.mail.disposition import Disposition
from gateway.maillog import MailLog
from gateway.queue.broker import DeadTicket, Done, Later
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import Ticket
from gateway.runtime import Stop
from gateway.watch.sweeper import Swept, sweep, sweep_once

Build = Callable[..., Desk]


class Queue:
    """A queue that has consumed past some queues, and keeps what it is given."""

    def __init__(self, desk: Desk, *past: str) -> None:
        self.desk = desk
        self.past = set(past)
        self.asked: list[tuple[str, datetime]] = []
        self.away = False
        self.letters: list[DeadTicket] = []

    async def all_dead(self) -> AsyncIterator[DeadTicket]:
        for letter in self.letters:
            yield letter

    async def publish(self, tickets: Sequence[Ticket]) -> None:
        await self.desk.publish(tickets)

    async def has_consumed_past(self, queue: str, published_at: datetime) -> bool:
        self.asked.append((queue, published_at))
        if self.away:
            raise QueueUnavailable("away")
        return queue in self.past


@pytest.fixture
def clock() -> FakeClock:
    """Ticket ids carry the real time, so the clock starts there."""
    clock = FakeClock()
    clock.now = datetime.fromtimestamp(time.time(), clock.now.tzinfo)
    return clock


async def lost_retry(desk: Desk) -> object:
    """An email whose retry ticket never reached the queue."""
    email = request()
    desk.queue_is_away = True
    with pytest.raises(QueueUnavailable):
        await desk.handle(ticket_of(email))
    desk.queue_is_away = False
    return email


async def test_a_row_whose_ticket_is_gone_gets_another_and_is_relayed(desk_of: Build, clock: FakeClock) -> None:
    async with ScriptedRelay({"rcpt": ["450 4.2.0 greylisted"]}) as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
        email = await lost_retry(desk)
        queue = Queue(desk, "email.send", "email.send.retry")
        clock.advance(60 + 119)
        assert await sweep_once(desk.ledger, queue, clock=clock) == Swept(expired=0, reissued=0)
        clock.advance(2)
        assert await sweep_once(desk.ledger, queue, clock=clock) == Swept(expired=0, reissued=1)
        assert await sweep_once(desk.ledger, queue, clock=clock) == Swept(expired=0, reissued=0)
        [ticket] = desk.published
        assert ticket.headers["ticket_id"] == (await desk.row(email)).ticket_id
        await desk.walk()
        assert (await desk.row(email)).disposition is Disposition.RELAYED


@pytest.mark.parametrize("past", [(), ("email.send",), ("email.send.retry",)])
async def test_a_queue_that_is_merely_behind_gets_nothing_twice(
    desk_of: Build, clock: FakeClock, past: tuple[str, ...]
) -> None:
    async with ScriptedRelay({"rcpt": ["450 4.2.0 greylisted"]}) as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
        email = await lost_retry(desk)
        due_at = (await desk.row(email)).next_attempt_at
        clock.advance(1000)
        queue = Queue(desk, *past)
        assert await sweep_once(desk.ledger, queue, clock=clock) == Swept(expired=0, reissued=0)
        assert {published_at for _, published_at in queue.asked} == {due_at}


async def test_a_send_at_that_has_come_is_issued_at_once(desk_of: Build, clock: FakeClock) -> None:
    desk = desk_of("capture:")
    email = request(send_at=clock() + timedelta(hours=1))
    assert await desk.handle(ticket_of(email)) == Done()
    queue = Queue(desk)
    clock.advance(3599)
    assert (await sweep_once(desk.ledger, queue, clock=clock)).reissued == 0
    clock.advance(2)
    assert (await sweep_once(desk.ledger, queue, clock=clock)).reissued == 1
    await desk.walk()
    assert (await desk.row(email)).disposition is Disposition.RELAYED


async def test_what_expired_is_ended(desk_of: Build, clock: FakeClock) -> None:
    async with ScriptedRelay({"rcpt": "450 4.2.0 greylisted"}) as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
        email = request(expires_at=clock() + timedelta(hours=1))
        await desk.handle(ticket_of(email))
        clock.advance(3601)
        assert (await sweep_once(desk.ledger, Queue(desk), clock=clock)).expired == 1
        assert (await desk.row(email)).disposition is Disposition.EXPIRED


async def test_the_loop_outlives_a_queue_that_is_away_and_ends_on_stop(
    desk_of: Build, clock: FakeClock, log: MailLog
) -> None:
    async with ScriptedRelay({"rcpt": "450 4.2.0 greylisted"}) as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
        await lost_retry(desk)
        clock.advance(1000)
        queue = Queue(desk, "email.send", "email.send.retry")
        queue.away = True
        stop = Stop()
        running = asyncio.create_task(sweep(desk.ledger, queue, stop=stop, clock=clock, log=log, interval_seconds=0.01))
        while log.counters["sweeper-failed"] < 2:
            await asyncio.sleep(0.001)
        queue.away = False
        while log.counters["sweeper-swept"] < 1:
            await asyncio.sleep(0.001)
        stop.set()
        await asyncio.wait_for(running, 2)
        assert len(desk.published) == 1


@pytest.mark.parametrize("name", ["ffffffff-ffff-7fff-bfff-ffffffffffff", "0fffffff-ffff-7fff-bfff-ffffffffffff"])
async def test_a_ticket_id_from_no_time_of_ours_is_reissued_like_any_other(
    desk_of: Build, clock: FakeClock, name: str
) -> None:
    async with ScriptedRelay({"rcpt": ["450 4.2.0 greylisted"]}) as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
        email = await lost_retry(desk)
        clock.advance(1000)
        [row] = await desk.ledger.overdue(older_than_seconds=120)
        assert await desk.ledger.reissue(row, ticket_id=name)
        clock.advance(1000)
        queue = Queue(desk, "email.send", "email.send.retry")
        assert (await sweep_once(desk.ledger, queue, clock=clock)).reissued == 1
        assert (await desk.row(email)).ticket_id != name


async def test_the_row_of_a_dead_letter_is_recorded_dead_and_lives_when_it_is_retried(
    desk_of: Build, clock: FakeClock
) -> None:
    desk = desk_of("capture:")
    email = request()
    await desk.deliver()._desk.accept(ticket_of(email))
    clock.advance(1000)
    queue = Queue(desk, "email.send", "email.send.retry")
    letter = ticket_of(email)
    queue.letters = [DeadTicket(number="1", ticket=letter, queue="email.send", reason="crashed", died_at=clock())]
    assert (await sweep_once(desk.ledger, queue, clock=clock)).reissued == 0
    row = await desk.row(email)
    assert (row.disposition, row.reason) == (Disposition.DEAD, "its ticket died: crashed")
    assert await desk.handle(letter) == Done()
    assert (await desk.row(email)).disposition is Disposition.RELAYED


async def test_rows_that_never_had_a_ticket_do_not_wait_behind_overdue_ones_nor_urgent_behind_bulk(
    desk_of: Build, clock: FakeClock
) -> None:
    desk = desk_of("capture:")
    for number in range(5):
        await desk.deliver()._desk.accept(ticket_of(request(f"r{number}@example.org"), queue="email.send.bulk"))
    urgent, released = request(stream="urgent"), request(send_at=clock() + timedelta(seconds=900), stream="urgent")
    await desk.deliver()._desk.accept(ticket_of(urgent))
    await desk.deliver()._desk.accept(ticket_of(released))
    clock.advance(1000)
    rows = await desk.ledger.overdue(older_than_seconds=120, limit=3)
    assert [row.email_id for row in rows[:2]] == [released.id, urgent.id]
    assert [row.stream for row in rows[2:]] == ["bulk"] * 3
    queue = Queue(desk, *(f"email.send{name}{retry}" for name in ("", ".urgent", ".bulk") for retry in ("", ".retry")))
    assert (await sweep_once(desk.ledger, queue, clock=clock)).reissued == 7
    assert len(queue.asked) == 4, "one question for a queue, not one for each row"


@pytest.mark.parametrize("fault", ["no relay serves it", "cannot be rendered for now"])
async def test_a_row_that_cannot_be_attempted_keeps_its_one_ticket(
    desk_of: Build, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    desk = desk_of("capture:")
    if fault == "no relay serves it":
        monkeypatch.setattr(desk.pool, "usable_at", lambda *_: clock() + timedelta(seconds=300))
    else:

        async def render(*_: object, **__: object) -> bytes:
            raise TransientFailure("no child in the cage")

        monkeypatch.setattr("gateway.outbound.render.render", render)
    async with SqliteBroker(tmp_path / "queue.db", clock=clock) as broker:
        await broker.publish([ticket_of(request())])
        async with broker.consume({"email.send": 1, "email.send.retry": 1}, concurrency=1) as consumer:
            for _ in range(360):
                await sweep_once(desk.ledger, broker, clock=clock)
                while any(depth.ready for depth in await broker.depths()):
                    lease = await anext(aiter(consumer))
                    try:
                        outcome = await desk.deliver().handle(lease.ticket)
                    except TransientFailure:
                        outcome = Later(at=clock() + timedelta(seconds=30), climbs=False)
                    await lease.settle(outcome)
                    await broker.depths()
                clock.advance(10)
        assert sum(depth.ready + depth.leased + depth.delayed for depth in await broker.depths()) == 1
