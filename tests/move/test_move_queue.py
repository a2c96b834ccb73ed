"""A queue in a file goes to RabbitMQ: every ticket once, in its state and its order, wherever the move is killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from gateway import app
from gateway.errors import PermanentFailure, TransientFailure
from gateway.queue.amqp_moving import Staging
from gateway.queue.amqp_ticket import read
from gateway.queue.broker import Dead, Done, Event, Later, Suspect
from gateway.queue.moving import MovingQueue
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
    POST_CREATE,
    SUSPECT,
    Ticket,
    retry_queue,
)
from gateway.settings import Settings
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
        assert await serial_order(broker) == [f"{number:03}" for number in range(30)]
        await broker.publish_events([Event(key="email.relayed", id="after", body=b"{}")])
    events = await take_all("subscriber.payroll", wanted=2)
    assert {message.message_id for message in events} == {"event", "after"}
    [suspect] = await take_all(SUSPECT, wanted=1)
    assert suspect.headers["home_queue"] == MAIL_INBOUND
    mails = Counter(message.message_id for message in await take_all(MAIL_INBOUND, wanted=252))
    assert mails == {f"mail {number}": 1 for number in range(250)} | {"same": 2}
