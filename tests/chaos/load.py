"""A load on a queue that counts: what was confirmed, what was settled, and every reason why a ticket may come twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from gateway.errors import LeaseLost, QueueUnavailable
from gateway.queue.broker import Broker, Done, Later, Lease, Outcome, Release
from gateway.queue.rabbitmq import RabbitmqBroker
from gateway.queue.ticket import MAIL_INBOUND, Ticket, retry_queue

BODY = b"x" * 500
IN_FLIGHT = 40
PAUSE_SECONDS = 0.1
PACE_SECONDS = 0.25  # each publisher's task between two tickets: enough load, and room for the nodes to come back


class Load:
    """Publishers and consumers, each with connections of its own, until `stop`."""

    def __init__(self, urls: Sequence[str], *, pairs: int = 2, pace_seconds: float = PACE_SECONDS) -> None:
        self._urls = [[*urls[n % len(urls) :], *urls[: n % len(urls)]] for n in range(2 * pairs)]
        self.confirmed: set[str] = set()
        self.settled: Counter[str] = Counter()
        self.redelivered: Counter[str] = Counter()
        self.in_doubt: Counter[str] = Counter()  # a publish or a settling that may have been done, and was done again
        self.delayed: Counter[str] = Counter()  # a delay queue whose leader changes may let go of a ticket twice
        self.outages = 0
        self._pace_seconds = pace_seconds
        self._number = 0
        self._publishing = 0
        self._stop = asyncio.Event()
        self._drained = asyncio.Event()

    async def run(self) -> None:
        """Publishes until `stop`, consumes until `drain` is satisfied."""
        async with asyncio.TaskGroup() as group:
            for n, urls in enumerate(self._urls):
                group.create_task((self._publish, self._consume)[n % 2](urls))

    def stop(self) -> None:
        self._stop.set()

    async def drain(self, *, idle_seconds: float) -> None:
        """Waits until nobody publishes and everything confirmed is settled, or nothing has moved for so long."""
        moved, self._moved_at = -1, asyncio.get_running_loop().time()
        while self._publishing or not self.confirmed <= self.settled.keys():
            now, count = asyncio.get_running_loop().time(), self.settled.total()
            if count != moved:
                moved, self._moved_at = count, now
            if now - self._moved_at > idle_seconds:
                break
            await asyncio.sleep(PAUSE_SECONDS)
        self._drained.set()

    @property
    def count(self) -> int:
        """How many tickets were confirmed."""
        return len(self.confirmed)

    @property
    def lost(self) -> set[str]:
        return self.confirmed - self.settled.keys()

    @property
    def unexplained(self) -> dict[str, int]:
        """Tickets settled more often than their redeliveries and doubtful publishes explain."""
        return {
            id: count
            for id, count in self.settled.items()
            if count > 1 + self.redelivered[id] + self.in_doubt[id] + self.delayed[id]
        }

    def told(self) -> str:
        """The numbers, in a line."""
        return (
            f"{self.count} tickets confirmed, {self.settled.total()} settled, {self.outages} publishes repeated, "
            f"{self.redelivered.total()} redelivered"
        )

    async def _publish(self, urls: Sequence[str]) -> None:
        async with RabbitmqBroker(urls, is_house=True) as broker, asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(self._publish_on(broker))

    async def _publish_on(self, broker: Broker) -> None:
        self._publishing += 1
        while not self._stop.is_set():
            self._number += 1
            id = str(self._number)
            while not await self._is_confirmed(broker, id):
                await asyncio.sleep(PAUSE_SECONDS)
            await asyncio.sleep(self._pace_seconds)
        self._publishing -= 1

    async def _is_confirmed(self, broker: Broker, id: str) -> bool:
        try:
            await broker.publish([Ticket(queue=MAIL_INBOUND, id=id, body=BODY)])
        except QueueUnavailable:
            self.outages += 1
            self.in_doubt[id] += 1
            return False
        self.confirmed.add(id)
        return True

    async def _consume(self, urls: Sequence[str]) -> None:
        async with RabbitmqBroker(urls, is_house=True) as broker, asyncio.TaskGroup() as group:
            while not self._drained.is_set():
                with suppress(QueueUnavailable):
                    async with broker.consume(
                        {MAIL_INBOUND: 2, retry_queue(MAIL_INBOUND): 1}, concurrency=50
                    ) as consumer:
                        ending = group.create_task(self._end(consumer))
                        while not self._drained.is_set():
                            with suppress(QueueUnavailable):
                                async for lease in consumer:
                                    group.create_task(self._settle(lease))
                        ending.cancel()

    async def _end(self, consumer: object) -> None:
        await self._drained.wait()
        consumer.stop()  # type: ignore[attr-defined]

    async def _settle(self, lease: Lease) -> None:
        id = lease.ticket.id
        self.redelivered[id] += lease.delivery_count > 0
        outcome = self._outcome(lease)
        while True:
            try:
                await lease.settle(outcome)
            except LeaseLost:
                self.in_doubt[id] += 1
            except QueueUnavailable:
                self.in_doubt[id] += 1
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            else:
                self.settled[id] += isinstance(outcome, Done)
                self.delayed[id] += isinstance(outcome, Later)
            return

    @staticmethod
    def _outcome(lease: Lease) -> Outcome:
        """Most are done at once; some wait first, some are given back first."""
        number = int(lease.ticket.id)
        if number % 40 == 0 and lease.ticket.attempt == 0:
            return Later(at=datetime.now(UTC) + timedelta(seconds=1.3))
        if number % 41 == 0 and number % 7 == datetime.now(UTC).second % 7:
            return Release()
        return Done()
