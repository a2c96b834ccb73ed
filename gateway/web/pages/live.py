"""What moves: one look at store and queue for everybody who watches, and the streams that carry it to their pages.

Flow: a page holds `hx-sse:connect` → a stream renders its piece about once a second → sends it when it differs.
Promises: many viewers cost one look; a look that takes long is taken less often; a store or queue that does not answer is
told on the page as a trouble, and the stream goes on; streams end with the process.
Limits: at most `MAX_VIEWERS` streams, beyond them pages stand still.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.errors import TransientFailure
from gateway.queue.broker import Broker, Depth
from gateway.queue.ticket import EMAIL_QUEUES, MAIL_INBOUND, fresh_queue
from gateway.runtime import Clock, Stop
from gateway.store.database import Database
from gateway.store.pulse import Pulse, pulse

MAX_VIEWERS = 100
_SECONDS = 1.0
_SHARE_OF_TIME = 10  # a look that took 0.3 s is taken every 3 s
_KEEP_ALIVE_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something an operator should know now; `topic` is one of `docs/alarms.md`."""

    topic: str
    what: str
    next_step: str
    since: datetime | None = None


Alarms = Callable[[], Awaitable[Sequence[Alarm]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSum:
    """A queue and its retry queue, or several of them, as one."""

    ready: int
    leased: int
    delayed: int
    oldest: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that moves, at one moment; what could not be looked at is missing and has its trouble instead."""

    at: datetime
    pulse: Pulse | None = None
    depths: Sequence[Depth] = ()
    alarms: Sequence[Alarm] = ()
    store_trouble: str = ""
    queue_trouble: str = ""

    @property
    def troubles(self) -> list[str]:
        """What this look could not ask, where no alarm says so already."""
        told = {alarm.topic for alarm in self.alarms}
        found = {"store": self.store_trouble, "queue": self.queue_trouble}
        return [trouble for topic, trouble in found.items() if trouble and topic not in told]

    @property
    def held(self) -> int:
        ways = (self.pulse.mails, self.pulse.emails) if self.pulse else ()
        return sum(way.open.get("held", 0) for way in ways)

    @property
    def dead(self) -> int:
        return sum(depth.dead for depth in self.depths)

    @property
    def mail_queue(self) -> QueueSum:
        return _sum(self.depths, {MAIL_INBOUND})

    @property
    def email_queue(self) -> QueueSum:
        return _sum(self.depths, set(EMAIL_QUEUES))


class Live:
    """Looks for all viewers together."""

    def __init__(self, database: Database, broker: Broker, *, clock: Clock, alarms: Alarms | None = None) -> None:
        self._database = database
        self._broker = broker
        self._clock = clock
        self._alarms = alarms
        self._looking = asyncio.Lock()
        self._last = Snapshot(at=clock())
        self._good_until = 0.0
        self._viewers = 0
        self._stop = Stop()

    def close(self) -> None:
        """Ends all streams."""
        self._stop.set()

    @property
    def has_room(self) -> bool:
        return self._viewers < MAX_VIEWERS

    async def snapshot(self) -> Snapshot:
        """The last look, taken anew where it is too old."""
        async with self._looking:
            began = time.monotonic()
            if began >= self._good_until:
                self._last = await self._look()
                cost = time.monotonic() - began
                self._good_until = began + max(_SECONDS / 2, cost * _SHARE_OF_TIME)
            return self._last

    async def stream(self, render: Callable[[], Awaitable[str]]) -> AsyncIterator[str]:
        """Server-sent events: a piece of a page whenever it differs from the last one sent."""
        self._viewers += 1
        last, said_at = "", time.monotonic()
        try:
            while not self._stop.is_set:
                piece = await render()
                if piece != last:
                    yield _event(piece)
                    last, said_at = piece, time.monotonic()
                elif time.monotonic() - said_at > _KEEP_ALIVE_SECONDS:
                    yield ": still here\n\n"
                    said_at = time.monotonic()
                await self._stop.wait(_SECONDS)
        finally:
            self._viewers -= 1

    async def _look(self) -> Snapshot:
        now = self._clock()
        facts: dict[str, Any] = {}
        try:
            facts["pulse"] = await self._database.read(lambda connection: pulse(connection, now))
        except TransientFailure as fault:
            told = f"The store does not answer: {fault}. Mails are still taken and wait in the queue."
            facts["store_trouble"] = told
        try:
            facts["depths"] = await self._broker.depths()
        except TransientFailure as fault:
            told = f"The queue does not answer: {fault}. The doors say “try again later” meanwhile."
            facts["queue_trouble"] = told
        if self._alarms is not None:
            facts["alarms"] = tuple(await self._alarms())
        return Snapshot(at=now, **facts)


def _event(piece: str) -> str:
    return "".join(f"data: {line}\n" for line in piece.splitlines()) + "\n"


def _sum(depths: Sequence[Depth], names: set[str]) -> QueueSum:
    chosen = [depth for depth in depths if fresh_queue(depth.name) in names]
    ages = [depth.oldest_seconds for depth in chosen if depth.oldest_seconds is not None]
    return QueueSum(
        ready=sum(depth.ready for depth in chosen),
        leased=sum(depth.leased for depth in chosen),
        delayed=sum(depth.delayed for depth in chosen),
        oldest=max(ages, default=None),
    )
