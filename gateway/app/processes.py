"""`run --processes N`: N processes of the same services behind the same sockets; one process has one core.

This one opens the listening sockets, starts the others and works nothing itself.  They get the sockets as systemd would hand
them over (`inbound.activation`) and are gateways like any other.  What only one may do (sweeping, telling, asking) they settle
among themselves, as the gateways of several hosts do.
Promises: queue and store are opened, and led up to this version, before the first process starts, so that a mistake is told
once; the wish to stop reaches all of them; when one dies all end, with exit 1, so that whoever watches over us starts
anew; none outlives this one.
Limits: shares of clients (`limits.*_per_client`) and tries at logging in are counted by each process by itself.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress

from gateway.app.checks import check_values
from gateway.app.in_use import at_work
from gateway.app.making import listen_on, naming_the_key, open_queue, open_store
from gateway.app.moving import refuse_to_strand
from gateway.errors import StoreUnavailable
from gateway.inbound.activation import Activation, handing_over
from gateway.inbound.listen import UnixAddress, open_unix, parse_listen, remove_unix
from gateway.maillog import MailLog
from gateway.runtime import CLEANUP_SECONDS, Stop, stop_on_signals
from gateway.settings import Settings

Listeners = list[tuple[str, socket.socket]]
_LAST_SECONDS = 5.0


async def run_processes(settings: Settings, services: Sequence[str], count: int, command: Sequence[str]) -> int:
    """Runs `command`, a `gateway run` of these services, `count` times; returns the exit code. Raises GatewayError."""
    log, stop = MailLog(), Stop()
    check_values(settings)
    with stop_on_signals(stop):
        async with AsyncExitStack() as stack:
            stack.enter_context(at_work(settings.data_dir))
            await _prepare(settings)
            listeners = Activation().take_all() or _open_listeners(settings, services, stack)
            for _, listener in listeners:
                stack.callback(listener.close)
            log.service("gateway", "serving", processes=count, pid=os.getpid())
            processes = [await _start(command, listeners) for _ in range(count)]
            await _until_one_ends(processes, stop, log)
            for _, listener in listeners:
                listener.close()  # who connects now must not wait for a process that is leaving
            code = await _end(processes, settings.limits.grace, is_asked=stop.is_set)
        log.service("gateway", "stopped", code=code)
    return code


async def _prepare(settings: Settings) -> None:
    """Makes sure that the others find a house that is ready; a store that is away keeps nobody from starting."""
    await refuse_to_strand(settings)
    async with open_queue(settings):
        with suppress(StoreUnavailable):
            async with open_store(settings):
                pass


def _open_listeners(settings: Settings, services: Sequence[str], stack: AsyncExitStack) -> Listeners:
    wanted = [
        ("smtp", "smtp_listen", "smtp"),
        ("smtps", "smtps_listen", "smtp"),
        ("lmtp", "lmtp_listen", "lmtp"),
        ("web", "web_listen", "web"),
    ]
    listeners: Listeners = []
    for name, key, service in wanted:
        where = getattr(settings, key)
        if service in services and where:
            listeners.append((name, _open(key, where, stack)))
    return listeners


def _open(key: str, where: str, stack: AsyncExitStack) -> socket.socket:
    address = parse_listen(where)
    if not isinstance(address, UnixAddress):
        return listen_on(key, f"{address.host}:{address.port}")
    with naming_the_key(key, where):
        listener = open_unix(address)
    stack.callback(remove_unix, address.path, address.path.lstat().st_ino)
    return listener


async def _start(command: Sequence[str], listeners: Listeners) -> Process:
    numbers = tuple(listener.fileno() for _, listener in listeners)
    return await asyncio.create_subprocess_exec(*handing_over(listeners, command), pass_fds=numbers, stdin=DEVNULL)


async def _until_one_ends(processes: Sequence[Process], stop: Stop, log: MailLog) -> None:
    """Waits for the wish to stop, or until the first one ends unasked."""
    ends = {asyncio.create_task(process.wait()): process for process in processes}
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([*ends, stopping], return_when=asyncio.FIRST_COMPLETED)
    for end, process in ends.items():
        if end.done() and not stop.is_set:
            log.service("gateway", "process-died", pid=process.pid, code=end.result(), next_step="all others end, too")
    for waiting in (*ends, stopping):
        waiting.cancel()


async def _end(processes: Sequence[Process], grace_seconds: float, *, is_asked: bool) -> int:
    """Lets all come to their end, and then makes them; returns 0 when all ended well because they were asked."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.terminate()
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_seconds + CLEANUP_SECONDS + _LAST_SECONDS):
            await asyncio.gather(*(process.wait() for process in processes))
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
    codes = await asyncio.gather(*(process.wait() for process in processes))
    return 0 if is_asked and not any(codes) else 1


def command_of(options: Sequence[str], services: Sequence[str]) -> list[str]:
    """The command line of one of the processes."""
    return [sys.executable, "-m", "gateway.cli", *options, "run", *services]
