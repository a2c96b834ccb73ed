"""What moves: many viewers cost one look, a fault is told and the stream goes on, and everything ends with the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import QueueUnavailable, StoreUnavailable
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.queue.broker import Depth
from gateway.runtime import utc_now
from gateway.store.blobs import FileBlobStore
from gateway.store.database import Database, open_database
from gateway.store.mails import Mails
from gateway.store.pulse import SLOTS, pulse
from gateway.web.pages.live import Alarm, Live
from gateway.web.pages.view import View


class Parts:
    """A store and a queue that count who asks, or do not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.looks = 0
        self.answers = True

    async def read(self, work: Any) -> Any:
        self.looks += 1
        if not self.answers:
            raise StoreUnavailable("the disk is gone")
        return await self._database.read(work)

    async def depths(self) -> list[Depth]:
        if not self.answers:
            raise QueueUnavailable("the queue is gone")
        names = ("mail.inbound", "mail.inbound.retry", "email.send.bulk")
        return [Depth(name=name, ready=1, leased=0, delayed=2, dead=1, oldest_seconds=9.0) for name in names]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await open_database(f"sqlite:///{tmp_path}/store.db")
    yield opened
    await opened.close()


@pytest.fixture
def parts(database: Database) -> Parts:
    return Parts(database)


def live(parts: Parts, **values: Any) -> Live:
    return Live(parts, parts, clock=utc_now, **values)  # type: ignore[arg-type]


async def test_many_who_look_at_once_cost_one_look(parts: Parts) -> None:
    watched = live(parts)
    snapshots = await asyncio.gather(*(watched.snapshot() for _ in range(50)))
    assert parts.looks == 1
    assert (snapshots[0].mail_queue.ready, snapshots[0].mail_queue.delayed, snapshots[0].dead) == (2, 4, 3)
    assert snapshots[0].email_queue.oldest == 9.0


async def test_a_store_and_a_queue_that_do_not_answer_are_told_on_the_page(parts: Parts) -> None:
    parts.answers = False
    snapshot = await live(parts).snapshot()
    assert snapshot.pulse is None
    assert [trouble.partition(":")[0] for trouble in snapshot.troubles] == [
        "The store does not answer",
        "The queue does not answer",
    ]


async def test_what_an_alarm_says_already_is_not_said_twice(parts: Parts) -> None:
    async def alarms() -> list[Alarm]:
        return [Alarm(topic="store", what="the store cannot be reached", next_step="look at it")]

    parts.answers = False
    snapshot = await live(parts, alarms=alarms).snapshot()
    assert [trouble.partition(":")[0] for trouble in snapshot.troubles] == ["The queue does not answer"]


async def test_alarms_stand_on_the_overview(parts: Parts) -> None:
    async def alarms() -> list[Alarm]:
        return [Alarm(topic="relay", what="<b>the relay is paused</b>", next_step="look at it", since=utc_now())]

    snapshot = await live(parts, alarms=alarms).snapshot()
    values: dict[str, Any] = {"places": None, "last_mails": [], "last_emails": [], "pulse": None, "troubles": []}
    queues = {"mail_queue": snapshot.mail_queue, "email_queue": snapshot.email_queue}
    told = View(clock=utc_now).render("overview_live.html", alarms=snapshot.alarms, **values, **queues)
    assert "&lt;b&gt;the relay is paused&lt;/b&gt;" in told


async def test_a_stream_says_a_piece_once_and_ends_with_the_process(parts: Parts) -> None:
    watched, said = live(parts), []

    async def render() -> str:
        return "one\ntwo"

    async def watch() -> None:
        async for event in watched.stream(render):
            said.append(event)

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(30):
        while not said:
            await asyncio.sleep(0)
        watched.close()
        await watching
    assert said == ["data: one\ndata: two\n\n"]


async def test_the_pulse_counts_the_last_hour_by_slots_and_all_that_is_open(database: Database, tmp_path: Path) -> None:
    mails = Mails(database, FileBlobStore(tmp_path), clock=utc_now, hostname="mx.test")
    now = utc_now()
    for minutes, held in ((1, True), (2, False), (59, False), (61, True)):
        mail_id, at = new_id(), now - timedelta(minutes=minutes)
        envelope = Envelope(mail_id=mail_id, mail_from="", rcpt_to=("a@b.org",), received_at=at, door="t")
        await mails.record_received(envelope, b"x", 1, "0" * 64)
        if held:
            await mails.record_held(mail_id, "a@b.org", "posts", "unproven")
    felt = await database.read(lambda connection: pulse(connection, now))
    assert (len(felt.mails.slots), felt.mails.slots[-1], felt.mails.slots[0], felt.mails.arrived) == (SLOTS, 2, 1, 3)
    assert felt.mails.recent == {"held": 1, "pending": 2}
    assert felt.mails.open == {"held": 2, "pending": 2}
    assert felt.emails.arrived == 0
