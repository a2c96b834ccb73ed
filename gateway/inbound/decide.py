"""Decide: what ingestion would make of a mail, for each recipient, and why.  Writes nothing; `explain` is this alone.

Flow: cage → parse, type the attachments, route, ask the mailbox.
Promises: a mail that cannot be parsed, or costs too much, is held for every recipient with the reason; a mailbox that raises,
whatever it raises, delays its own recipient only.  A fault of ours (no cage, no store) behind our reading or behind a
question of the context is raised, never turned into a decision about the mail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

from gateway.errors import FaultOwner, JobFailed, OverBudget, PermanentFailure, TransientFailure
from gateway.inbound import photos
from gateway.inbound.attachments import TypedAttachment, typed
from gateway.inbound.faults import fingerprint_of
from gateway.inbound.mailbox import Context, Discard, Forward, Hold, Mailbox, Outcome, Post, ReceivedMail, Refuse
from gateway.inbound.router import Router, own_address
from gateway.mail.disposition import Disposition
from gateway.mail.envelope import Envelope
from gateway.mail.parse import Cage, ParsedMail, TooComplex, parse
from gateway.mail.reply_text import strip_reply
from gateway.mail.threads import ThreadClues
from gateway.runtime import Clock

_Answer = TypeVar("_Answer")

_MAILBOX_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Postpone:
    """The mailbox raised: this recipient is tried again later. Never a mailbox's own answer."""

    reason: str
    fingerprint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One recipient's: the mailbox ('' when no route leads there), its own address, and what is to be recorded."""

    rcpt_to: str
    mailbox: str
    outcome: Outcome | Postpone
    address: str = ""

    def ruling(self) -> tuple[Disposition, str]:
        """The disposition it leads to, and its reason; a copy of an earlier mail is found out only by recording."""
        match self.outcome:
            case Post(reason=reason):
                return Disposition.DELIVERED, reason
            case Hold(reason=reason):
                return Disposition.HELD, reason
            case Forward(to=to):
                return Disposition.HELD, f"to be forwarded to {to}, which is not possible yet"
            case Refuse(reason=reason):
                return Disposition.FAILED, reason
            case Discard(reason=reason):
                return Disposition.DISCARDED, reason
            case Postpone(reason=reason):
                return Disposition.PENDING, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadMail:
    """A mail as far as it could be read; `fault` says why not, and then the rest is empty."""

    parsed: ParsedMail = field(default_factory=ParsedMail)
    attachments: tuple[TypedAttachment, ...] = ()
    fault: str = ""


class Threads(Protocol):
    """What is known of conversations; the store's mails are one."""

    async def find_thread(self, address: str, clues: ThreadClues, at: datetime) -> str: ...

    async def reply_address_of(self, message_ids: Sequence[str]) -> str: ...


class Decider:
    """Reads a mail once and decides for each recipient; without `threads` every thread is a new one."""

    def __init__(
        self,
        *,
        cage: Cage,
        router: Router,
        mailboxes: Mapping[str, Mailbox],
        clock: Clock,
        threads: Threads | None = None,
    ) -> None:
        self._threads = threads
        self._cage = cage
        self._router = router
        self._mailboxes = mailboxes
        self._clock = clock

    async def read(self, octets: bytes) -> ReadMail:
        """Parses the mail and types its attachments; what cannot be read has its `fault`."""
        try:
            parsed = await parse(octets, self._cage)
            return ReadMail(parsed=parsed, attachments=await typed(parsed.attachments, self._cage))
        except OverBudget as fault:
            return ReadMail(fault=f"parsing ended at its limit ({fault})")
        except JobFailed as fault:
            return ReadMail(fault=f"cannot be parsed: {fault.text if fault.kind == 'TooComplex' else fault}")
        except TooComplex as fault:
            return ReadMail(fault=f"cannot be parsed: {fault}")

    async def decide(self, envelope: Envelope, read: ReadMail, rcpt_to: str, *, is_released: bool = False) -> Decision:
        """Decides for one recipient; `is_released`: a person let the held mail go on."""
        try:
            route = self._router.route(rcpt_to)
        except PermanentFailure as failure:
            return Decision(rcpt_to=rcpt_to, mailbox="", outcome=Hold(reason=f"no mailbox: {failure}"))
        mailbox = self._mailboxes.get(route.kind)
        if mailbox is None:
            reason = f"no mailbox of kind {route.kind}"
            return Decision(rcpt_to=rcpt_to, mailbox=route.kind, outcome=Hold(reason=reason))
        if read.fault:
            return Decision(rcpt_to=rcpt_to, mailbox=route.kind, outcome=Hold(reason=read.fault))
        mail = ReceivedMail(envelope=envelope, rcpt_to=rcpt_to, parsed=read.parsed, attachments=read.attachments)
        witness = _Witness()
        context = self._context(witness, route.kind, own_address(route, rcpt_to), envelope.received_at, is_released)
        outcome = await _ask(mailbox, mail, context, witness)
        return Decision(rcpt_to=rcpt_to, mailbox=route.kind, outcome=outcome, address=context.address)

    def _context(self, witness: _Witness, kind: str, address: str, received_at: datetime, is_released: bool) -> Context:
        """What the mailbox may ask; a thread is looked for as of the mail's own time, so that a replay finds the same."""

        async def find_thread(clues: ThreadClues) -> str:
            return await self._threads.find_thread(address, clues, received_at) if self._threads else clues.thread_id

        async def reply_address_of(message_ids: Sequence[str]) -> str:
            return await self._threads.reply_address_of(message_ids) if self._threads else ""

        return Context(
            mailbox=kind,
            address=address,
            now=self._clock(),
            is_released=is_released,
            inspect_photo=lambda octets: witness.hear(photos.inspect(octets, self._cage)),
            strip_reply=lambda text: witness.hear(strip_reply(text, self._cage)),
            find_thread=lambda clues: witness.hear(find_thread(clues)),
            reply_address_of=lambda message_ids: witness.hear(reply_address_of(message_ids)),
        )


class _Witness:
    """Knows our own faults, behind questions of the context, from all a plug-in may raise, errors of ours included."""

    def __init__(self) -> None:
        self._fault: TransientFailure | None = None

    async def hear(self, answer: Awaitable[_Answer]) -> _Answer:
        try:
            return await answer
        except TransientFailure as fault:
            if fault.owner is FaultOwner.OURS:
                self._fault = fault
            raise

    def blames_us(self, error: BaseException) -> bool:
        return error is self._fault


async def _ask(mailbox: Mailbox, mail: ReceivedMail, context: Context, witness: _Witness) -> Outcome | Postpone:
    try:
        async with asyncio.timeout(_MAILBOX_SECONDS):
            outcome = await mailbox.receive(mail, context)
    except KeyboardInterrupt:
        raise
    # Broad: a plug-in may raise anything, sys.exit() and the end of a task of its own included; it is recorded as the
    # recipient's reason.  Only a fault of ours (the store is away) is nobody's turn on the ladder.
    except BaseException as error:
        if witness.blames_us(error) or (isinstance(error, asyncio.CancelledError) and _are_we_cancelled()):
            raise
        reason = f"mailbox {context.mailbox} failed: {type(error).__name__}: {error}"[:500]
        return Postpone(reason=reason, fingerprint=fingerprint_of(error, mailbox))
    if not isinstance(outcome, Outcome):
        reason = f"mailbox {context.mailbox} answered {type(outcome).__name__}, which is no outcome"
        return Postpone(reason=reason, fingerprint=reason)
    return outcome


def _are_we_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
