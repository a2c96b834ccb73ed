"""The operator's desk: what a person may do about a mail, an email or a dead letter.  Commands and pages both act here.

Flow: hold, release, replay, discard, cancel, retry and drop → the store's verbs and the queue, always *record, publish, remove
last*, so that an action that dies halfway may be said again.
Promises: each action is noted in the subject's story with who did it (`by`: a user's name, or `command`); what is final is
left alone; an id that is not one subject's is refused before anything is done.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.errors import PermanentFailure
from gateway.inbound.replay import is_replayable, replay_tickets
from gateway.mail.disposition import Disposition
from gateway.mail.secret_address import redacted
from gateway.outbound.retry_ticket import ticket_id_of
from gateway.queue.ticket import EMAIL_QUEUES, MAIL_INBOUND, fresh_queue

if TYPE_CHECKING:
    from gateway.queue.broker import Broker, DeadTicket
    from gateway.store.decisions import Decisions
    from gateway.store.emails import DatabaseLedger
    from gateway.store.mail_rows import DeliveryRecord
    from gateway.store.mails import Mails

BY_COMMAND = "command"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One person at the desk, named in everything done here."""

    mails: Mails
    ledger: DatabaseLedger
    decisions: Decisions
    broker: Broker
    by: str

    async def the_one(self, item: str) -> tuple[str, str]:
        """The (kind, id) of the one subject whose id begins so; raises PermanentFailure."""
        found = await self.mails.find(item)
        if not found:
            raise PermanentFailure(f"nothing is known of {item}")
        if len(found) > 1:
            raise PermanentFailure(f"{item} is not unique: {', '.join(subject for _, subject in found)}")
        return found[0]

    async def release(self, item: str) -> int:
        """Held recipients go on: a mail before its mailbox again, an email to its relay. Returns how many."""
        kind, subject = await self.the_one(item)
        if kind == "email":
            return await self.ledger.release(subject, by=self.by)
        rows = await self.mails.deliveries(subject)
        held = [row.rcpt_to for row in rows if row.disposition is Disposition.HELD]
        await self._replay(rows, held, is_release=True)
        return len(held)

    async def discard(self, item: str) -> int:
        """Nothing is made of what is held of a mail, nothing held of an email is sent. Returns how many recipients."""
        kind, subject = await self.the_one(item)
        if kind == "email":
            return await self.ledger.cancel(subject, by=self.by, only=(Disposition.HELD,))
        rows = await self.mails.deliveries(subject)
        held = [row.rcpt_to for row in rows if row.disposition is Disposition.HELD]
        return await self.decisions.discard(subject, by=self.by, recipients=held)

    async def replay(self, items: Sequence[str]) -> list[dict[str, Any]]:
        """Has held, failed and dead mails processed anew; a line per recipient says what is done.

        Raises PermanentFailure for an id that is not one mail's, before anything is done.
        """
        subjects = []
        for item in items:
            kind, subject = await self.the_one(item)
            if kind != "mail":
                raise PermanentFailure(f"{subject} is no mail ({kind}); only mails are replayed")
            subjects.append(subject)
        return [line for subject in dict.fromkeys(subjects) for line in await self._replay_mail(subject)]

    async def hold(self, item: str) -> int:
        """What is not yet sent of an email waits for a person; returns how many recipients.

        Raises PermanentFailure for what is no email: a mail is held by its mailbox alone.
        """
        kind, subject = await self.the_one(item)
        if kind != "email":
            raise PermanentFailure(f"{subject} is no email ({kind}); only emails can be held")
        return await self.ledger.hold(subject, by=self.by)

    async def cancel(self, item: str) -> int:
        """What is not yet sent of an email never will be; returns how many recipients."""
        kind, subject = await self.the_one(item)
        return await self.ledger.cancel(subject, by=self.by) if kind == "email" else 0

    async def retry_dead(self, number: str) -> bool:
        """Puts a dead letter back into its home queue; False when there is none of that number."""
        letter = await self.broker.dead_one(number)
        if letter is None:
            return False
        await self._note(letter, "retry_asked")
        return await self.broker.retry_dead(number)

    async def drop_dead(self, number: str) -> bool:
        """Throws a dead letter away and ends what it stood for; False when there is none of that number."""
        letter = await self.broker.dead_one(number)
        if letter is None:
            return False
        await self._note(letter, "drop_asked")
        return await self.broker.drop_dead(number, is_recorded=await self._end(letter))

    async def _note(self, letter: DeadTicket, step: str) -> None:
        data = {"number": letter.number, "queue": letter.queue, "reason": letter.reason}
        await self.decisions.record_decided(letter.ticket.id, step, by=self.by, data=data)

    async def _end(self, letter: DeadTicket) -> bool:
        """The dead recipients of a dropped letter get their final disposition; others of the same id are left alone.

        True where the store has everybody the letter stood for.
        """
        ticket, queue = letter.ticket, fresh_queue(letter.queue)
        if queue in EMAIL_QUEUES:
            dead = (Disposition.DEAD,)
            await self.ledger.cancel(ticket.id, by=self.by, only=dead, ticket_id=ticket_id_of(ticket))
            return bool(await self.ledger.recipients(ticket.id))
        if queue != MAIL_INBOUND:
            return False
        named = _recipients(letter)
        await self.decisions.discard(ticket.id, by=self.by, recipients=named)
        return {row.rcpt_to for row in await self.mails.deliveries(ticket.id)}.issuperset(named)

    async def _replay_mail(self, mail_id: str) -> list[dict[str, Any]]:
        rows = await self.mails.deliveries(mail_id)
        await self._replay(rows, [row.rcpt_to for row in rows if is_replayable(row)])
        return [
            {
                "id": mail_id,
                "rcpt_to": redacted(row.rcpt_to),
                "disposition": str(row.disposition),
                "action": "replayed" if is_replayable(row) else "left alone",
            }
            for row in rows
        ]

    async def _replay(
        self, rows: Sequence[DeliveryRecord], recipients: Sequence[str], *, is_release: bool = False
    ) -> None:
        """Publishes tickets for some recipients of a mail; the dead letters that nobody else waits for go away."""
        if not recipients:
            return
        mail_id = rows[0].mail_id
        cared_for = {*recipients, *(row.rcpt_to for row in rows if row.disposition.is_final)}
        mail = await self.mails.stored(mail_id)
        assert mail is not None  # its deliveries refer to it
        step = "release_asked" if is_release else "replay_asked"
        await self.decisions.record_decided(mail_id, step, by=self.by, data={"recipients": list(recipients)})
        await self.broker.publish(replay_tickets(mail, recipients, is_release=is_release))
        letters = [letter.number async for letter in self.broker.all_dead() if _is_of(letter, mail_id, cared_for)]
        for number in letters:
            await self.broker.drop_dead(number, is_recorded=True)


def _is_of(letter: DeadTicket, mail_id: str, cared_for: Set[str]) -> bool:
    """Whether a dead letter is a ticket of this mail and for these recipients only."""
    named = _recipients(letter)
    return letter.ticket.id == mail_id and bool(named) and cared_for >= set(named)


def _recipients(letter: DeadTicket) -> list[str]:
    """Whom a dead mail ticket was for."""
    named = letter.ticket.headers.get("rcpt_to")
    return [str(item) for item in named] if isinstance(named, list) else []
