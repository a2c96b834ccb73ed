"""The queue on RabbitMQ: publish and consume beside the plain way, one confirm at a time and a prefetch of one.

One private node, both ways on the same kind of quorum queue; 50 publishes in flight as 50 SMTP sessions would have them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aio_pika

from gateway.queue.broker import Done
from gateway.queue.rabbitmq import RabbitmqBroker
from gateway.queue.ticket import EMAIL_SEND, MAIL_INBOUND, Ticket
from tests.services.rabbitmq import Epmd, Node, missing

COUNT = int(os.environ.get("BENCH_TICKETS", "4000"))
BODY = b"x" * 4096
IN_FLIGHT = 50


async def publish(url: str) -> None:
    ids = iter(range(COUNT))

    async def one(broker: RabbitmqBroker) -> None:
        for n in ids:
            await broker.publish([Ticket(queue=MAIL_INBOUND, id=str(n), body=BODY)])

    async with RabbitmqBroker([url], is_house=True) as broker:
        await asyncio.gather(*(one(broker) for _ in range(IN_FLIGHT)))


async def consume(url: str) -> None:
    async with (
        RabbitmqBroker([url], is_house=True) as broker,
        broker.consume({MAIL_INBOUND: 1}, concurrency=IN_FLIGHT) as consumer,
    ):
        for _ in range(COUNT):
            await (await anext(aiter(consumer))).settle(Done())


async def plain_publish(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for n in range(COUNT):
            message = aio_pika.Message(BODY, message_id=str(n), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, EMAIL_SEND)


async def plain_consume(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        queue = await channel.get_queue(EMAIL_SEND, ensure=False)
        left = COUNT
        async with queue.iterator() as messages:
            async for message in messages:
                await message.ack()
                left -= 1
                if not left:
                    break


def rate(work: Callable[[str], Awaitable[None]], url: str) -> float:
    async def timed() -> float:
        begun = time.perf_counter()
        await work(url)
        return COUNT / (time.perf_counter() - begun)

    return asyncio.run(timed())


def main() -> None:
    if lacking := missing():
        print(f"rabbitmq: not measured, {lacking}")
        return
    folder, epmd = Path(tempfile.mkdtemp(prefix="gateway-bench-")), Epmd()
    node = Node(folder / "node", epmd)
    try:
        node.start()
        asyncio.run(declare(node.url()))
        print(f"rabbitmq: {COUNT} tickets of {len(BODY)} B, one node, quorum queues")
        print(f"{'':<20}{'ours':>10}{'plain':>10}{'gain':>8}")
        for name, ours, plain in (("published /s", publish, plain_publish), ("consumed /s", consume, plain_consume)):
            mine, theirs = rate(ours, node.url()), rate(plain, node.url())
            print(f"{name:<20}{mine:>10.0f}{theirs:>10.0f}{mine / theirs:>7.1f}x")
    finally:
        node.end()
        epmd.end()
        shutil.rmtree(folder, ignore_errors=True)


async def declare(url: str) -> None:
    async with RabbitmqBroker([url], is_house=True):
        pass


if __name__ == "__main__":
    main()
