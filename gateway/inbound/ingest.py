"""Ingest: the worker's job for a ticket of `mail.inbound`: decide, then record, recipient by recipient.

Order: record the mail (insert-if-absent) → per recipient: decide, attachments into the blob store, one transaction → for
who must wait, a ticket of his own, and one for each photo to be rendered, published → the worker acks last.
Promises: idempotent (a recipient that has his disposition is left alone); each recipient commits alone; what cannot be
parsed is held with its octets; a mailbox (or the store) that raises delays its own recipient by the ladder and ends as
held, never silently; the same fault again and again while other mails pass is held at once (`inbound.faults`).
Whether the sender may be told what becomes of it is judged here and kept with the mail; who cannot be told has his refused
mail held.  While the store is away the mail is noted for the outage ledger, so that its sender can be told all the same.
A ticket with the header `replay` works what waits for a person, too (`inbound.replay`).
Faults of ours (StoreUnavailable, QueueUnavailable) are raised: the worker waits, the ladder is not climbed.
A mail whose blob is missing or damaged climbs the ladder, too.  What ends as a dead letter is recorded `dead` before.
A ticket that is no mail (headers missing, other octets than promised, the id of another mail) raises PermanentFailure: a dead
letter with its reason, and nobody's row is touched.
A turn of `turn_seconds` is enough for one ticket: who was not reached in it goes on with a ticket of his own, so that a
mailbox that hangs for one recipient after the other keeps nobody behind them from his post.
What was found out about the sender is stored with the mail and found again, not looked up anew, by later tickets of it.
Limits: Forward is held until there is a way to send it on.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from gateway.errors import BlobDamaged, FaultOwner, PermanentFailure, StoreUnavailable, TransientFailure
from gateway.inbound.attachments import TypedAttachment
from gateway.inbound.authenticate import NOT_JUDGED, Authentication
from gateway.inbound.confirm import doubt_of_answer
from gateway.inbound.decide import Answer, Authenticate, Decider, Decision, Postpone, judge_nobody
from gateway.inbound.faults import HEADER as FAULT
from gateway.inbound.faults import Fault, Passes, fingerprint_of
from gateway.inbound.intake import Blobs
from gateway.inbound.mailbox import Mailbox, Post
from gateway.inbound.photos import photo_ticket
from gateway.inbound.replay import RELEASE, REPLAY, WAITS_FOR_A_PERSON
from gateway.inbound.router import Router
from gateway.inbound.who import WhoMayWrite
from gateway.mail.disposition import GAVE_UP, SAME_FAULT, Disposition
from gateway.mail.envelope import Envelope
from gateway.mail.fingerprint import content_key
from gateway.mail.ids import canonical_uuid
from gateway.mail.loop_guard import Judge, Telling, tell_nobody
from gateway.mail.parse import Cage
from gateway.maillog import MailLog, told
from gateway.queue.broker import Done
from gateway.queue.ladder import Ladder
from gateway.queue.ticket import MAIL_INBOUND, Ticket, retry_queue
from gateway.queue.worker import fault_wait_seconds
from gateway.reply import Reply
from gateway.runtime import Clock, failpoint
from gateway.store.blobs import octets_of
from gateway.store.mails import Mails
from gateway.store.posts import NewAttachment, NewPost

_MAX_REASON = 500
NoteWaiting = Callable[[Envelope, bytes, Telling], Awaitable[None]]
Publish = Callable[[Sequence[Ticket]], Awaitable[None]]
Confirm = Callable[[str], Awaitable[str]]

TURN_SECONDS = 240.0  # with the 60 s a mailbox has, far from the worker's deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrival:
    """A ticket read: the mail with its octets, and where they lie."""

    ticket: Ticket
    envelope: Envelope
    octets: bytes
    blob: str | None
    sha256: str
    size: int
    telling: Telling | None = None


async def note_nothing(envelope: Envelope, octets: bytes, telling: Telling) -> None:
    """For a gateway without an outage ledger."""


async def _confirm_nothing(confirmation_id: str) -> str:
    return "nobody asks here"


class _NoMail(PermanentFailure):
    """The ticket is not the mail it says it is; what the store knows under its id is none of its business."""


class _BlobMissing(TransientFailure):
    """The store answers and has no such blob, or a damaged one: it may come back (a folder mounted late, a copy restored),
    so the ladder is climbed first.
    """


class Ingest:
    """The handler of inbound mail; one for all workers of a process."""

    def __init__(
        self,
        *,
        mails: Mails,
        blobs: Blobs,
        cage: Cage,
        router: Router,
        mailboxes: Mapping[str, Mailbox],
        publish: Publish,
        ladder: Ladder,
        log: MailLog,
        clock: Clock,
        authenticate: Authenticate = judge_nobody,
        who: WhoMayWrite | None = None,
        confirm: Confirm = _confirm_nothing,
        judge: Judge = tell_nobody,
        note_waiting: NoteWaiting = note_nothing,
        jitter: Callable[[], float] = random.random,
        turn_seconds: float = TURN_SECONDS,
    ) -> None:
        """`judge` says who may be told; `note_waiting` hears of mail that cannot be recorded while the store is away.

        `confirm` releases what a request was about and says so (`inbound.confirm`).
        """
        self._jitter = jitter
        self._judge = judge
        self._note_waiting = note_waiting
        self._confirm = confirm
        self._turn_seconds = turn_seconds
        self._mails = mails
        self._blobs = blobs
        self._publish = publish
        self._ladder = ladder
        self._log = log
        self._clock = clock
        self._passes = Passes()
        self.decider = Decider(
            cage=cage,
            router=router,
            mailboxes=mailboxes,
            clock=clock,
            threads=mails,
            authenticate=authenticate,
            who=who,
        )

    async def handle(self, ticket: Ticket) -> Done:
        """Works one ticket; see the module for what it raises."""
        try:
            return await self._work(ticket)
        except StoreUnavailable:
            await self._note(ticket)
            raise
        # Broad: whatever makes a dead letter of the ticket, its recipients must know before.
        except Exception as fault:
            if fault_wait_seconds(ticket, fault, self._ladder) is None:
                await self.bury(ticket, f"{type(fault).__name__}: {fault}"[:500])
            raise

    async def _note(self, ticket: Ticket) -> None:
        """The store is away: whoever waits for this mail may have to be told without it."""
        try:
            envelope, blob = _envelope(ticket), ticket.headers.get("blob")
            octets = await self._blobs.get(str(blob)) if blob else ticket.body
            await self._note_waiting(envelope, octets, self._judge(envelope, octets, ""))
        except (
            PermanentFailure,
            TransientFailure,
            ValueError,
        ) as fault:  # what raises it once more is on its way already
            self._log.service("outage-ledger", "not-noted", mail=ticket.id, error=told(fault))

    async def bury(self, ticket: Ticket, reason: str) -> None:
        """Records that a ticket is dead: an operator's turn for every recipient that was still open."""
        try:
            arrival = await self._open(ticket)
        except _NoMail:
            return  # its dead letter says so
        except _BlobMissing:
            arrival = self._without_octets(ticket)
        await self._record_received(arrival)
        for rcpt_to in await self._open_recipients(arrival):
            await self._mails.record_dead(arrival.envelope.mail_id, rcpt_to, mailbox="", reason=reason)
            self._log.mail_recorded(
                arrival.envelope.mail_id, rcpt_to=rcpt_to, disposition=Disposition.DEAD, reason=reason
            )

    async def _work(self, ticket: Ticket) -> Done:
        turn_ends = asyncio.get_running_loop().time() + self._turn_seconds
        arrival = await self._open(ticket)
        open_recipients = await self._open_recipients(arrival)
        if not open_recipients:
            await self._publish_tickets([], arrival.envelope.mail_id)
            return Done()
        known = Authentication.from_json(await self._mails.authentication(arrival.envelope.mail_id))
        read = await self.decider.read(arrival.envelope, arrival.octets, known)
        is_verified = read.authentication.verifies(arrival.envelope.mail_from)
        telling = self._judge(arrival.envelope, arrival.octets, read.parsed.text, is_verified=is_verified)
        arrival = replace(arrival, telling=telling)
        await self._record_received(arrival, subject=read.parsed.subject, authentication=read.authentication)
        tickets: list[Ticket] = []
        is_released = bool(ticket.headers.get(RELEASE))
        for done, rcpt_to in enumerate(open_recipients):
            if done and asyncio.get_running_loop().time() >= turn_ends:
                tickets.append(_rest_ticket(ticket, open_recipients[done:]))
                break
            decision = await self.decider.decide(arrival.envelope, read, rcpt_to, is_released=is_released)
            failpoint("ingest.decided")
            retry = await self._record_or_postpone(arrival, decision)
            failpoint("ingest.recorded")
            tickets += [retry] if retry else []
        await self._publish_tickets(tickets, arrival.envelope.mail_id)
        failpoint("ingest.acked.before")
        return Done()

    async def _record_received(
        self, arrival: _Arrival, subject: str = "", authentication: Authentication = NOT_JUDGED
    ) -> None:
        key = await asyncio.to_thread(content_key, arrival.octets) if arrival.octets else ""
        await self._mails.record_received(
            arrival.envelope,
            arrival.blob or arrival.octets,
            size=arrival.size,
            sha256=arrival.sha256,
            subject=subject,
            content_key=key,
            authentication=None if authentication == NOT_JUDGED else authentication.to_json(),
            telling=arrival.telling or self._judge(arrival.envelope, arrival.octets, ""),
        )

    async def _publish_tickets(self, tickets: list[Ticket], mail_id: str) -> None:
        """Publishes what goes on after this ticket; photos that wait are asked of the store, so that a crash loses none."""
        tickets = [*tickets, *map(photo_ticket, await self._mails.waiting_photos(mail_id))]
        if tickets:
            await self._publish(tickets)
            failpoint("ingest.retries_published")

    async def _open(self, ticket: Ticket) -> _Arrival:
        envelope = _envelope(ticket)
        blob = str(ticket.headers.get("blob") or "") or None
        octets = await self._fetch(blob) if blob else ticket.body
        digest = (await asyncio.to_thread(hashlib.sha256, octets)).hexdigest()
        promised = str(ticket.headers.get("sha256") or digest)
        if digest != promised:
            raise _NoMail(f"no mail: its octets have sha256 {digest}, the door promised {promised}")
        known = await self._mails.digest(envelope.mail_id)
        if known not in (None, digest):
            raise _NoMail(f"no mail: {envelope.mail_id} is another mail's id, with sha256 {known}; this has {digest}")
        return _Arrival(ticket=ticket, envelope=envelope, octets=octets, blob=blob, sha256=digest, size=len(octets))

    def _without_octets(self, ticket: Ticket) -> _Arrival:
        """A mail whose blob is gone, as far as its door described it: it can be shown, and replayed when the blob is back."""
        blob, size = str(ticket.headers["blob"]), ticket.headers.get("size")
        return _Arrival(
            ticket=ticket,
            envelope=_envelope(ticket),
            octets=b"",
            blob=blob,
            sha256=blob.removeprefix("sha256:"),
            size=size if isinstance(size, int) else 0,
        )

    async def _fetch(self, blob: str) -> bytes:
        try:
            octets = await octets_of(self._blobs, blob)
        except ValueError as error:
            raise _NoMail(f"no mail: {error}") from None
        except BlobDamaged as fault:
            raise _BlobMissing(str(fault), owner=FaultOwner.CONTENT) from None
        if octets is None:
            raise _BlobMissing(f"the blob {blob} is not in the store", owner=FaultOwner.CONTENT)
        return octets

    async def _open_recipients(self, arrival: _Arrival) -> list[str]:
        """The recipients that need a decision; one that is held waits for a person, unless that person sent this ticket.

        A dead one has no ticket but the one an operator gave back.
        """
        mail_id = arrival.envelope.mail_id
        known = {row.rcpt_to: row.disposition for row in await self._mails.deliveries(mail_id)}
        reopens = WAITS_FOR_A_PERSON if arrival.ticket.headers.get(REPLAY) else (Disposition.DEAD,)
        found = []
        for rcpt_to in dict.fromkeys(arrival.envelope.rcpt_to):
            disposition = known.get(rcpt_to, Disposition.PENDING)
            if disposition in reopens:
                await self._mails.record_reopened(mail_id, rcpt_to)
                found.append(rcpt_to)
            elif disposition is Disposition.PENDING:
                found.append(rcpt_to)
        return found

    async def _record_or_postpone(self, arrival: _Arrival, decision: Decision) -> Ticket | None:
        """Records one decision; returns the ticket that must be published for a recipient who waits."""
        try:
            return await self._record(arrival, decision)
        except TransientFailure:
            raise  # a fault of ours: it waits for the store, not for its turn on the ladder
        # Broad: what the store chokes on in one recipient's post must not keep the others from theirs.
        except Exception as error:  # noqa: BLE001
            reason = f"recording failed: {type(error).__name__}: {error}"[:500]
            fault = Postpone(reason=reason, fingerprint=fingerprint_of(error, self))
            return await self._postpone(arrival, decision, fault)

    async def _record(self, arrival: _Arrival, decision: Decision) -> Ticket | None:
        mail_id, rcpt_to, mailbox = arrival.envelope.mail_id, decision.rcpt_to, decision.mailbox
        disposition, reason = decision.ruling()
        if isinstance(decision.outcome, Postpone):
            return await self._postpone(arrival, decision, decision.outcome)
        if isinstance(decision.outcome, Post):
            post = await self._keep(decision.outcome, decision, arrival.envelope)
            recorded = await self._mails.record_delivered(mail_id, rcpt_to, mailbox=mailbox, post=post, reason=reason)
            disposition, reason = recorded.disposition, recorded.reason
        elif disposition is Disposition.FAILED and arrival.telling is not None and arrival.telling.untold:
            # Who cannot be told must not lose a mail: a person decides.
            await self._hold(mail_id, decision, f"{reason}; nobody can be told: {arrival.telling.untold}"[:_MAX_REASON])
            return None
        elif disposition is Disposition.FAILED:
            reply = Reply(code=554, enhanced_status="5.7.1", text=reason)
            await self._mails.record_failed(mail_id, rcpt_to, mailbox=mailbox, reason=reason, reply=reply)
        elif isinstance(decision.outcome, Answer):
            reason = await self._hear(arrival, decision.outcome)
            await self._mails.record_discarded(mail_id, rcpt_to, mailbox=mailbox, reason=reason)
        elif disposition is Disposition.DISCARDED:
            await self._mails.record_discarded(mail_id, rcpt_to, mailbox=mailbox, reason=reason)
        else:
            held = {"mailbox": mailbox, "reason": reason, "person_id": decision.person_id}
            await self._mails.record_held(mail_id, rcpt_to, **held)
        if disposition is not Disposition.HELD:
            self._passes.note(mail_id, self._clock())
        self._say(decision, mail_id, disposition, reason)
        return None

    async def _hear(self, arrival: _Arrival, answer: Answer) -> str:
        """Lets a yes take its effect; returns what became of the answer."""
        if doubt := doubt_of_answer(arrival.envelope, arrival.octets, answer.text):
            return f"no answer to our question: {doubt}"
        return await self._confirm(answer.confirmation_id)

    async def _hold(self, mail_id: str, decision: Decision, reason: str) -> None:
        held = {"mailbox": decision.mailbox, "reason": reason, "person_id": decision.person_id}
        await self._mails.record_held(mail_id, decision.rcpt_to, **held)
        self._say(decision, mail_id, Disposition.HELD, reason)

    async def _postpone(self, arrival: _Arrival, decision: Decision, postpone: Postpone) -> Ticket | None:
        """Records the wait; a crash before the ticket is published brings this ticket back, so nothing waits for ever."""
        mail_id, rcpt_to, now = arrival.envelope.mail_id, decision.rcpt_to, self._clock()
        attempt = arrival.ticket.attempt + 1
        if postpone.at_most is not None and attempt > postpone.at_most:
            await self._hold(mail_id, decision, postpone.reason)
            return None
        fault = Fault.after(arrival.ticket.headers, postpone.fingerprint, now)
        if postpone.fingerprint and self._passes.make_hopeless(fault, mail_id):
            reason = f"{SAME_FAULT} {fault.times} times while other mails passed: {postpone.reason}"
            await self._hold(mail_id, decision, reason)
            self._log.mailbox_at_fault(
                decision.mailbox, mail_id=mail_id, rcpt_to=rcpt_to, fingerprint=fault.fingerprint
            )
            return None
        delay_seconds = self._ladder.delay_seconds(attempt, jitter=self._jitter())
        if delay_seconds is None:
            await self._hold(mail_id, decision, f"{GAVE_UP} {attempt} attempts: {postpone.reason}")
            self._log.mailbox_at_fault(
                decision.mailbox, mail_id=mail_id, rcpt_to=rcpt_to, fingerprint=fault.fingerprint
            )
            return None
        due_at = now + timedelta(seconds=delay_seconds)
        is_open = await self._mails.record_deferred(
            mail_id,
            rcpt_to,
            mailbox=decision.mailbox,
            reason=postpone.reason,
            attempts=attempt,
            next_attempt_at=due_at,
        )
        if not is_open:
            return None  # another ticket of his, a replay's, came first
        self._say(decision, mail_id, Disposition.PENDING, postpone.reason)
        return _retry_ticket(arrival.ticket, rcpt_to, fault, attempt=attempt, due_at=due_at)

    async def _keep(self, post: Post, decision: Decision, envelope: Envelope) -> NewPost:
        """Puts the attachments into the blob store and returns the post as the store takes it."""
        await asyncio.gather(*(self._blobs.put(attachment.octets) for attachment in post.attachments))
        failpoint("ingest.attachments_kept")
        return NewPost(
            mailbox=decision.mailbox,
            kind=post.kind,
            author=post.author,
            author_address=post.author_address,
            title=post.title,
            text=post.text,
            html=post.html or None,
            created_at=envelope.received_at,
            attachments=tuple(new_attachment(number, item) for number, item in enumerate(post.attachments)),
            quoted=post.quoted,
            address=decision.address,
            thread=post.thread,
        )

    def _say(self, decision: Decision, mail_id: str, disposition: Disposition, reason: str) -> None:
        self._log.mail_recorded(mail_id, rcpt_to=decision.rcpt_to, disposition=disposition, reason=reason)


def _envelope(ticket: Ticket) -> Envelope:
    try:
        return Envelope.from_headers(canonical_uuid(ticket.id), ticket.headers)
    except (KeyError, ValueError) as error:
        raise _NoMail(f"no mail: id or header {error}") from None


def _rest_ticket(ticket: Ticket, recipients: Sequence[str]) -> Ticket:
    """A ticket for recipients whom this turn did not reach; it spends no attempt, and fresh mail does not wait for it."""
    headers = {key: value for key, value in ticket.headers.items() if key != REPLAY} | {"rcpt_to": list(recipients)}
    return replace(ticket, queue=retry_queue(MAIL_INBOUND), headers=headers, due_at=None)


def _retry_ticket(ticket: Ticket, rcpt_to: str, fault: Fault, *, attempt: int, due_at: datetime) -> Ticket:
    """A ticket of his own for a recipient who waits; its row is open again, so it is no replay any more."""
    headers = {key: value for key, value in ticket.headers.items() if key != REPLAY}
    headers |= {"rcpt_to": [rcpt_to], FAULT: fault.to_header()}
    return replace(ticket, queue=retry_queue(MAIL_INBOUND), headers=headers, attempt=attempt, due_at=due_at)


def new_attachment(position: int, attachment: TypedAttachment) -> NewAttachment:
    """An attachment as the store takes it."""
    return NewAttachment(
        position=position,
        filename=attachment.filename,
        content_type=attachment.content_type,
        sniffed=attachment.sniffed,
        size=attachment.size,
        sha256=attachment.sha256,
        content_id=attachment.content_id,
        inline=attachment.inline,
        caption=attachment.caption,
        photo=attachment.photo,
        refusal=attachment.refusal,
    )
