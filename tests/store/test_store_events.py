"""The events relay: every committed event goes out at least once, in order, whatever breaks meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.contract.events import CloudEvent
from gateway.errors import QueueUnavailable
from gateway.events import KEEP_SECONDS, relay_events
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.queue.broker import Event
from gateway.queue.sqlite import SqliteBroker
from gateway.runtime import Stop
from gateway.store import outbox, schema
from gateway.store.database import Database, open_database
from gateway.store.mails import Mails


class Exchange:
    """Takes events as a broker does, and is away when told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_away = False
        self.refusals = 0

    async def publish_events(self, events: Sequence[Event]) -> None:
        if self.is_away:
            self.refusals += 1
            raise QueueUnavailable("away")
        self.events += events


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def relaying(database: Database, broker: object, **values: object) -> AsyncIterator[Stop]:
    stop = Stop()
    faults: list[Exception] = []
    task = asyncio.create_task(relay_events(database, broker, stop=stop, **{"on_fault": faults.append} | values))
    try:
        yield stop
    finally:
        stop.set()
        await asyncio.wait_for(task, 2)


async def receive(mails: Mails, clock, count: int = 1) -> list[str]:
    ids = [new_id() for _ in range(count)]
    for mail_id in ids:
        arrived = Envelope(mail_id=mail_id, mail_from="", rcpt_to=("a@localhost",), received_at=clock(), door="smtp")
        await mails.record_received(arrived, b"octets", 6, "0")
    return ids


async def waiting(database: Database) -> int:
    return len(await database.read(lambda connection: outbox.unpublished(connection, limit=1000)))


async def test_events_are_published_in_order_and_marked(database, mails, clock) -> None:
    exchange = Exchange()
    before = await receive(mails, clock, 3)
    async with relaying(database, exchange):
        await until(lambda: len(exchange.events) == 3)
        after = await receive(mails, clock, 3)
        await until(lambda: len(exchange.events) == 6)
    found = [CloudEvent.model_validate_json(event.body) for event in exchange.events]
    assert [event.subject for event in found] == before + after
    assert {event.key for event in exchange.events} == {"mail.received"}
    assert [event.id for event in exchange.events] == [event.id for event in found]
    assert await waiting(database) == 0


async def test_more_than_one_batch_goes_out(database, mails, clock, monkeypatch) -> None:
    monkeypatch.setattr("gateway.events.BATCH_EVENTS", 4)
    exchange = Exchange()
    await receive(mails, clock, 11)
    async with relaying(database, exchange):
        await until(lambda: len(exchange.events) == 11)
    assert await waiting(database) == 0


async def test_a_broker_that_is_away_delays_events_and_loses_none(database, mails, clock) -> None:
    exchange, faults = Exchange(), []
    exchange.is_away = True
    async with relaying(database, exchange, on_fault=faults.append):
        ids = await receive(mails, clock, 2)
        await until(lambda: exchange.refusals >= 2)
        assert await waiting(database) == 2
        exchange.is_away = False
        await until(lambda: len(exchange.events) == 2)
    assert [CloudEvent.model_validate_json(event.body).subject for event in exchange.events] == ids
    assert isinstance(faults[0], QueueUnavailable)


async def test_a_store_that_is_away_delays_events_and_loses_none(tmp_path: Path, blobs, clock) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    database = await open_database(f"sqlite:///{home}/store.db")
    exchange, faults = Exchange(), []
    mails = Mails(database, blobs, clock=clock, hostname="mx.test")
    await receive(mails, clock)
    home.rename(away)
    async with relaying(database, exchange, on_fault=faults.append):
        await until(lambda: bool(faults))
        away.rename(home)
        await until(lambda: len(exchange.events) == 1)
    await database.close()


async def test_relays_of_several_hosts_tell_each_event_once_and_in_order(
    database, database_url: str, mails, clock
) -> None:
    others = [await open_database(database_url) for _ in range(2)]
    exchange = Exchange()
    async with relaying(database, exchange), relaying(others[0], exchange), relaying(others[1], exchange):
        ids = [await receive(mails, clock, 5) for _ in range(6)]
        await until(lambda: len(exchange.events) >= 30)
    told = [CloudEvent.model_validate_json(event.body).subject for event in exchange.events]
    assert told == [mail_id for batch in ids for mail_id in batch]
    for each in others:
        await each.close()


async def test_a_relay_that_stopped_hands_its_turn_over_at_once(database, mails, clock) -> None:
    first, second = Exchange(), Exchange()
    await receive(mails, clock)
    async with relaying(database, first, clock=clock):
        await until(lambda: len(first.events) == 1)
    await receive(mails, clock)
    async with relaying(database, second, clock=clock):  # the clock stands still: no turn runs out
        await until(lambda: len(second.events) == 1)


async def test_an_event_committed_after_a_younger_one_was_published_still_goes_out(database, mails, clock) -> None:
    exchange = Exchange()
    await receive(mails, clock, 2)
    unmark = sa.update(schema.outbox).where(schema.outbox.c.id == 1).values(published_at=None)
    async with relaying(database, exchange):
        await until(lambda: len(exchange.events) == 2)
        await database.write(lambda connection: connection.execute(unmark).rowcount)
        await until(lambda: len(exchange.events) == 3)
    assert exchange.events[2] == exchange.events[0]


async def test_published_events_are_kept_a_week_and_waiting_ones_for_ever(database, mails, clock) -> None:
    exchange = Exchange()
    await receive(mails, clock, 2)
    async with relaying(database, exchange, clock=clock):
        await until(lambda: len(exchange.events) == 2)
    clock.advance(KEEP_SECONDS + 1)
    await receive(mails, clock)
    exchange.is_away = True
    async with relaying(database, exchange, clock=clock):
        await until(lambda: exchange.refusals > 0)
    assert await waiting(database) == 1
    exchange.is_away = False
    async with relaying(database, exchange, clock=clock):
        await until(lambda: len(exchange.events) == 3)
    count = sa.select(sa.func.count()).select_from(schema.outbox)
    assert await database.read(lambda connection: connection.execute(count).scalar_one()) == 1


async def test_a_subscriber_of_the_real_queue_gets_the_cloud_event(database, mails, clock, tmp_path: Path) -> None:
    async with SqliteBroker(tmp_path / "queue.db") as broker:
        queue = await broker.subscribe("shop", ["mail.*"])
        async with relaying(database, broker):
            [mail_id] = await receive(mails, clock)
            async with broker.consume({queue: 1}, concurrency=1) as consumer:
                async for lease in consumer:
                    event = CloudEvent.model_validate_json(lease.ticket.body)
                    break
    assert (event.type, event.subject, event.source) == ("mail.received", mail_id, "//mx.test/gateway")


@pytest.mark.parametrize(
    ("place", "times"),
    [("events.published.before", 1), ("events.published.before_mark", 2), ("events.published.after_mark", 1)],
)
async def test_killed_here_every_event_is_published_at_least_once(
    tmp_path, database, database_url, mails, clock, run_child, place, times
) -> None:
    await receive(mails, clock, 2)
    assert await run_child("relay", database_url, tmp_path, failpoint=place) == -9
    exchange = Exchange()
    async with relaying(database, exchange):
        async with asyncio.timeout(10):
            while await waiting(database):
                await asyncio.sleep(0.01)
    published = tmp_path / "published"
    told = (published.read_text().split() if published.exists() else []) + [event.id for event in exchange.events]
    assert len(set(told)) == 2
    assert len(told) == 2 * times


def test_an_event_of_an_unknown_type_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="type"):
        CloudEvent(
            id="1", source="//h/gateway", type="mail.eaten", subject="s", time="2026-01-01T00:00:00Z", sequence="0" * 20
        )
    example = {"id": "1", "source": "//h/gateway", "type": "post.created", "subject": "s", "sequence": "0" * 20}
    event = CloudEvent(**example, time="2026-01-01T00:00:00Z", data={"a": 1})
    assert json.loads(event.to_json())["time"] == "2026-01-01T00:00:00Z"
