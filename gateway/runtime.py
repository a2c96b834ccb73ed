"""The life of a process: start in order, stop in order, and named places to die at in tests.

`serve()` runs services side by side until the first signal (`stop_on_signals`); then each gets `grace_seconds` to finish and
`CLEANUP_SECONDS` more to put things in order.  A second signal kills at once, unless it comes within a second of the first:
make and supervisors signal the group and the process, so that one wish is heard twice.  A service that ends or raises by
itself stops the process with exit 1: a half-alive gateway lies.

`failpoint(name)` is a no-op unless the environment variable GATEWAY_FAILPOINT names it (`name` kills with SIGKILL at the
first pass, `name:N` at the N-th, `name:raise` raises OSError each time).  Only tests arm it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TypeVar

Clock = Callable[[], datetime]
Service = Callable[["Stop"], Awaitable[None]]
T = TypeVar("T")
LARGE_BYTES = 64 * 1024
CLEANUP_SECONDS = 5.0
OPEN_FILES = 65_536
SAME_SIGNAL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def utc_now() -> datetime:
    return datetime.now(UTC)


async def aside(size: int, work: Callable[[], T]) -> T:
    """Does the work at once, or in a thread when `size` bytes of input would keep everybody else waiting."""
    return work() if size <= LARGE_BYTES else await asyncio.to_thread(work)


async def in_thread(work: Callable[[], T], *, seconds: float) -> T:
    """Does blocking work in a thread no exit waits for; TimeoutError when it takes longer, and nobody hears its result."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        # Broad: whatever the work raises belongs to the caller, not to this thread.
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="blocking work", daemon=True).start()
    async with asyncio.timeout(seconds):
        return await future


class Stop:
    """The wish to stop, awaited by every loop beside its own work."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits for the wish to stop, at most so long; True when it came."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout_seconds)
        return self._event.is_set()


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """SIGINT and SIGTERM set `stop`; the second one ends the process at once."""
    loop = asyncio.get_running_loop()
    signals = _Signals(stop)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.hear)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def serve(
    services: dict[str, Service], *, grace_seconds: float, stop: Stop, cleanup_seconds: float = CLEANUP_SECONDS
) -> int:
    """Runs every service until the wish to stop or a death; returns the exit code (0 asked to stop, 1 a service died).

    `grace_seconds` is what a service gives its own work; it is cancelled `cleanup_seconds` later.
    """
    tasks = {asyncio.create_task(_run(service, stop), name=name): name for name, service in services.items()}
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        asked = stop.is_set
        stop.set()
        _, late = await asyncio.wait(tasks, timeout=grace_seconds + cleanup_seconds)
        for task in late:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        stopping.cancel()
    failed = False
    for name, result in zip(tasks.values(), results, strict=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            failed = True
            print(f"gateway: service {name} died: {type(result).__name__}: {result}", file=sys.stderr)  # noqa: T201
        elif not asked and result is None:
            failed = True
    return 1 if failed else 0


async def _run(service: Service, stop: Stop) -> None:
    await service(stop)


class _Signals:
    """Tells a second wish to stop from the first one heard twice."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._first_at = float("-inf")

    def hear(self) -> None:
        now = time.monotonic()
        if not self._stop.is_set:
            self._first_at = now
            self._stop.set()
        elif now - self._first_at >= SAME_SIGNAL_SECONDS:
            os._exit(1)


def allow_open_files() -> int:
    """Lets this process have as many open files as it may, and returns how many: a shell gives 1,024 to begin with.

    The doors by themselves have places for more, and a process that can open no file keeps no mail.
    """
    now, most = (
        OPEN_FILES if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    wanted = min(most, OPEN_FILES)
    if now >= wanted:
        return now
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return wanted


def die_with(parent: int) -> None:
    """Ties this process to the life of the one that started it: killed when that dies, however it dies.

    It follows the thread that forked, not the whole parent.
    """
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)


class _Failpoints:
    """Reads the arming once; counts passes."""

    def __init__(self, armed: str) -> None:
        self._name, _, how = armed.partition(":")
        self._raises = how == "raise"
        self._left = int(how) if how.isdigit() else 1

    def hit(self, name: str) -> None:
        if name != self._name:
            return
        if self._raises:
            raise OSError(f"failpoint {name}")
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


_failpoints = _Failpoints(os.environ["GATEWAY_FAILPOINT"]) if os.environ.get("GATEWAY_FAILPOINT") else None


def failpoint(name: str) -> None:
    """A place where a test may kill this process."""
    if _failpoints is not None:
        _failpoints.hit(name)
