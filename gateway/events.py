"""The events relay: carries our outbox to the topic exchange `gateway.events`, for every app that subscribed.

Flow: a verb of the store writes the outbox row in its transaction → here: publish, confirmed, then mark.
Promises: every event committed is published at least once, oldest first; a fault of broker or database delays it only;
what was published is kept seven days.
Limits: two relays side by side may tell an event twice; readers know it by `id`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from gateway.errors import QueueUnavailable, StoreUnavailable
from gateway.queue.broker import Broker, Event
from gateway.runtime import Clock, Stop, failpoint, utc_now
from gateway.store import outbox
from gateway.store.database import Database, ring_or_stop

BATCH_EVENTS = 200
POLL_SECONDS = 1.0
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0
KEEP_SECONDS = 7 * 86400.0
TIDY_SECONDS = 600.0

OnFault = Callable[[Exception], None]


async def relay_events(
    database: Database, broker: Broker, *, stop: Stop, on_fault: OnFault, clock: Clock = utc_now
) -> None:
    """Publishes the outbox until stop; faults are told to `on_fault` and waited out."""
    pause_seconds = FIRST_PAUSE_SECONDS
    tidy_at = clock()
    while not stop.is_set:
        try:
            async with database.bell() as bell:
                while not stop.is_set:
                    await _relay_until_quiet(database, broker, stop, clock)
                    pause_seconds = FIRST_PAUSE_SECONDS
                    if clock() >= tidy_at:
                        await _forget_old(database, before=clock() - timedelta(seconds=KEEP_SECONDS))
                        tidy_at = clock() + timedelta(seconds=TIDY_SECONDS)
                    await ring_or_stop(bell, stop, POLL_SECONDS)
        except (QueueUnavailable, StoreUnavailable) as fault:
            on_fault(fault)
            await stop.wait(pause_seconds)
            pause_seconds = min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)


async def _relay_until_quiet(database: Database, broker: Broker, stop: Stop, clock: Clock) -> None:
    while await _relay_batch(database, broker, clock) == BATCH_EVENTS and not stop.is_set:
        pass


async def _relay_batch(database: Database, broker: Broker, clock: Clock) -> int:
    waiting = await database.read(lambda connection: outbox.unpublished(connection, limit=BATCH_EVENTS))
    if not waiting:
        return 0
    failpoint("events.published.before")
    await broker.publish_events([Event(key=item.type, id=item.event_id, body=item.body) for item in waiting])
    failpoint("events.published.before_mark")
    numbers = [item.number for item in waiting]
    await database.write(lambda connection: outbox.mark_published(connection, numbers, at=clock()), rings=False)
    failpoint("events.published.after_mark")
    return len(waiting)


async def _forget_old(database: Database, *, before: datetime) -> None:
    while await database.write(lambda connection: outbox.forget_published(connection, before=before), rings=False):
        pass
