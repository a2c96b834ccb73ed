"""What an app puts into a message's properties, however broken, is one ticket's matter and never the connection's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pika
import pytest
from pamqp import decode

from gateway.queue.amqp_octets import DEEPEST, read_leniently
from gateway.queue.broker import Dead, Done, Later
from gateway.queue.rabbitmq import RabbitmqBroker
from gateway.queue.ticket import EMAIL_SEND, UNROUTABLE, Ticket, retry_queue

OCTETS = b"\xff\xfe"


def nested(depth: int) -> dict[str, Any]:
    return {"in": nested(depth - 1)} if depth else {"n": 1}


def depth_of(value: Any) -> int:
    return 1 + depth_of(value["in"]) if isinstance(value, Mapping) and "in" in value else 0


def publish(url: str, key: str | bytes, properties: Mapping[str, Any]) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.basic_publish("gateway.commands", key, b"odd", pika.BasicProperties(**properties))
    connection.close()


async def settle_next(consumer: Any, outcome: Any) -> Ticket:
    async with asyncio.timeout(30):
        lease = await anext(aiter(consumer))
    await lease.settle(outcome)
    return lease.ticket


@pytest.mark.parametrize(
    ("key", "properties"),
    [
        (EMAIL_SEND, dict.fromkeys(("message_id", "correlation_id", "reply_to", "content_type", "type"), OCTETS)),
        (EMAIL_SEND, {"headers": {OCTETS: 1}}),
        (EMAIL_SEND, {"headers": {"list": [{OCTETS: OCTETS}], "deep": nested(60)}}),
        (EMAIL_SEND, {"headers": {"when": datetime(9999, 12, 31, tzinfo=UTC)}, "timestamp": 2**63}),
        (OCTETS, {"message_id": "7"}),
    ],
    ids=["words", "name", "nested", "moments", "key"],
)
async def test_octets_nobody_can_read_end_no_connection(amqp_url: str, key: Any, properties: dict[str, Any]) -> None:
    async with RabbitmqBroker([amqp_url], is_house=True) as broker:
        await asyncio.to_thread(publish, amqp_url, key, properties)
        home = EMAIL_SEND if key == EMAIL_SEND else UNROUTABLE
        async with broker.consume({home: 1}, concurrency=1) as consumer:
            assert (await settle_next(consumer, Later(at=datetime.now(UTC)))).body == b"odd"
            await broker.publish([Ticket(queue=home, id="good", body=b"good")])
            assert (await settle_next(consumer, Done())).id == "good", "the connection goes on"
        async with broker.consume({retry_queue(home): 1}, concurrency=1) as consumer:
            assert (await settle_next(consumer, Dead(reason="odd"))).body == b"odd"
        [dead] = await broker.dead()
        assert dead.reason == "odd"


def test_what_is_nested_deeper_than_anybody_needs_is_empty() -> None:
    read_leniently()
    table = b""
    for _ in range(DEEPEST * 100):
        table = b"\x02inF" + len(table).to_bytes(4) + table
    used, found = decode.by_type(len(table).to_bytes(4) + table, "table")
    assert (used, depth_of(found)) == (len(table) + 4, DEEPEST)
