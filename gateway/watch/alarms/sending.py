"""The way to admins: a message through any service apprise knows (SMS, mail, chat).  Home of apprise.

The one exit of the building beside the relays.  `Postman.round` takes what is due from the book and tells every admin side
by side, each in a thread of its own with a time-out, so that one who cannot be reached keeps nobody waiting; he is logged
and tried again.  While one process of the host tells, the others do not (`flock(alarms.sending)`, free when it dies).
Promises: at least once; all news for one admin in one message.  Limits: what a service says of a failure is cut and cleaned
of every piece of the URL, since those are passwords and tokens; an unfinished thread may still deliver after its time-out.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.maillog import MailLog, told
from gateway.runtime import in_thread
from gateway.watch.alarms.book import Admin, Alarm, AlarmBook, utc_text
from gateway.watch.alarms.conditions import SEVERITIES, Severity

SEND_SECONDS = 20.0
BOOK_SECONDS = 10.0
MAX_REASON_CHARACTERS = 200
_PIECES = re.compile(r"[^\w.+-]+")
_SECRET_CHARACTERS = 4
_TYPES = {"info": "info", "warning": "warning", "critical": "failure"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What one admin is told."""

    title: str
    body: str
    kind: str


def check_url(url: str) -> None:
    """Raises ValueError, which does not repeat the URL, for one that apprise cannot use."""
    import apprise

    if apprise.Apprise.instantiate(url) is None:
        raise ValueError("is not a URL apprise can use: its scheme, or what belongs behind it")


def message_of(alarms: Sequence[Alarm], key: str, *, hostname: str) -> Message:
    """All that one admin (his `key`) does not know yet."""
    active = [alarm for alarm in alarms if alarm.is_active]
    worst: Severity = max((alarm.severity for alarm in alarms), key=SEVERITIES.index)
    if not active:
        title = f"over again: {alarms[0].title}" if len(alarms) == 1 else f"{len(alarms)} alarms are over again"
    else:
        rest = f", and {len(alarms) - 1} more" if len(alarms) > 1 else ""
        title = f"{worst}: {max(active, key=lambda item: SEVERITIES.index(item.severity)).title}{rest}"
    body = "\n\n".join(_told_of(alarm, key) for alarm in alarms)
    return Message(title=f"[{hostname}] {title}", body=body, kind=_TYPES[worst] if active else "success")


def _told_of(alarm: Alarm, key: str) -> str:
    since = utc_text(alarm.since)
    if alarm.over_at is not None:
        lasted = _duration(alarm.over_at - alarm.since)
        return f"Over again: {alarm.title}. It began {since} and lasted {lasted}. Last seen: {alarm.what}"
    still = "Still: " if alarm.told.get(key) else ""
    return f"{still}{alarm.what}. Since {since}. Next: {alarm.next_step}"


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"


def send(admin: Admin, message: Message) -> str:
    """Sends and waits; returns '' or why it failed."""
    import apprise

    service = apprise.Apprise()
    service.add(admin.url)
    result = service.notify(
        title=message.title,
        body=message.body,
        notify_type=message.kind,
        body_format="text",
        timeout=SEND_SECONDS - 2,
    )
    if result:
        return ""
    said = [entry.message for entry in result.logs()]
    return _cleaned(said[-1] if said else "the service did not take it", admin.url)


def _cleaned(text: str, url: str) -> str:
    """The text without any piece of the URL that could be secret, in one line."""
    for piece in _PIECES.split(url.partition("://")[2]):
        if len(piece) >= _SECRET_CHARACTERS:
            text = text.replace(piece, "***")
    return " ".join(text.split())[:MAX_REASON_CHARACTERS]


async def deliver(admin: Admin, message: Message) -> str:
    """`send` in a thread; whatever goes wrong is the reason it returns."""
    try:
        return await in_thread(lambda: send(admin, message), seconds=SEND_SECONDS)
    except TimeoutError:
        return f"no answer within {SEND_SECONDS:.0f} s"
    # Broad: a service's plug-in may raise anything; the other admins must still hear.
    except Exception as error:  # noqa: BLE001
        return _cleaned(told(error), admin.url)


def trial(hostname: str) -> Message:
    """What `gateway alarm test` sends."""
    body = "A test by `gateway alarm test`: alarms of the gateway reach you here. Nothing is wrong. Next: nothing."
    return Message(title=f"[{hostname}] test", body=body, kind="info")


class Postman:
    """Tells admins what the book has for them."""

    def __init__(self, book: AlarmBook, folder: Path, *, hostname: str, log: MailLog) -> None:
        self._book = book
        self._folder = folder
        self._hostname = hostname
        self._log = log

    async def round(self) -> None:
        """Tells everybody what is due, unless another process of this host is at it."""
        lock = self._take_lock()
        if lock is None:
            return
        try:
            due = await in_thread(lambda: self._book.due(time.time()), seconds=BOOK_SECONDS)
            await asyncio.gather(*(self._tell(admin, alarms) for admin, alarms in due))
        finally:
            os.close(lock)

    async def _tell(self, admin: Admin, alarms: Sequence[Alarm]) -> None:
        failure = await deliver(admin, message_of(alarms, admin.key, hostname=self._hostname))
        if failure:
            self._log.admin_not_told(admin.place, service=admin.service, why=failure)
            await in_thread(lambda: self._book.note_failed(admin, time.time()), seconds=BOOK_SECONDS)
            return
        try:
            await in_thread(lambda: self._book.note_told(admin, alarms), seconds=BOOK_SECONDS)
        finally:  # after the book: who reads this line knows that no process tells it again
            self._log.admin_told(admin.place, service=admin.service, alarms=len(alarms))

    def _take_lock(self) -> int | None:
        """The right to tell; None while another has it. Where no lock can be made, telling twice beats not telling."""
        try:
            lock = os.open(self._folder / "alarms.sending", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        except OSError:
            return os.open(os.devnull, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock
