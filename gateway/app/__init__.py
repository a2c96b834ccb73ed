"""The composition root: reads top to bottom, from settings to a running gateway.  The only place that knows everybody.

`start` runs the services named (none: all of them) until a signal.  `making` builds each part from the settings, `parts`
shares them, `trades` and `services` put them to work, `checks` judges what the settings table cannot.
Promise: nothing listens before the queue is open, nothing is leased before
the store is; stop closes the doors first, then stops leasing, then lets work under way finish.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack

from gateway.app.checks import check_values, refuse_to_strand
from gateway.app.making import (
    Store,
    mailboxes,
    open_authenticator,
    open_cage,
    open_queue,
    open_store,
    open_support,
    open_templates,
    open_who,
    relay_spec,
    router,
)
from gateway.app.parts import Parts
from gateway.app.services import BUILDERS
from gateway.app.trades import build_keeper, build_suspects
from gateway.errors import Problem, SettingsError
from gateway.maillog import MailLog
from gateway.runtime import Service, Stop, die_with, serve, stop_on_signals
from gateway.settings import Settings

__all__ = [
    "SERVICES",
    "Parts",
    "Store",
    "build_suspects",
    "check_values",
    "mailboxes",
    "open_authenticator",
    "open_cage",
    "open_queue",
    "open_store",
    "open_support",
    "open_templates",
    "open_who",
    "relay_spec",
    "router",
    "start",
    "work_suspects",
]

SERVICES = (*BUILDERS, "suspects")
_MAKE_SUSPECTS = {"ingest", "photos", "send", "suspects"}


def start(settings: Settings, names: Sequence[str] = (), *, extra: Service | None = None) -> int:
    """Runs the gateway; returns the exit code."""
    import uvloop

    unknown = set(names) - set(SERVICES)
    if unknown:
        raise SettingsError([Problem("run", f"no service {sorted(unknown)[0]!r}; there are {', '.join(SERVICES)}")])
    return uvloop.run(_serve(settings, tuple(names) or SERVICES, extra))


def work_suspects(parent: int, settings: bytes) -> int:
    """The process the keeper starts: works the suspects with the parent's settings, and dies with it."""
    die_with(parent)
    return start(Settings.model_validate_json(settings), ["suspects"])


async def _serve(settings: Settings, names: Sequence[str], extra: Service | None) -> int:
    log = MailLog()
    check_values(settings)
    stop = Stop()
    await refuse_to_strand(settings)
    with stop_on_signals(stop):
        async with AsyncExitStack() as stack:
            services = await _build(settings, names, log, stack)
            if extra is not None:
                services["demo"] = extra
            log.service("gateway", "serving", services=" ".join(names), pid=os.getpid())
            code = await serve(services, grace_seconds=settings.limits.grace, stop=stop)
        log.service("gateway", "stopped", code=code)
    return code


async def _build(settings: Settings, names: Sequence[str], log: MailLog, stack: AsyncExitStack) -> dict[str, Service]:
    parts = Parts(settings, log)
    services = {name: await BUILDERS[name](parts, stack) for name in names if name != "suspects"}
    if set(names) == {"suspects"}:
        services["suspects"] = await build_suspects(parts, stack)
    elif _MAKE_SUSPECTS & set(names):
        services["suspects"] = await build_keeper(parts, stack)
    return services
