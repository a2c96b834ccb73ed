"""A hold: one recipient's claim kept alive while its attempt runs, and the journal's word before the dot.

Promise: `record_dot_sent` returns only when the ledger has it; a claim that was lost is found out there, so no dot follows.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from gateway.errors import ClaimLost, TransientFailure
from gateway.runtime import failpoint
from gateway.store.ledger import Claim, Ledger

_GIVE_BACK_SECONDS = 4


class Hold:
    """Renews a claim each third of its life until left."""

    def __init__(self, ledger: Ledger, claim: Claim, *, claim_seconds: float) -> None:
        self._ledger = ledger
        self._claim_seconds = claim_seconds
        self._dot_recorded = False
        self.claim = claim

    async def __aenter__(self) -> Hold:
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._renewing.cancel()
        # Not awaited itself: its end by our cancel must not look like the cancel of whoever leaves, nor hide that one.
        await asyncio.gather(self._renewing, return_exceptions=True)

    async def record_dot_sent(self) -> None:
        """The journal's last word before the dot; raises ClaimLost or StoreUnavailable, then no dot may follow."""
        await self._ledger.record_dot_sent(self.claim)
        self._dot_recorded = True
        failpoint("deliver.dot_recorded")

    async def give_back(self) -> None:
        """Releases the claim unless the dot may be out; what cannot be released runs out by itself."""
        if self._dot_recorded:
            return
        with suppress(ClaimLost, TransientFailure, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(_GIVE_BACK_SECONDS):
                await asyncio.shield(self._ledger.release_claim(self.claim))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._claim_seconds / 3)
            try:
                self.claim = await self._ledger.renew(self.claim, lifetime_seconds=self._claim_seconds)
            except ClaimLost:
                return  # recorded, or somebody else's now: the next verb finds out
            except TransientFailure:
                continue
