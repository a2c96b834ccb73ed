"""The service `alarms`: looks every few seconds, enters what it finds into the book, and has admins told.

Each process of the gateway runs it beside its own services, because a paused relay is known to the process that sends only.
Looking never waits for telling.  A look that took long is followed by a longer pause.
Promise: whatever fails here is logged, and the next look comes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gateway.errors import QueueUnavailable
from gateway.maillog import MailLog
from gateway.runtime import Stop, in_thread
from gateway.watch.alarms.book import Alarm, AlarmBook
from gateway.watch.alarms.conditions import Look, Sight, condition, look_at
from gateway.watch.alarms.sending import BOOK_SECONDS, Postman

LOOK_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 10.0
REST = 5  # a look may take a fifth of the time, as long as that does not keep the next one waiting for long


async def watch(
    see: Callable[[int], Awaitable[Sight]],
    book: AlarmBook,
    postman: Postman,
    *,
    stop: Stop,
    log: MailLog,
    look_seconds: float = LOOK_SECONDS,
) -> None:
    """Looks until stop; `see` gets the number of lately died processes and returns the facts."""
    telling: asyncio.Task[None] | None = None
    pause_seconds = 0.0
    has_entered = False
    while not await stop.wait(pause_seconds):
        began = time.monotonic()
        try:
            if not has_entered:
                await in_thread(book.enter, seconds=BOOK_SECONDS)
                has_entered = True
            await _look(see, book, log)
            if telling is None or telling.done():
                telling = asyncio.create_task(_tell(postman, log))
        except Exception as error:  # noqa: BLE001  # broad: an alarm nobody foresaw must not end all looking
            log.service_failed("alarms", error=error)
        pause_seconds = max(look_seconds, min(REST * (time.monotonic() - began), LONGEST_PAUSE_SECONDS))
    if telling is not None and not telling.done():
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling


async def tell_of_no_start(fault: QueueUnavailable, book: AlarmBook, postman: Postman, log: MailLog) -> None:
    """The process cannot even begin: nobody will look, so that this is said now, once however often it is tried again."""
    what = f"the gateway cannot start, nothing is taken in or sent: {fault}"
    cannot_start = condition("queue", what, "gateway doctor; then start it again", is_urgent=True)
    look = Look(conditions=(cannot_start,), judged=frozenset())
    for alarm in await in_thread(lambda: book.report(look, time.time()), seconds=BOOK_SECONDS):
        _say(alarm, log)
    await in_thread(book.leave, seconds=BOOK_SECONDS)
    await postman.round()


async def _look(see: Callable[[int], Awaitable[Sight]], book: AlarmBook, log: MailLog) -> None:
    deaths = await in_thread(lambda: book.deaths(time.time()), seconds=BOOK_SECONDS)
    look = look_at(await see(deaths))
    was_shared = book.is_shared
    for alarm in await in_thread(lambda: book.report(look, time.time()), seconds=BOOK_SECONDS):
        _say(alarm, log)
    if was_shared and not book.is_shared:
        log.service("alarms", "unwritten", next="alarms.json cannot be written: each process tells for itself")


def _say(alarm: Alarm, log: MailLog) -> None:
    if alarm.over_at is None:
        log.alarm_raised(alarm.topic, severity=alarm.severity, what=alarm.what, next_step=alarm.next_step)
    else:
        log.alarm_over(alarm.topic, what=alarm.what, seconds=round(alarm.over_at - alarm.since, 1))


async def _tell(postman: Postman, log: MailLog) -> None:
    try:
        await postman.round()
    except Exception as error:  # noqa: BLE001  # broad: it runs beside the looks, and nobody waits for it
        log.service_failed("alarms", error=error)
