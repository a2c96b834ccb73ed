"""The composition root: reads top to bottom, from settings to a running gateway.  The only place that knows everybody.

`start` runs the services named (none: all of them) until a signal.  `making` builds each part from the settings, `parts`
shares them, `trades` and `services` put them to work, `checks` judges what the settings table cannot.
Promise: nothing listens before the queue is open; a store that is away keeps nothing from starting, the doors answer 250
meanwhile; stop closes the doors first, then stops leasing, then lets work under way finish.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from gateway.app.checks import check_values, database_file
from gateway.app.in_use import at_work
from gateway.app.making import (
    Store,
    admins,
    alarm_book,
    blob_mark,
    is_loopback,
    ledger_mark,
    mailboxes,
    open_authenticator,
    open_cage,
    open_queue,
    open_store,
    open_support,
    open_templates,
    open_tokens,
    open_who,
    operator,
    receipted,
    relay_spec,
    router,
    say_goodbye,
    tls_pair,
)
from gateway.app.moving import Move, refuse_to_strand, stranded, what_is_left, what_moves
from gateway.app.parts import Parts
from gateway.app.services import BUILDERS
from gateway.app.trades import build_keeper, build_suspects
from gateway.errors import Problem, QueueUnavailable, SettingsError
from gateway.maillog import MailLog
from gateway.runtime import Service, Stop, allow_open_files, die_with, serve, stop_on_signals
from gateway.settings import Settings

__all__ = [
    "SERVICES",
    "Move",
    "Parts",
    "Store",
    "admins",
    "blob_mark",
    "build_suspects",
    "check_values",
    "database_file",
    "is_loopback",
    "ledger_mark",
    "mailboxes",
    "open_authenticator",
    "open_cage",
    "open_queue",
    "open_store",
    "open_support",
    "open_templates",
    "open_tokens",
    "open_who",
    "operator",
    "receipted",
    "relay_spec",
    "router",
    "start",
    "start_many",
    "stranded",
    "tls_pair",
    "what_is_left",
    "what_moves",
    "work_suspects",
]

SERVICES = (*BUILDERS, "suspects")
_BESIDE = {"alarms", "suspects"}  # what every process does beside its services, and what it may need
_MAKE_SUSPECTS = {"ingest", "photos", "send", "suspects"}


def start(settings: Settings, names: Sequence[str] = (), *, extra: Service | None = None) -> int:
    """Runs the gateway; returns the exit code."""
    import uvloop

    allow_open_files()
    return uvloop.run(_serve(settings, _known(names), extra))


def start_many(settings: Settings, names: Sequence[str], count: int, *, options: Sequence[str]) -> int:
    """Runs the gateway in `count` processes, each started with these options of the command; returns the exit code."""
    from gateway.app.processes import command_of, run_processes

    services, command = _known(names), command_of(options, names)

    async def run() -> int:
        async with _telling_of_no_start(settings, MailLog()):
            return await run_processes(settings, services, count, command)

    return asyncio.run(run())


def _known(names: Sequence[str]) -> tuple[str, ...]:
    unknown = set(names) - set(SERVICES)
    if unknown:
        raise SettingsError([Problem("run", f"no service {sorted(unknown)[0]!r}; there are {', '.join(SERVICES)}")])
    return tuple(names) or SERVICES


def work_suspects(parent: int, settings: bytes) -> int:
    """The process the keeper starts: works the suspects with the parent's settings, and dies with it."""
    die_with(parent)
    return start(Settings.model_validate_json(settings), ["suspects"])


async def _serve(settings: Settings, names: Sequence[str], extra: Service | None) -> int:
    log = MailLog()
    check_values(settings)
    stop = Stop()
    with stop_on_signals(stop):
        async with AsyncExitStack() as stack:
            stack.enter_context(at_work(settings.data_dir))
            services = await _build_or_tell(settings, names, log, stack)
            if extra is not None:
                services["demo"] = extra
            _settle_in()
            log.service("gateway", "serving", services=" ".join(names), pid=os.getpid())
            code = await serve(services, grace_seconds=settings.limits.grace, stop=stop)
            if code == 0:
                await say_goodbye(settings)
        log.service("gateway", "stopped", code=code)
    return code


def _settle_in() -> None:
    """Takes what was made so far, and stays, out of the garbage collector's rounds: each kept every client waiting for 50 ms."""
    gc.collect()
    gc.freeze()


async def _build_or_tell(
    settings: Settings, names: Sequence[str], log: MailLog, stack: AsyncExitStack
) -> dict[str, Service]:
    async with _telling_of_no_start(settings, log):
        await refuse_to_strand(settings)
        return await _build(settings, names, log, stack)


@asynccontextmanager
async def _telling_of_no_start(settings: Settings, log: MailLog) -> AsyncIterator[None]:
    """That the queue is away is told to the admins before the process ends."""
    from gateway.watch.alarms.watch import tell_of_no_start

    try:
        yield
    except QueueUnavailable as fault:
        with suppress(OSError, TimeoutError):  # a disk that cannot even take the book: the fault itself says so
            await tell_of_no_start(fault, *alarm_book(settings, log), log)
        raise


async def _build(settings: Settings, names: Sequence[str], log: MailLog, stack: AsyncExitStack) -> dict[str, Service]:
    parts = Parts(settings, log)
    wanted = [name for name in names if name not in _BESIDE]
    services = {name: await BUILDERS[name](parts, stack) for name in wanted}
    if set(names) == {"suspects"}:
        services["suspects"] = await build_suspects(parts, stack)
    elif _MAKE_SUSPECTS & set(names):
        services["suspects"] = await build_keeper(parts, stack)
    if set(names) != {"suspects"}:  # whose dying is what it is for
        services["alarms"] = await BUILDERS["alarms"](parts, stack)
    return services
