"""The collector's rounds: notes what dead letters carry, then lets forgotten blobs go, a few an hour, told and counted.

Of the processes on one database one does it at a time.  A round without the queue's word about its dead letters takes nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Protocol

from gateway.maillog import MailLog
from gateway.queue.broker import DeadTicket
from gateway.runtime import Stop
from gateway.store.blob_collector import Collector, digests_in

INTERVAL_SECONDS = 3600
BLOBS_A_ROUND = 2000


class Letters(Protocol):
    """What the collector needs of the broker."""

    def all_dead(self) -> AsyncIterator[DeadTicket]: ...


async def collect(
    collector: Collector,
    broker: Letters,
    *,
    stop: Stop,
    log: MailLog,
    interval_seconds: float = INTERVAL_SECONDS,
) -> None:
    """Makes a round every `interval_seconds` until `stop`; one that fails is told and the next one comes."""
    while not await stop.wait(interval_seconds):
        try:
            await collect_once(collector, broker, log=log)
        except Exception as error:  # noqa: BLE001  # broad: one blob nobody foresaw must not end all collecting
            log.service_failed("collector", error=error)


async def collect_once(collector: Collector, broker: Letters, *, log: MailLog) -> None:
    """One round; raises StoreUnavailable or QueueUnavailable."""
    if not await collector.take_turn():
        return
    carried = {(letter.ticket.id, name) async for letter in broker.all_dead() for name in digests_in(_octets(letter))}
    await collector.note_dead_tickets(carried)
    collected = await collector.collect(limit=BLOBS_A_ROUND)
    if collected.deleted:
        log.service("collector", "collected", old=collected.old, deleted=collected.deleted)


def _octets(letter: DeadTicket) -> bytes:
    return json.dumps(dict(letter.ticket.headers), default=str).encode() + b"\n" + letter.ticket.body
