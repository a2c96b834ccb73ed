"""The eyes of the alarms: asks queue, store, relays, log and disk for the facts of one look.

Every question has a time-out; one that cannot be answered is a fact itself.  The latest sight is kept for the metrics, so that
a scrape asks nobody anything.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gateway.errors import TransientFailure
from gateway.maillog import MailLog, told
from gateway.queue.broker import Depth
from gateway.store.accounting import HeldFaults
from gateway.watch.alarms.conditions import Sight
from gateway.watch.alarms.failures import FailureMeter

if TYPE_CHECKING:
    from gateway.inbound.certificate import Trouble
    from gateway.outbound.relay import RelayHealth

ASK_SECONDS = 10.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Whom to ask; what this process does not have is None."""

    depths: Callable[[], Awaitable[list[Depth]]] | None
    held: Callable[[], Awaitable[HeldFaults]] | None
    relays: Sequence[RelayHealth]
    certificate: Callable[[], Sequence[Trouble]] | None
    data_dir: Path
    min_free_bytes: int
    old_seconds: float


class Eyes:
    """Looks, and remembers what it saw last."""

    def __init__(self, log: MailLog, sources: Callable[[], Sources]) -> None:
        self.log = log
        self._sources = sources
        self._meter = FailureMeter()
        self.latest: Sight | None = None

    async def see(self, deaths: int) -> Sight:
        """The facts of this moment."""
        sources = self._sources()
        (depths, queue_fault), (held, store_fault) = await asyncio.gather(_ask(sources.depths), _ask(sources.held))
        said = self.log.dispositions
        failures = self._meter.read(time.monotonic(), failed=said["out", "failed"], relayed=said["out", "relayed"])
        self.latest = Sight(
            queue_fault=queue_fault,
            store_fault=store_fault,
            depths=depths,
            held=held,
            relays=sources.relays,
            certificate=sources.certificate() if sources.certificate else None,
            free_bytes=_free_bytes(sources.data_dir),
            min_free_bytes=sources.min_free_bytes,
            failures=failures,
            deaths=deaths,
            asks_store=sources.held is not None,
            old_seconds=sources.old_seconds,
            seen_at=time.monotonic(),
        )
        return self.latest


async def _ask(question: Callable[[], Awaitable[T]] | None) -> tuple[T | None, str | None]:
    """The answer, or why there is none."""
    if question is None:
        return None, None
    try:
        async with asyncio.timeout(ASK_SECONDS):
            return await question(), None
    except TimeoutError:
        return None, f"no answer within {ASK_SECONDS:.0f} s"
    except TransientFailure as error:
        return None, str(error)
    # Broad: whatever else it raises, it did not answer, and that is what an admin must hear.
    except Exception as error:  # noqa: BLE001
        return None, told(error)


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
