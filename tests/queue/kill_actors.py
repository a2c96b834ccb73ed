"""The processes of the kill test: `publish FILE LOG` and `consume FILE LOG`, for ever, until somebody kills them.

A publisher logs an id after its publish returned; a consumer logs one before it settles.  The log is appended to with
one write(2) an id, which outlives any kill of the process.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway.errors import LeaseLost
from gateway.queue.broker import Done, Later, Outcome, Release
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import MAIL_INBOUND, Ticket, retry_queue

AT_ONCE = 20
PAUSE_SECONDS = 0.02


def append(log: int, id: str) -> None:
    os.write(log, id.encode() + b"\n")


async def publish(broker: SqliteBroker, log: int) -> None:
    while True:
        await asyncio.gather(*(_publish_one(broker, log) for _ in range(AT_ONCE)))
        await asyncio.sleep(PAUSE_SECONDS)


async def _publish_one(broker: SqliteBroker, log: int) -> None:
    id = str(uuid.uuid4())
    body = id.encode() * random.randint(1, 200)
    await broker.publish([Ticket(queue=MAIL_INBOUND, id=id, body=body)])
    append(log, id)


async def consume(broker: SqliteBroker, log: int) -> None:
    queues = {MAIL_INBOUND: 2, retry_queue(MAIL_INBOUND): 1}
    async with broker.consume(queues, concurrency=10) as consumer, asyncio.TaskGroup() as group:
        async for lease in consumer:
            group.create_task(_consume_one(lease, log))


async def _consume_one(lease, log: int) -> None:
    if not lease.ticket.body.startswith(lease.ticket.id.encode()):
        append(log, f"torn {lease.ticket.id}")
    outcome: Outcome = Done()
    if lease.ticket.attempt == 0 and random.random() < 0.2:
        outcome = random.choice([Release(), Later(at=datetime.now(UTC) + timedelta(seconds=0.1))])
    if isinstance(outcome, Done):
        append(log, lease.ticket.id)
    try:
        await lease.settle(outcome)
    except LeaseLost:
        append(log, f"lost-lease {lease.ticket.id}")


async def main(role: str, file: str, log_file: str) -> None:
    log = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    async with SqliteBroker(Path(file)) as broker:
        await {"publish": publish, "consume": consume}[role](broker, log)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
