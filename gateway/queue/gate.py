"""A gate before a worker: shut while what all its handlers stand on is away, so that tickets stay ready in their queue.

Flow: a handler meets the fault and shuts it → the worker leases no more → `ask` is tried, at once and then every
`probe_seconds`, until it answers → leasing goes on.  A fault that `ask` knows nothing of (a single blob) keeps nobody.
Limit: each process finds out by tickets of its own; those it has in hand go their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.errors import TransientFailure
from gateway.queue.broker import Done, Later
from gateway.queue.ticket import Ticket

PROBE_SECONDS = 5.0


class FaultGate:
    """Open until a handler raises `fault`; `ask` raises it for as long as that lasts."""

    def __init__(
        self,
        fault: type[TransientFailure],
        ask: Callable[[], Awaitable[object]],
        *,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        self._fault = fault
        self._ask = ask
        self._probe_seconds = probe_seconds
        self._is_shut = False
        self._ask_at = 0.0

    def minded(
        self, handler: Callable[[Ticket], Awaitable[Done | Later]]
    ) -> Callable[[Ticket], Awaitable[Done | Later]]:
        """The same handler; its fault shuts the gate."""

        async def handle(ticket: Ticket) -> Done | Later:
            try:
                return await handler(ticket)
            except self._fault:
                self._is_shut = True
                raise

        return handle

    async def wait_open(self) -> None:
        """Returns when there is any use in leasing."""
        loop = asyncio.get_running_loop()
        while self._is_shut:
            await asyncio.sleep(max(0.0, self._ask_at - loop.time()))
            self._is_shut = await self._is_away()
            self._ask_at = loop.time() + self._probe_seconds if self._is_shut else 0.0

    async def _is_away(self) -> bool:
        try:
            await self._ask()
        except self._fault:
            return True
        # Broad: whatever else it says, it answers; what is wrong with it the handlers will meet.
        except Exception:  # noqa: BLE001
            return False
        return False
