"""The events relay: carries our outbox to the topic exchange `gateway.events`, for every app that subscribed.

Flow: a verb of the store writes the outbox row in its transaction → here: publish, confirmed, then mark.
Promises: every event committed is published at least once, oldest first; a fault of broker or database delays it only;
what was published is kept seven days.  Of several relays on one database one works at a time (`store.turns`), so that
order holds and nothing is told by each of them.
Limits: where a relay died between publish and mark, the next one tells its last events again; readers know them by `id`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from gateway.errors import QueueUnavailable, StoreUnavailable
from gateway.mail.ids import new_id
from gateway.queue.broker import Broker, Event
from gateway.runtime import Clock, Stop, failpoint
from gateway.store import outbox, turns
from gateway.store.database import Database, ring_or_stop

BATCH_EVENTS = 200
POLL_SECONDS = 1.0
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0
KEEP_SECONDS = 7 * 86400.0
TIDY_SECONDS = 600.0
TURN_SECONDS = 5.0
_TURN = "events"
_AT_ONCE = datetime.min.replace(tzinfo=UTC)  # the clock is the database's, and that may be away now

OnFault = Callable[[Exception], None]


async def relay_events(
    database: Database, broker: Broker, *, stop: Stop, on_fault: OnFault, clock: Clock | None = None
) -> None:
    """Publishes the outbox until stop; faults are told to `on_fault` and waited out."""
    await _Relay(database, broker, stop, clock or database.clock).run(on_fault)


class _Relay:
    """One relay among those on its database."""

    def __init__(self, database: Database, broker: Broker, stop: Stop, clock: Clock) -> None:
        self._database = database
        self._broker = broker
        self._stop = stop
        self._clock = clock
        self._name = new_id()
        self._renew_at = self._tidy_at = _AT_ONCE

    async def run(self, on_fault: OnFault) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._stop.is_set:
            try:
                async with self._database.bell() as bell:
                    while not self._stop.is_set:
                        await self._relay_until_quiet()
                        pause_seconds = FIRST_PAUSE_SECONDS
                        await self._tidy()
                        await ring_or_stop(bell, self._stop, POLL_SECONDS)
            except (QueueUnavailable, StoreUnavailable) as fault:
                on_fault(fault)
                await self._stop.wait(pause_seconds)
                pause_seconds = min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)
        with suppress(StoreUnavailable):  # it runs out by itself
            await self._database.write(lambda connection: turns.give_back(connection, _TURN, self._name), rings=False)

    async def _relay_until_quiet(self) -> None:
        while await self._relay_batch() == BATCH_EVENTS and not self._stop.is_set:
            pass

    async def _relay_batch(self) -> int:
        waiting = await self._database.read(lambda connection: outbox.unpublished(connection, limit=BATCH_EVENTS))
        if not waiting or not await self._has_turn():
            return 0
        failpoint("events.published.before")
        await self._broker.publish_events([Event(key=item.type, id=item.event_id, body=item.body) for item in waiting])
        failpoint("events.published.before_mark")
        numbers, now = [item.number for item in waiting], self._clock()
        await self._database.write(lambda connection: outbox.mark_published(connection, numbers, at=now), rings=False)
        failpoint("events.published.after_mark")
        return len(waiting)

    async def _has_turn(self) -> bool:
        """Whether the turn is ours, asked (and renewed) when half of it has passed."""
        now = self._clock()
        if now < self._renew_at:
            return True
        took = await self._database.write(
            lambda connection: turns.take_turn(connection, _TURN, self._name, now=now, seconds=TURN_SECONDS),
            rings=False,
        )
        self._renew_at = now + timedelta(seconds=TURN_SECONDS / 2) if took else now
        return took

    async def _tidy(self) -> None:
        if self._clock() >= self._tidy_at:
            await _forget_old(self._database, before=self._clock() - timedelta(seconds=KEEP_SECONDS))
            self._tidy_at = self._clock() + timedelta(seconds=TIDY_SECONDS)


async def _forget_old(database: Database, *, before: datetime) -> None:
    while await database.write(lambda connection: outbox.forget_published(connection, before=before), rings=False):
        pass
