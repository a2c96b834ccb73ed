"""Urgent email beside a mountain of bulk retries, all due at once: it is out within seconds, on either queue.

The mountain is real: in the ledger each recipient was deferred once, and each has its ticket in `email.send.bulk.retry`.
`gateway run send` works it off while an app sends urgent email now and then.
"""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from pathlib import Path

import pytest
import sqlalchemy as sa
from crash.house import Sink
from flows.place import house_on

import gateway
from gateway.app import open_queue, open_store
from gateway.contract.email_send import SendEmail, parse_send_email
from gateway.mail.ids import new_id
from gateway.outbound.retry_ticket import retry_ticket
from gateway.settings import Settings, load
from gateway.store.schema import email_recipients

RECIPIENTS = 100
AT_ONCE = 500
URGENT = 10
SECONDS = 5.0
SETTLE_SECONDS = 120.0


def bulk_request() -> SendEmail:
    """One email of the mountain, with as many recipients as one can have."""
    number = new_id()
    to = [f"reader-{place}-{number}@example.org" for place in range(RECIPIENTS)]
    return parse_send_email({"id": number, "subject": "News", "text": "Much has happened.", "to": to, "stream": "bulk"})


async def pile_up(settings: Settings, count: int) -> None:
    """Fills the ledger, then the queue."""
    requests = [bulk_request() for _ in range(count // RECIPIENTS)]
    async with open_store(settings) as store, open_queue(settings) as broker:
        for request in requests:
            facts = {"app": "", "content_hash": "hash", "stream": "bulk", "message_id": f"<{request.id}@localhost>"}
            await store.ledger.record_accepted(request, ticket_id=request.id, **facts)
        deferred = sa.update(email_recipients).values(
            disposition="delayed", attempts=1, ticket_id=email_recipients.c.recipient
        )
        await store.database.write(lambda connection: connection.execute(deferred).rowcount)
        tickets = (
            retry_ticket(email_id=item.id, recipient=to, ticket_id=to, stream="bulk", attempt=1, due_at=None)
            for item in requests
            for to in item.recipients()
        )
        while bite := list(islice(tickets, AT_ONCE)):
            await broker.publish(bite)


async def seconds_until_out(client: gateway.client.Client, sink: Sink, number: int) -> float:
    """How long one urgent email takes from the app to the relay."""
    to = f"urgent-{number}@example.org"
    began = time.monotonic()
    await client.send("welcome", to=to, params={"name": "Ann"}, stream="urgent")
    async with asyncio.timeout(SETTLE_SECONDS):
        while not any(recipient == to for recipient, _ in islice(reversed(sink.taken), AT_ONCE)):
            await asyncio.sleep(0.02)
    return time.monotonic() - began


@pytest.fixture(params=["sqlite", "rabbitmq"])
def urls(request: pytest.FixtureRequest) -> dict[str, str]:
    return {} if request.param == "sqlite" else {"queue_url": request.getfixturevalue("amqp_url")}


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.long)])
async def test_urgent_email_is_out_within_seconds_beside_bulk_retries(
    count: int, urls: dict[str, str], tmp_path: Path
) -> None:
    async with Sink() as sink:
        house = house_on(tmp_path / "house", sink.port, urls)
        settings = load(environment=house.environment())
        await pile_up(settings, count)
        house.start("", "send")
        try:
            async with gateway.connect(settings.queue_url) as client, asyncio.timeout(SETTLE_SECONDS):
                while sink.taken.total() < RECIPIENTS:  # the mountain is being worked
                    await asyncio.sleep(0.05)
                took = [await seconds_until_out(client, sink, number) for number in range(URGENT)]
            left = count + URGENT - sink.taken.total()
        finally:
            house.kill()
    middle = sorted(took)[URGENT // 2]
    print(
        f"{count} bulk retries, {left} left: urgent out after {middle:.2f} s in the middle, {max(took):.2f} s at most"
    )
    assert left > count // 10, "the mountain was still there"
    assert max(took) < SECONDS, took
