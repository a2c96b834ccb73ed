"""Deliver: the handler of `email.send` tickets, fresh ones and retries.  Record, publish, ack last.

A fresh ticket is a request: it is accepted, rendered once, and every due recipient is attempted, some at a time; one of
`email.send.serial` is accepted only, and the end of an email of a serial key starts the next (`outbound.in_order`).  A
recipient that must wait gets a ticket of its own (headers `email_id`, `recipient`, `ticket_id`) in the retry queue of its
stream.  One attempt: claim, MAIL … body, `dot_sent` recorded, dot, reply, disposition recorded; the claim is renewed all
the while.
Promises: no ledger write, no send; a crash anywhere leaves the row to this ticket or to the sweeper; only a recipient's or
a domain's fault climbs the ladder, a relay's fault gives the claim back, faults of ours are raised for the worker.  While
no attempt can be made only a row's current ticket comes again, and the row says when; a ticket that dies takes its rows
along (`dead`), and coming again it revives them.  No attempt begins that could outlast the handler's deadline.
Limits: after an unclean end between dot and record the recipient is `unknown`; the return path is the same for all.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from gateway.errors import (
    ClaimLost,
    FaultOwner,
    JobFailed,
    PermanentFailure,
    QueueUnavailable,
    StorageFault,
    StoreUnavailable,
    TransientFailure,
)
from gateway.mail.disposition import CANNOT_RENDER, Disposition
from gateway.mail.ids import new_id
from gateway.maillog import MailLog
from gateway.outbound.acceptance import AcceptanceDesk, Answer
from gateway.outbound.hold import Hold
from gateway.outbound.in_order import Publish, start_next
from gateway.outbound.relay import Deferred, OutcomeUnknown, Refused, RelayPool, RelayResult, RelayUnusable
from gateway.outbound.retry_ticket import retry_ticket, ticket_id_of
from gateway.queue.broker import Done, Later
from gateway.queue.ladder import Ladder
from gateway.queue.ticket import Ticket
from gateway.queue.worker import fault_wait_seconds
from gateway.runtime import Clock, failpoint
from gateway.store.blobs import is_lacking, octets_of
from gateway.store.ledger import EmailRecord, Ledger, RecipientRecord

if TYPE_CHECKING:
    from gateway.cage import Cage
    from gateway.outbound.templates import TemplateSet
    from gateway.store.blobs import BlobStore

T = TypeVar("T")

LOOK_AGAIN_SECONDS = 5
_WAITS_FOR_A_PERSON = (Disposition.HELD, Disposition.DEAD)
_FOLD = re.compile(r"\r?\n(?=[ \t])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How many at a time, and how long for what."""

    claim_seconds: float = 60
    recipients_at_once: int = 8
    record_seconds: float = 300
    record_again_seconds: float = 1
    handler_seconds: float = 900
    reply_seconds: float = 600
    margin_seconds: float = 60

    @property
    def begin_seconds(self) -> float:
        """How long attempts may begin: then the reply to the last dot still comes before our own deadline."""
        return max(self.handler_seconds - self.reply_seconds - self.margin_seconds, self.handler_seconds / 4)


class Deliver:
    """Turns tickets into relayed email."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        pool: RelayPool,
        cage: Cage,
        templates: TemplateSet,
        blobs: BlobStore,
        publish: Publish,
        answer: Answer,
        ladder: Ladder,
        clock: Clock,
        log: MailLog,
        mail_from: str,
        claim_seconds: float = 60,
        handler_seconds: float = 900,
        patience: Patience | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._ledger = ledger
        self._pool = pool
        self._cage = cage
        self._templates = templates
        self._blobs = blobs
        self._publish = publish
        self._ladder = ladder
        self._clock = clock
        self._log = log
        self._mail_from = mail_from
        self._jitter = jitter
        self._patience = patience or Patience(claim_seconds=claim_seconds, handler_seconds=handler_seconds)
        self._desk = AcceptanceDesk(ledger=ledger, templates=templates, answer=answer, log=log, default_from=mail_from)

    async def handle(self, ticket: Ticket) -> Done | Later:
        """Works one ticket; raises StoreUnavailable, QueueUnavailable, or PermanentFailure for a ticket of no email."""
        begin_until = asyncio.get_running_loop().time() + self._patience.begin_seconds
        if "email_id" in ticket.headers:
            errand = _Errand(
                email_id=str(ticket.headers["email_id"]),
                recipient=str(ticket.headers.get("recipient", "")),
                ticket_id=ticket_id_of(ticket),
                begin_until=begin_until,
            )
        else:
            accepted = await self._desk.accept(ticket)
            if accepted is None:
                return Done()
            if accepted.serial_key is not None:
                await start_next(self._ledger, self._publish, accepted.serial_key)
                return Done()
            # The ledger knows a request's own ticket by the request's id, whatever its publisher called it.
            errand = _Errand(email_id=accepted.id, recipient=None, ticket_id=accepted.id, begin_until=begin_until)
        try:
            return await self._run(errand)
        # Broad: whatever ends the ticket's turn, its rows must know before the worker sends it off or buries it.
        except Exception as fault:
            if await self._tell_rows(errand, ticket, fault):
                raise
            self._log.handler_failed(ticket.queue, ticket.id, error=fault, next_step="left to the row's current ticket")
            return Done()

    async def bury(self, ticket: Ticket, reason: str) -> None:
        """Records that a ticket killed its workers: an operator's turn for every recipient it would have worked."""
        email_id = str(ticket.headers.get("email_id") or ticket.id)
        await self._ledger.record_dead(email_id, reason=reason, ticket_id=ticket_id_of(ticket))

    async def _tell_rows(self, errand: _Errand, ticket: Ticket, fault: Exception) -> bool:
        """Records when the worker will bring this ticket again, or that it will not; False when it must not come."""
        longest_seconds = fault_wait_seconds(ticket, fault, self._ladder, jitter=1)
        if longest_seconds is None:
            await self._record_dead(errand, fault)
            return True
        until = self._in(longest_seconds)
        try:
            is_current = await self._ledger.postpone(
                errand.email_id, errand.recipient, ticket_id=errand.ticket_id, until=until
            )
        except TransientFailure:
            return True  # the store is away altogether: the next turn finds out
        return is_current or isinstance(fault, QueueUnavailable)

    async def _record_dead(self, errand: _Errand, fault: Exception) -> None:
        reason = f"{type(fault).__name__}: {fault}"
        if await self._ledger.record_dead(errand.email_id, reason=reason, ticket_id=errand.ticket_id):
            self._log.email_attempted(
                errand.email_id,
                recipient=errand.recipient or "",
                relay="",
                disposition="dead",
                reply="",
                reason=reason,
            )
        failpoint("deliver.dead")

    async def _run(self, errand: _Errand) -> Done | Later:
        email = await self._ledger.email(errand.email_id)
        if email is None:
            raise PermanentFailure(f"the ledger has no email {errand.email_id}")
        outcome = await self._work(errand, email)
        if email.request.serial_key is not None:
            await start_next(self._ledger, self._publish, email.request.serial_key)
        return outcome

    async def _work(self, errand: _Errand, email: EmailRecord) -> Done | Later:
        now = self._clock()
        if email.send_at is not None and email.send_at > now:
            return Done()  # waits in the ledger; the sweeper issues its ticket
        rows = await self._open_rows(errand)
        if rows and email.expires_at <= now:
            await self._ledger.sweep_expired()
            rows = await self._open_rows(errand)
            is_current = any(row.ticket_id == errand.ticket_id for row in rows)
            return self._later(LOOK_AGAIN_SECONDS) if is_current else Done()
        if not rows:
            return Done()
        octets = email.octets if email.octets is not None else await self._render(email)
        if octets is None:
            return Done()
        times = await self._attempt_all(_Round(email=email, octets=octets, errand=errand), rows)
        failpoint("deliver.acked.before")
        return Later(at=min(times), climbs=False) if times else Done()

    async def _open_rows(self, errand: _Errand) -> list[RecipientRecord]:
        """The rows this ticket may work; those that died with it live again, for somebody brought it back."""
        rows = await self._ledger.recipients(errand.email_id)
        if any(row.disposition is Disposition.DEAD and row.ticket_id == errand.ticket_id for row in rows):
            await self._ledger.revive(errand.email_id, ticket_id=errand.ticket_id)
            rows = await self._ledger.recipients(errand.email_id)
        return [row for row in rows if errand.recipient in (None, row.recipient) and _is_open(row)]

    async def _render(self, email: EmailRecord) -> bytes | None:
        """The bytes every attempt sends, stored; None when the email is held because they cannot be made."""
        from gateway.outbound.render import render

        try:
            octets = await render(
                email.request,
                message_id=email.message_id,
                date=email.accepted_at,
                default_from=self._mail_from,
                cage=self._cage,
                templates=self._templates,
                read_blob=self._read_blob,
                blob_size=self._blob_size,
            )
        except (JobFailed, PermanentFailure) as error:
            await self._hold(email, f"{CANNOT_RENDER}: {error}")
            return None
        stored = await self._ledger.record_rendered(email.id, octets, subject=_subject_of(octets))
        failpoint("deliver.rendered")
        return stored

    async def _read_blob(self, digest: str) -> bytes:
        octets = await octets_of(self._blobs, digest)
        if octets is None:
            raise PermanentFailure(f"attachment {digest} is not in the blob store")
        return octets

    async def _blob_size(self, digest: str) -> int | None:
        size = await self._blobs.size(digest)
        if size is None:
            await is_lacking(self._blobs, digest)  # raises while the store is not there
        return size

    async def _hold(self, email: EmailRecord, reason: str) -> None:
        await self._ledger.record_held(email.id, reason=reason)
        self._log.email_attempted(email.id, recipient="", relay="", disposition="held", reply="", reason=reason)

    async def _attempt_all(self, round_: _Round, rows: Sequence[RecipientRecord]) -> list[datetime]:
        """Attempts all side by side; returns when this ticket must come again. Raises the first fault, after all."""
        slots = asyncio.Semaphore(self._patience.recipients_at_once)

        async def attempt(row: RecipientRecord) -> datetime | None:
            async with slots:
                return await self._attempt(round_, row.recipient)

        results = await asyncio.gather(*map(attempt, rows), return_exceptions=True)
        times = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            if result is not None:
                times.append(result)
        return times

    async def _attempt(self, round_: _Round, recipient: str) -> datetime | None:
        """One recipient's turn; returns when this ticket must come again for it, None when it must not."""
        email, ticket_id = round_.email, round_.errand.ticket_id
        may_begin_at = self._may_begin_at(round_, recipient)
        if may_begin_at is not None:
            is_current = await self._ledger.postpone(email.id, recipient, ticket_id=ticket_id, until=may_begin_at)
            return may_begin_at if is_current else None
        claimed = await self._ledger.claim(
            email.id, recipient, ticket_id=ticket_id, lifetime_seconds=self._patience.claim_seconds
        )
        if isinstance(claimed, RecipientRecord):
            return self._comes_again(claimed, ticket_id)
        failpoint("deliver.claimed")
        async with Hold(self._ledger, claimed, claim_seconds=self._patience.claim_seconds) as hold:
            try:
                return await self._send(round_, hold)
            except ClaimLost as lost:
                self._log_attempt(email, recipient, disposition="claim-lost", reason=str(lost))
                return self._in(self._patience.claim_seconds)

    def _may_begin_at(self, round_: _Round, recipient: str) -> datetime | None:
        """When an attempt may begin that must not begin now: no relay is usable, or this ticket's time is up."""
        email = round_.email
        usable_at = self._pool.usable_at(email.stream, self._return_path(email, recipient))
        now = self._clock()  # read after the pool read it: a usable relay is usable at its own now
        if usable_at > now:
            return usable_at
        return now if asyncio.get_running_loop().time() > round_.errand.begin_until else None

    def _comes_again(self, row: RecipientRecord, ticket_id: str) -> datetime | None:
        """For a row that is not due only its current ticket goes on; any other has nothing left to do."""
        if not _is_open(row) or row.ticket_id != ticket_id:
            return None
        at = row.claim_until if row.disposition is Disposition.SENDING else row.next_attempt_at
        soon = self._in(1)
        return max(at, soon) if at else self._in(LOOK_AGAIN_SECONDS)

    async def _send(self, round_: _Round, hold: Hold) -> datetime | None:
        email, recipient = round_.email, hold.claim.recipient
        try:
            result = await self._pool.send(
                self._return_path(email, recipient),
                recipient,
                round_.octets,
                before_dot=hold.record_dot_sent,
                stream=email.stream,
            )
        except RelayUnusable:
            at = max(self._pool.usable_at(email.stream, self._return_path(email, recipient)), self._in(1))
            await self._release(hold, due_at=at)
            return at
        except Deferred as deferred:
            await self._record_deferred(email, hold, deferred)
        except Refused as refused:
            await self._record_refused(email, hold, refused)
        except OutcomeUnknown as unknown:
            return await self._record_unknown(round_, hold, unknown)
        except BaseException:
            await hold.give_back()
            raise
        else:
            await self._record_relayed(email, hold, result)
        return None

    async def _record_relayed(self, email: EmailRecord, hold: Hold, result: RelayResult) -> None:
        claim, relay, reply = hold.claim, result.relay, result.reply
        try:
            await self._firmly(lambda: self._ledger.record_relayed(hold.claim, relay=relay, reply=reply))
        except ClaimLost:
            if not await self._firmly(lambda: self._ledger.record_late_relayed(claim, relay=relay, reply=reply)):
                raise
        failpoint("deliver.recorded")
        self._log_attempt(email, claim.recipient, relay=result.relay, disposition="relayed", reply=str(result.reply))

    async def _record_deferred(self, email: EmailRecord, hold: Hold, deferred: Deferred) -> None:
        claim, reply, relay = hold.claim, deferred.reply, deferred.relay
        wait_seconds = self._ladder.delay_seconds(claim.attempt, jitter=self._jitter())
        if wait_seconds is None:
            reason = f"given up after {claim.attempt} attempts"
            await self._record_failed(email, hold, deferred, reason)
            return
        due_at = min(self._in(wait_seconds), email.expires_at)  # not later: then it expires, on time
        ticket_id = new_id()
        await self._firmly(
            lambda: self._ledger.record_delayed(
                hold.claim,
                relay=relay,
                reply=reply,
                reason=str(deferred.owner),
                next_attempt_at=due_at,
                ticket_id=ticket_id,
            )
        )
        failpoint("deliver.recorded")
        self._log_attempt(email, claim.recipient, relay=relay, disposition="delayed", reply=str(reply))
        await self._publish_retry(email, claim.recipient, ticket_id, claim.attempt, due_at)

    async def _record_refused(self, email: EmailRecord, hold: Hold, refused: Refused) -> None:
        if refused.owner is FaultOwner.OURS:
            await self._release(hold)
            await self._hold(email, f"must not be sent: {refused.reply.text}")
            return
        await self._record_failed(email, hold, refused, str(refused.owner))

    async def _release(self, hold: Hold, *, due_at: datetime | None = None) -> None:
        """Gives the claim back, firmly: after a dot the relay's no is known only here, unsaid it would be `unknown`."""
        await self._firmly(lambda: self._ledger.release_claim(hold.claim, due_at=due_at))

    async def _record_failed(self, email: EmailRecord, hold: Hold, why: Deferred | Refused, reason: str) -> None:
        await self._firmly(
            lambda: self._ledger.record_failed(hold.claim, relay=why.relay, reply=why.reply, reason=reason)
        )
        failpoint("deliver.recorded")
        self._log_attempt(
            email,
            hold.claim.recipient,
            relay=why.relay,
            disposition="failed",
            reply=str(why.reply),
            reason=reason,
        )

    async def _record_unknown(self, round_: _Round, hold: Hold, unknown: OutcomeUnknown) -> datetime | None:
        email, recipient = round_.email, hold.claim.recipient
        await self._firmly(lambda: self._ledger.record_unknown(hold.claim, relay=unknown.relay, reason=str(unknown)))
        failpoint("deliver.recorded")
        self._log_attempt(email, recipient, relay=unknown.relay, disposition="unknown", reason=str(unknown))
        [row] = [row for row in await self._ledger.recipients(email.id) if row.recipient == recipient]
        return self._comes_again(row, round_.errand.ticket_id)

    async def _publish_retry(
        self, email: EmailRecord, recipient: str, ticket_id: str, attempt: int, due_at: datetime
    ) -> None:
        ticket = retry_ticket(
            email_id=email.id,
            recipient=recipient,
            ticket_id=ticket_id,
            stream=email.stream,
            attempt=attempt,
            due_at=due_at,
        )
        await self._publish([ticket])
        failpoint("deliver.published")

    async def _firmly(self, record: Callable[[], Awaitable[T]]) -> T:
        """Records what a relay said, again and again while the store is away: the word cannot be asked for twice."""
        deadline = asyncio.get_running_loop().time() + self._patience.record_seconds
        while True:
            try:
                return await record()
            except (StoreUnavailable, StorageFault):
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(self._patience.record_again_seconds)

    def _return_path(self, email: EmailRecord, recipient: str) -> str:
        """Where bounces of this recipient go; one address for all until bounces have a mailbox."""
        return email.return_path

    def _log_attempt(
        self,
        email: EmailRecord,
        recipient: str,
        *,
        disposition: str,
        relay: str = "",
        reply: str = "",
        reason: str = "",
    ) -> None:
        self._log.email_attempted(
            email.id, recipient=recipient, relay=relay, disposition=disposition, reply=reply, reason=reason
        )

    def _in(self, seconds: float) -> datetime:
        return self._clock() + timedelta(seconds=seconds)

    def _later(self, seconds: float) -> Later:
        return Later(at=self._in(seconds), climbs=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Errand:
    """What a ticket asks: which email, which recipient (None: all), under which name, and until when attempts may begin."""

    email_id: str
    recipient: str | None
    ticket_id: str
    begin_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """One email under one ticket."""

    email: EmailRecord
    octets: bytes
    errand: _Errand


def _subject_of(octets: bytes) -> str:
    """The subject as people read it, for the lists."""
    from email.header import decode_header, make_header
    from email.parser import BytesHeaderParser

    head = octets.partition(b"\r\n\r\n")[0]
    folded = BytesHeaderParser().parsebytes(head)["Subject"] or ""
    return str(make_header(decode_header(_FOLD.sub("", folded))))


def _is_open(row: RecipientRecord) -> bool:
    if row.disposition is Disposition.UNKNOWN and row.next_attempt_at is None:
        return False  # on_unknown = hold: a person's turn
    return not row.disposition.is_final and row.disposition not in _WAITS_FOR_A_PERSON
