"""The sweeper: re-issues only what has provably lost its ticket, ends what expired, outlives faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import pytest
from conftest import FakeClock
from outbound_desk import Desk, request, ticket_of
from scripted_relay import ScriptedRelay

from gateway.errors import QueueUnavailable
from gateway.mail.disposition import Disposition
from gateway.maillog import MailLog
from gateway.queue.broker import Done
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
