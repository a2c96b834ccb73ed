"""The keeper of the suspects: runs a process of their own while there are any, and another when that one dies.

A suspect is a ticket that workers died with (`queue.worker`); whoever works it may die again, so it is worked where nobody
else is.  The process is started when the first suspect is there, ended when none has been for `idle_seconds`, and dies
with its keeper (PR_SET_PDEATHSIG).  It is `gateway run suspects` with the keeper's settings, handed over its stdin.
Limits: a process that cannot even start is tried again every `pause_seconds`, doubling to half a minute.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

from gateway.errors import QueueUnavailable
from gateway.maillog import MailLog
from gateway.queue.ticket import SUSPECT
from gateway.runtime import CLEANUP_SECONDS, Stop

LOOK_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_NEVER = datetime.max.replace(tzinfo=UTC)


class Queue(Protocol):
    """What the keeper asks of the broker."""

    async def has_consumed_past(self, queue: str, published_at: datetime) -> bool: ...


async def keep(
    command: Sequence[str],
    settings: bytes,
    broker: Queue,
    *,
    stop: Stop,
    log: MailLog,
    grace_seconds: float,
    idle_seconds: float = 30.0,
    look_seconds: float = LOOK_SECONDS,
) -> None:
    """Looks for suspects until stop; `command` is started with this process's id appended and `settings` on its stdin."""
    pause_seconds = look_seconds
    while not await stop.wait(pause_seconds):
        if not await _are_there(broker):
            pause_seconds = look_seconds
            continue
        child = await _start(command, settings)
        log.service("suspects", "started", pid=child.pid)
        code = await _accompany(child, broker, stop, idle_seconds=idle_seconds, look_seconds=look_seconds)
        if code is None:
            await _end(child, grace_seconds)
            log.service("suspects", "ended", pid=child.pid)
            continue
        log.service("suspects", "died", pid=child.pid, code=code)
        # Killed by a suspect is what it is for; an exit of its own means it cannot work.
        pause_seconds = look_seconds if code < 0 else min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)


async def _are_there(broker: Queue) -> bool:
    """Whether a suspect is ready or in work; a queue that cannot be asked counts as none."""
    try:
        return not await broker.has_consumed_past(SUSPECT, _NEVER)
    except QueueUnavailable:
        return False


async def _start(command: Sequence[str], settings: bytes) -> Process:
    # Plug-ins are found where we found them, also when we were started by a script that changed the path.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = await asyncio.create_subprocess_exec(*command, str(os.getpid()), stdin=PIPE, env=environment)
    assert child.stdin is not None
    with suppress(ConnectionError):  # it died at once: its exit code says so
        child.stdin.write(settings)
        await child.stdin.drain()
    child.stdin.close()
    return child


async def _accompany(
    child: Process, broker: Queue, stop: Stop, *, idle_seconds: float, look_seconds: float
) -> int | None:
    """Waits until the child dies (its exit code), or is of no more use (None)."""
    idle_looks = 0
    while not stop.is_set and idle_looks * look_seconds < idle_seconds:
        with suppress(TimeoutError):
            async with asyncio.timeout(look_seconds):
                return await child.wait()
        idle_looks = 0 if await _are_there(broker) else idle_looks + 1
    return None


async def _end(child: Process, grace_seconds: float) -> None:
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds + CLEANUP_SECONDS):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()
