"""A sending worker and a sweeper as a process of its own.

`python serial_worker.py FOLDER QUEUE_URL DATABASE_URL RELAY_URL LADDER SWEEP OVERDUE`
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from gateway.client import open_broker
from gateway.maillog import MailLog
from gateway.outbound.deliver import Deliver
from gateway.outbound.relay import RelayPool, parse_relay_url
from gateway.outbound.templates import TemplateSet
from gateway.queue.ladder import Ladder
from gateway.queue.ticket import EMAIL_QUEUES, retry_queue
from gateway.queue.worker import work
from gateway.runtime import Stop, utc_now
from gateway.store.blobs import FileBlobStore
from gateway.store.database import open_database
from gateway.store.emails import DatabaseLedger
from gateway.watch.sweeper import sweep

CLAIM_SECONDS = 2.0
UNKNOWN_WAIT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker works."""

    folder: Path
    queue_url: str
    database_url: str
    relay_url: str


async def run(place: Place, ladder: Ladder, sweep_seconds: float, overdue_seconds: float) -> None:
    log, stop, folder = MailLog(), Stop(), place.folder
    blobs = FileBlobStore(folder / "blobs")
    database = await open_database(place.database_url)
    ledger = DatabaseLedger(
        database, blobs, clock=utc_now, hostname="mx.test", unknown_wait_seconds=UNKNOWN_WAIT_SECONDS
    )
    pool = RelayPool(
        [parse_relay_url(place.relay_url)], hostname="mx.test", captured_dir=folder, log=log, clock=utc_now
    )
    receipts = folder / f"receipts-{os.getpid()}.db"
    async with open_broker(place.queue_url, receipts=receipts) as broker, asyncio.TaskGroup() as group:
        deliver = Deliver(
            ledger=ledger,
            pool=pool,
            cage=None,  # type: ignore[arg-type]  # requests with their own text need no cage
            templates=TemplateSet([]),
            blobs=blobs,
            publish=broker.publish,
            answer=broker.answer,
            ladder=ladder,
            clock=utc_now,
            log=log,
            mail_from="bounces@example.com",
            claim_seconds=CLAIM_SECONDS,
        )
        sweeping = {"interval_seconds": sweep_seconds, "overdue_seconds": overdue_seconds, "log": log}
        group.create_task(sweep(ledger, broker, stop=stop, **sweeping))
        group.create_task(
            work(
                broker,
                queues={name: 1 for home in EMAIL_QUEUES for name in (home, retry_queue(home))},
                handlers=dict.fromkeys(EMAIL_QUEUES, deliver.handle),
                concurrency=30,
                stop=stop,
                ladder=ladder,
                observer=log,
                gate=pool.wait_usable,
            )
        )


if __name__ == "__main__":
    folder, queue_url, database_url, relay_url, ladder, sweep_seconds, overdue_seconds = sys.argv[1:]
    place = Place(folder=Path(folder), queue_url=queue_url, database_url=database_url, relay_url=relay_url)
    asyncio.run(run(place, Ladder.parse(ladder), float(sweep_seconds), float(overdue_seconds)))
