"""A queue in a file goes to RabbitMQ: every ticket once, in its state and its order, wherever the move is killed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from gateway.errors import PermanentFailure, QueueUnavailable
from gateway.queue.amqp_moving import Staging
from gateway.queue.broker import Dead, Done, Event, Later, Suspect
from gateway.queue.moving import MovingQueue, what_is_left
from gateway.queue.rabbitmq import RabbitmqBroker
from gateway.queue.receipts import ReceiptFile
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import (
    DEAD_CRASHED,
    DEAD_FAILED,
    EMAIL_SEND,
    EMAIL_SEND_BULK,
    EMAIL_SEND_SERIAL,
    MAIL_INBOUND,
    PHOTO_RENDER,
    POST_CREATE,
    SUSPECT,
    Ticket,
    retry_queue,
)
from gateway.watch.move import Part, move_queue

SOON = datetime.now(UTC) + timedelta(hours=1)


def ticket(id: str, queue: str = EMAIL_SEND, **values: Any) -> Ticket:
    return Ticket(queue=queue, id=id, body=f"the body of {id}".encode(), **values)


async def settle_one(broker: SqliteBroker, queue: str, outcome: Any) -> None:
    async with broker.consume({queue: 1}, concurrency=1) as consumer:
        await (await anext(aiter(consumer))).settle(outcome)


async def fill(path: Path) -> None:
    """Something of everything a queue may hold."""
    async with SqliteBroker(path) as broker:
        await broker.publish([ticket("late", app="shop", headers={"rcpt_to": ["a@x", "b@x"], "n": 1})])
        await settle_one(broker, EMAIL_SEND, Later(at=SOON))
        await broker.publish([ticket("soon", PHOTO_RENDER)])
        await settle_one(broker, PHOTO_RENDER, Later(at=datetime.now(UTC) + timedelta(seconds=6)))
        await broker.publish([ticket("dead", POST_CREATE)])
        await settle_one(broker, POST_CREATE, Dead(reason="nobody can"))
        await broker.publish([ticket("killer", MAIL_INBOUND, headers={"rcpt_to": ["a@x"]})])
        await settle_one(broker, MAIL_INBOUND, Suspect())
        await broker.publish([ticket("crashed", EMAIL_SEND_BULK)])
        await settle_one(broker, EMAIL_SEND_BULK, Dead(reason="dies", crashed=True))
        await broker.subscribe("payroll", ["email.#"])
        await broker.publish_events([Event(key="email.relayed", id="event", body=b"{}")])
        await broker.publish([ticket(f"{number:03}", EMAIL_SEND_SERIAL) for number in range(30)])
        await broker.publish([ticket(f"mail {number}", MAIL_INBOUND, app="door") for number in range(250)])
        await broker.publish([ticket("same", MAIL_INBOUND), ticket("same", MAIL_INBOUND)])


EXPECTED = {
    retry_queue(EMAIL_SEND): 1,
    retry_queue(PHOTO_RENDER): 1,
    DEAD_FAILED: 1,
    DEAD_CRASHED: 1,
    SUSPECT: 1,
    "subscriber.payroll": 1,
    EMAIL_SEND_SERIAL: 30,
    MAIL_INBOUND: 252,
}


async def carry(path: Path, amqp_url: str) -> list[Part]:
    async with (
        ReceiptFile(path.with_name("receipts.db")) as receipts,
        MovingQueue(path, to="rabbitmq") as source,
        Staging([amqp_url], source.name) as staging,
    ):
        return await move_queue(source, staging, receipts, tell=lambda *_: None)


async def serial_order(broker: RabbitmqBroker) -> list[str]:
    """The first thirty of the serial queue, in the order they are worked."""
    order: list[str] = []
    async with broker.consume({EMAIL_SEND_SERIAL: 1}, concurrency=1) as consumer, asyncio.timeout(60):
        async for lease in consumer:
            order.append(lease.ticket.id)
            await lease.settle(Done())
            if len(order) == 30:
                break
    return order


@pytest.fixture
async def take_all(amqp_url: str) -> AsyncIterator[Callable[[str], Any]]:
    """Reads a queue of RabbitMQ to its end."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()

        async def take(name: str, *, wanted: int) -> list[Any]:
            queue = await channel.get_queue(name, ensure=False)
            found: list[Any] = []
            for _ in range(2000):
                message = await queue.get(fail=False)
                if message is not None:
                    found.append(message)
                elif len(found) >= wanted:
                    break
            return found

        yield take


async def test_everything_comes_along_as_it_was(tmp_path: Path, amqp_url: str, take_all: Any) -> None:
    await fill(tmp_path / "queue.db")
    parts = await carry(tmp_path / "queue.db", amqp_url)
    assert all(part.is_whole for part in parts), parts
    assert {part.part.removeprefix("queue "): part.carried for part in parts[:-1]} == EXPECTED
    async with RabbitmqBroker([amqp_url], is_house=True) as broker:
        delayed = {depth.name: depth.delayed for depth in await broker.depths()}
        assert delayed[retry_queue(EMAIL_SEND)] == 1
        assert {(letter.ticket.id, letter.queue, letter.reason, letter.box) for letter in await broker.dead()} == {
            ("dead", POST_CREATE, "nobody can", DEAD_FAILED),
            ("crashed", EMAIL_SEND_BULK, "dies", DEAD_CRASHED),
        }
        async with broker.consume({retry_queue(PHOTO_RENDER): 1}, concurrency=1) as consumer, asyncio.timeout(60):
            lease = await anext(aiter(consumer))
            assert lease.ticket.due_at is not None
            assert (lease.ticket.id, lease.ticket.attempt, lease.ticket.due_at <= datetime.now(UTC)) == (
                "soon",
                1,
                True,
            )
            await lease.settle(Done())
        assert await serial_order(broker) == [f"{number:03}" for number in range(30)]
        await broker.publish_events([Event(key="email.relayed", id="after", body=b"{}")])
    events = await take_all("subscriber.payroll", wanted=2)
    assert {message.message_id for message in events} == {"event", "after"}
    [suspect] = await take_all(SUSPECT, wanted=1)
    assert suspect.headers["home_queue"] == MAIL_INBOUND
    mails = Counter(message.message_id for message in await take_all(MAIL_INBOUND, wanted=252))
    assert mails == {f"mail {number}": 1 for number in range(250)} | {"same": 2}


class Killed(BaseException):
    """The process ends here."""


async def test_every_ticket_comes_once_wherever_the_move_was_ended(
    tmp_path: Path, amqp_url: str, take_all: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "queue.db"
    async with SqliteBroker(path) as broker:
        await broker.publish([ticket(f"mail {number}", MAIL_INBOUND) for number in range(450)])
        await broker.publish([ticket(f"email {number}") for number in range(20)])
    for place, visit in (("staged", 1), ("removed", 1), ("releasing", 1), ("batch", 1), ("staged", 2), ("receipts", 1)):
        left = [visit]

        def die(name: str, place: str = place, left: list[int] = left) -> None:
            left[0] -= name == f"move.{place}"
            if not left[0]:
                left[0] = -1
                raise Killed

        for module in ("queue.moving", "queue.amqp_moving", "watch.move"):
            monkeypatch.setattr(f"gateway.{module}.failpoint", die)
        with pytest.raises(Killed):
            await carry(path, amqp_url)
        assert await what_is_left(path), place
    for module in ("queue.moving", "queue.amqp_moving", "watch.move"):
        monkeypatch.setattr(f"gateway.{module}.failpoint", lambda name: None)
    parts = {part.part: part for part in await carry(path, amqp_url)}
    assert not await what_is_left(path)
    mails, emails = parts[f"queue {MAIL_INBOUND}"], parts[f"queue {EMAIL_SEND}"]
    assert (mails.found, mails.carried + mails.already, emails.found, emails.carried + emails.already) == (
        450,
        450,
        20,
        20,
    )
    async with ReceiptFile(tmp_path / "receipts.db") as receipts:
        assert len(await receipts.page(after=0, until=await receipts.last(), limit=1000)) == 470
    found = [message.message_id for message in await take_all(MAIL_INBOUND, wanted=450)]
    found += [message.message_id for message in await take_all(EMAIL_SEND, wanted=20)]
    expected = [f"mail {number}" for number in range(450)] + [f"email {number}" for number in range(20)]
    assert sorted(found) == sorted(expected)


async def test_a_queue_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    async with SqliteBroker(tmp_path / "queue.db") as broker:
        await broker.publish([ticket("1")])
        with pytest.raises(QueueUnavailable, match="open in 1 other process: stop the gateway, and the apps"):
            async with MovingQueue(tmp_path / "queue.db", to="rabbitmq"):
                """Never reached."""
        assert [depth.ready for depth in await broker.depths() if depth.name == EMAIL_SEND] == [1]


async def test_what_a_dead_worker_had_in_hand_comes_along(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with SqliteBroker(path) as broker:
        await broker.publish([ticket("1")])
    with closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE tickets SET token = 't', holder = 'nobody', lease_until = ?, deliveries = 1", (2**60,))
        file.commit()
    async with MovingQueue(path, to="rabbitmq") as source:
        [parcel] = await source.batch()
    assert (parcel.ticket.id, parcel.deliveries) == ("1", 1)


async def test_what_rabbitmq_cannot_carry_is_named_and_stays(tmp_path: Path, amqp_url: str) -> None:
    path = tmp_path / "queue.db"
    async with SqliteBroker(path) as broker:
        await broker.publish([ticket("fine"), ticket("odd", headers={"ratio": 0.5})])
    parts = {part.part: part for part in await carry(path, amqp_url)}
    part = parts[f"queue {EMAIL_SEND}"]
    assert (part.found, part.carried, part.is_whole) == (2, 1, False)
    assert [text for text in part.lacking if "ticket odd stays: a header of float" in text] == list(part.lacking)
    assert (await what_is_left(path)).tickets == {EMAIL_SEND: 1}


async def test_a_move_that_has_begun_goes_on_to_the_same_place(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with SqliteBroker(path) as broker:
        await broker.publish([ticket("1")])
    async with MovingQueue(path, to="here") as source:
        await source.batch()
    with pytest.raises(PermanentFailure, match="a move to here has begun"):
        async with MovingQueue(path, to="there"):
            """Never reached."""
