"""The notice service: tells what is due, by the ledger while the store is there, by the outage ledger while it is away.

With the store: take over what the outage ledger did → choose what is due → write it → the email and the fact that it is
told, one transaction → have its ticket issued (`deliver` sends it).  Without: claim a waiting note → make sure the store is
still away → write → relay, journaled in `outage.db`.
Promises: told once, whatever dies in between; several processes may run it side by side; one notice that cannot be written
keeps no other from being told; nothing but delays is told without the store.
Limit: between two hosts that both sit out an outage the same mail's ticket may be noted on each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

from gateway.errors import ClaimLost, GatewayError, PermanentFailure, StoreUnavailable, TransientFailure
from gateway.mail.disposition import Disposition
from gateway.maillog import MailLog, told
from gateway.notices.writer import NoticeWriter
from gateway.reply import Reply
from gateway.runtime import Clock, Stop, failpoint
from gateway.store.database import Database, ring_or_stop
from gateway.store.notices import Notice, Notices
from gateway.store.outage import Errand, OutageLedger

POLL_SECONDS = 5.0
PROBE_SECONDS = 1.0
QUIET_SECONDS = 0.2  # between two looks: under load every commit rings
REWRITE_SECONDS = 600.0
RESEND_SECONDS = 60.0
_DAY = timedelta(days=1)
_LONGEST_COMMIT = timedelta(seconds=30)

Issue = Callable[[str], Awaitable[None]]
"""(email id) → its tickets are named in the ledger and published."""


class Handed(Protocol):
    """A relay took the notice."""

    @property
    def relay(self) -> str: ...

    @property
    def reply(self) -> Reply: ...


class Relay(Protocol):
    """What is needed of the relays while the store is away."""

    async def send(
        self,
        mail_from: str,
        recipient: str,
        octets: bytes,
        *,
        before_dot: Callable[[], Awaitable[None]],
        stream: str,
    ) -> Handed: ...


class Teller:
    """Tells people; one for each process."""

    def __init__(
        self,
        *,
        database: Database,
        notices: Notices,
        outage: OutageLedger,
        writer: NoticeWriter,
        relay: Relay,
        issue: Issue,
        log: MailLog,
        clock: Clock,
    ) -> None:
        self._database = database
        self._notices = notices
        self._outage = outage
        self._writer = writer
        self._relay = relay
        self._issue = issue
        self._log = log
        self._clock = clock
        self._mirrored_to: datetime | None = None
        self._is_away = False

    async def run(self, stop: Stop) -> None:
        """Tells until stop; faults are told to the log and waited out."""
        while not stop.is_set:
            try:
                await self._tell_or_sit_out(stop)
            # Broad: what nobody foresaw in one look must not end all telling.
            except Exception as error:  # noqa: BLE001
                self._log.service_failed("notices", error=error)
                await stop.wait(POLL_SECONDS)

    async def _tell_or_sit_out(self, stop: Stop) -> None:
        """With the store there until it goes away, then a look without it."""
        try:
            async with self._database.bell() as bell:
                while not stop.is_set:
                    await self.tell_due()
                    await stop.wait(QUIET_SECONDS)
                    await ring_or_stop(bell, stop, await self._wait_seconds())
        except StoreUnavailable as fault:
            await self._sit_out(fault)
            await stop.wait(PROBE_SECONDS)

    async def tell_due(self) -> None:
        """One look with the store there; raises StoreUnavailable."""
        await self._take_over()
        while await self._notices.note_told():
            pass
        due = await self._notices.due()
        # Side by side, so that they share a commit: after a great failure there are thousands for one digest.
        fates = await asyncio.gather(*(self._choose(notice) for notice in due))
        failpoint("notices.chosen")
        for chosen in filter(None, fates):
            if not await self._outage.is_busy(chosen.id):
                await self._tell(chosen)
        await self._mirror()

    async def _take_over(self) -> None:
        if await self._outage.is_idle():
            self._note_back()
            return
        await self._notices.prove_writable()  # raises while the store is away: then nothing here is over
        for done in await self._outage.done():
            await self._notices.record_elsewhere(done)
            failpoint("notices.merged")
            await self._outage.record_merged([done.notice.id])
        await self._outage.store_is_back()
        self._note_back()

    async def _choose(self, notice: Notice) -> Notice | None:
        try:
            return await self._notices.choose(notice.id)
        # Broad: what it tells of may be gone or damaged; the others are told.
        except Exception as error:  # noqa: BLE001
            await self._put_off(notice, error)
            return None

    async def _tell(self, notice: Notice) -> None:
        try:
            written = await self._writer.write(notice, await self._notices.header_source(notice))
        # Broad: a template may break in any way, the mail's octets may be lost; the notice waits, the others are told.
        except Exception as error:  # noqa: BLE001
            await self._put_off(notice, error)
            return
        failpoint("notices.written")
        if await self._notices.record_told(notice, written):
            failpoint("notices.told")
            self._log.notice_sent(notice.id, of=notice.subject, to=notice.addressee, stage=notice.stage)
            await self._issue(written.request.id)
            failpoint("notices.issued")

    async def _put_off(self, notice: Notice, error: Exception) -> None:
        """It cannot be told now and comes again, unless the store is to blame: then StoreUnavailable is raised."""
        await self._notices.prove_writable()
        self._log.notice_failed(notice.id, of=notice.subject, to=notice.addressee, error=error)
        await self._notices.postpone(notice, seconds=REWRITE_SECONDS)

    async def _mirror(self) -> None:
        """Lets the outage ledger know who has heard what since the last time.

        What another process decided before that may have been committed after it: a moment is looked at twice.
        """
        now = self._clock()
        since = self._mirrored_to - _LONGEST_COMMIT if self._mirrored_to else now - _DAY
        await self._outage.remember(await self._notices.told_since(since))
        self._mirrored_to = now

    async def _wait_seconds(self) -> float:
        next_due = await self._notices.next_due_at()
        if next_due is None:
            return POLL_SECONDS
        return min(POLL_SECONDS, max(0.0, (next_due - self._clock()).total_seconds()))

    # The store is away.

    async def _sit_out(self, fault: StoreUnavailable) -> None:
        if not self._is_away:
            self._is_away = True
            self._log.service("notices", "store-away", error=told(fault))
        for errand in await self._outage.claim_due():
            failpoint("outage.claimed")
            try:
                await self._tell_without_store(errand)
            # Broad: as in _tell; what is left of this errand is its claim, which runs out.
            except Exception as error:  # noqa: BLE001
                self._log.service_failed("notices", error=error)

    async def _tell_without_store(self, errand: Errand) -> None:
        if await self._store_answers():
            await self._outage.give_back(errand, seconds=0)
            return
        try:
            written = errand.written or await self._writer.write(errand.notice, errand.header)
        # Broad: as in _tell.
        except Exception as error:  # noqa: BLE001
            self._log.notice_failed(errand.notice.id, of=errand.notice.subject, to=errand.notice.addressee, error=error)
            await self._outage.give_back(errand, seconds=REWRITE_SECONDS)
            return
        if errand.written is None:
            await self._outage.record_written(errand, written)
        await self._send(errand, written.octets)

    async def _send(self, errand: Errand, octets: bytes) -> None:
        before_dot = partial(self._outage.record_dot_sent, errand)
        addressee = errand.notice.addressee
        try:
            handed = await self._relay.send("", addressee, octets, before_dot=before_dot, stream="normal")
        except TransientFailure as later:
            self._log.service("notices", "delayed", to=addressee, error=told(later))
            await self._outage.give_back(errand, seconds=RESEND_SECONDS)
        except PermanentFailure as never:
            await self._outage.record_done(errand, Disposition.FAILED, relay="", reply=str(never.reply))
        except ClaimLost:
            raise
        except GatewayError as unknown:  # the dot went out and no word came back
            await self._outage.record_done(errand, Disposition.UNKNOWN, relay="", reply=str(unknown))
        else:
            await self._outage.record_done(errand, Disposition.RELAYED, relay=handed.relay, reply=str(handed.reply))
            self._log.notice_sent(errand.notice.id, of=errand.notice.subject, to=addressee, stage=errand.notice.stage)

    async def _store_answers(self) -> bool:
        try:
            await self._notices.prove_writable()
        except StoreUnavailable:
            return False
        return True

    def _note_back(self) -> None:
        if self._is_away:
            self._is_away = False
            self._log.service("notices", "store-back")
