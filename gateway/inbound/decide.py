"""Decide: what ingestion would make of a mail, for each recipient, and why.  Writes nothing; `explain` is this alone.

Flow: cage → parse, type the attachments, judge the sender, route, see who may write, ask the mailbox.
Promises: a mail that cannot be parsed, or costs too much, is held for every recipient with the reason; a mailbox that raises,
whatever it raises, delays its own recipient only.  A fault of ours (no cage, no store) behind our reading or behind a
question of the context is raised, never turned into a decision about the mail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol, TypeVar

from gateway.errors import FaultOwner, JobFailed, OverBudget, PermanentFailure, TransientFailure
from gateway.inbound import photos
from gateway.inbound.attachments import TypedAttachment, typed
from gateway.inbound.authenticate import NOT_JUDGED, Authentication, Result
from gateway.inbound.faults import fingerprint_of
from gateway.inbound.loops import loop_in, marks_of
from gateway.inbound.mailbox import Context, Discard, Forward, Hold, Mailbox, Outcome, Post, ReceivedMail, Refuse
from gateway.inbound.router import MailboxRoute, Router, own_address
from gateway.inbound.who import WhoMayWrite
from gateway.mail.disposition import Disposition
from gateway.mail.envelope import Envelope
from gateway.mail.parse import Cage, ParsedMail, TooComplex, parse
from gateway.mail.reply_text import strip_reply
from gateway.mail.threads import ThreadClues
from gateway.runtime import Clock

_Answer = TypeVar("_Answer")

_MAILBOX_SECONDS = 60.0
_DNS_ATTEMPTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Postpone:
    """The mailbox raised, or DNS does not answer: this recipient is tried again later. Never a mailbox's own answer.

    `at_most`: after so many attempts the mail is held, where that is sooner than the ladder's end.
    """

    reason: str
    fingerprint: str = ""
    at_most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The mail answers a request of ours to confirm held mails, in these words. Never a mailbox's own answer."""

    confirmation_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One recipient's: the mailbox ('' when no route leads there), its own address, and what is to be recorded.

    `person_id`: the registered person whom a held mail claims to be from, and who is to be asked.
    """

    rcpt_to: str
    mailbox: str
    outcome: Outcome | Postpone | Answer
    address: str = ""
    person_id: str = ""

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
            case Answer():
                return Disposition.DISCARDED, "an answer to our question whether held mails are theirs"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadMail:
    """A mail as far as it could be read; `fault` says why not, and then the rest is empty."""

    parsed: ParsedMail = field(default_factory=ParsedMail)
    attachments: tuple[TypedAttachment, ...] = ()
    fault: str = ""
    authentication: Authentication = NOT_JUDGED
    marks: tuple[tuple[str, str], ...] = ()


Authenticate = Callable[[Envelope, bytes], Awaitable[Authentication]]


async def judge_nobody(envelope: Envelope, octets: bytes) -> Authentication:
    """For a gateway whose mailboxes all take anyone's mail."""
    return NOT_JUDGED


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
        authenticate: Authenticate = judge_nobody,
        who: WhoMayWrite | None = None,
    ) -> None:
        self._authenticate = authenticate
        self._who = who
        self._threads = threads
        self._cage = cage
        self._router = router
        self._mailboxes = mailboxes
        self._clock = clock

    async def read(self, envelope: Envelope, octets: bytes, known: Authentication = NOT_JUDGED) -> ReadMail:
        """Parses the mail, types its attachments and judges its sender, unless that is `known`; else it has its `fault`."""
        read = await self._parsed(octets)
        if known.verdict in (Result.NONE, Result.TEMPERROR):
            known = await self._authenticate(envelope, octets)
        return replace(read, authentication=known, marks=marks_of(octets))

    async def _parsed(self, octets: bytes) -> ReadMail:
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
        if not is_released and (decision := self._kept_out(route, read, rcpt_to)):
            return decision
        mail = ReceivedMail(
            envelope=envelope,
            rcpt_to=rcpt_to,
            parsed=read.parsed,
            attachments=read.attachments,
            authentication=read.authentication,
        )
        witness = _Witness()
        context = self._context(witness, route.kind, own_address(route, rcpt_to), envelope.received_at, is_released)
        outcome = await _ask(mailbox, mail, context, witness)
        return Decision(rcpt_to=rcpt_to, mailbox=route.kind, outcome=outcome, address=context.address)

    def _kept_out(self, route: MailboxRoute, read: ReadMail, rcpt_to: str) -> Decision | None:
        """What is decided before the mailbox is asked: loops, answers to us, junk, and who may write."""

        def decision(outcome: Outcome | Postpone | Answer, person_id: str = "") -> Decision:
            return Decision(rcpt_to=rcpt_to, mailbox=route.kind, outcome=outcome, person_id=person_id)

        if loop := loop_in(read.marks, rcpt_to):
            return decision(Hold(reason=loop))
        if self._who and (confirmation_id := self._who.confirmation_of(own_address(route, rcpt_to), rcpt_to)):
            return decision(Answer(confirmation_id=confirmation_id, text=read.parsed.text))
        if read.authentication.junk:
            return decision(Hold(reason="junk"))
        if self._who is None:
            return None
        ruling = self._who.rule(route, rcpt_to, read.authentication, read.parsed.from_.address)
        if ruling.admits:
            return None
        if ruling.later:
            return decision(Postpone(reason=ruling.reason, at_most=_DNS_ATTEMPTS), ruling.ask_id)
        return decision(Hold(reason=ruling.reason), ruling.ask_id)

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
