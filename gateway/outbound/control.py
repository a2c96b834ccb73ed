"""Control: the handler of `email.control`; an app cancels, holds or lets go on an email of its own.

Order: checked, recorded by the ledger's verbs (the same that a person's commands use), answered.  The answer is `accepted`, or
`rejected` with the reason; a bad request that nobody waits for an answer to is a dead letter with that reason.
Promises: an app reaches only what it sent itself, by its API key's or RabbitMQ user's name as it was proven; of what is held it
lets go only what it held; what it did stands in the email's story with its name, and asking the same again is accepted.
Limits: what the queue has not yet led into the ledger cannot be stopped: an asker hears so at once, a request without an asker
is tried again for some twenty minutes.  What is being sent this very moment is too late, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from gateway.contract.control import VERSION, Action, ControlEmail, parse_control_email
from gateway.contract.request import answer_json, claimed_id, with_id
from gateway.errors import FaultOwner, InvalidRequest, PermanentFailure, Problem, TransientFailure
from gateway.maillog import MailLog
from gateway.queue.broker import Done
from gateway.queue.ticket import Ticket

Answer = Callable[[Ticket, bytes], Awaitable[None]]

TRIES_UNKNOWN = 3
_STEPS: dict[Action, str] = {"cancel": "cancelled", "hold": "held", "release": "released"}
_UNPROVEN = "an app is known by its own RabbitMQ user: publish with user_id, and not as the gateway's user"


class Emails(Protocol):
    """What control asks of the ledger."""

    async def story(self, email_id: str) -> dict[str, Any] | None: ...

    async def cancel(self, email_id: str, *, by: str = "") -> int: ...

    async def hold(self, email_id: str, *, by: str = "") -> int: ...

    async def release(self, email_id: str, *, by: str = "", own: bool = False) -> int: ...


class ControlDesk:
    """Does for apps what they may do about their own emails."""

    def __init__(self, emails: Emails, *, answer: Answer, log: MailLog, is_app_proven: bool) -> None:
        """`is_app_proven`: the queue knows who publishes, so that a request of nobody's is refused."""
        self._emails = emails
        self._answer = answer
        self._log = log
        self._is_app_proven = is_app_proven

    async def handle(self, ticket: Ticket) -> Done:
        """Works one ticket; raises PermanentFailure for a bad one nobody waits for, and what store and queue raise."""
        try:
            request = self._read(ticket)
            changed = await self._change(request, ticket)
        except InvalidRequest as invalid:
            return await self._refuse(ticket, invalid.problems)
        self._log.email_controlled(request.email_id, action=request.action, app=ticket.app, recipients=changed)
        if ticket.reply_to:
            await self._answer(ticket, answer_json(request.id, "accepted"))
        return Done()

    def _read(self, ticket: Ticket) -> ControlEmail:
        if self._is_app_proven and not ticket.app:
            raise InvalidRequest([Problem("user_id", _UNPROVEN)])
        return parse_control_email(with_id(ticket.body, ticket.id, known=VERSION, contract="email.control"))

    async def _change(self, request: ControlEmail, ticket: Ticket) -> int:
        """How many recipients it changed, 0 where the same was done before; raises InvalidRequest with the reason why not."""
        story = await self._emails.story(request.email_id)
        if story is None and not ticket.reply_to and ticket.attempt < TRIES_UNKNOWN:
            text = f"{request.email_id} is not in the ledger yet: {request.action} waits for it"
            raise TransientFailure(text, owner=FaultOwner.CONTENT)
        if story is None or story["app"] != ticket.app:
            raise InvalidRequest([Problem("email_id", "no email of yours in the ledger (yet)")])
        by = f"app {ticket.app}" if ticket.app else "an app"
        changed = await self._do(request.action, request.email_id, by)
        if not changed:
            now = await self._emails.story(request.email_id) or story  # another worker may have done it since we looked
            if not _is_done(now, _STEPS[request.action], by):
                raise InvalidRequest([Problem("email_id", _why_not(now, request.action))])
        return changed

    async def _do(self, action: Action, email_id: str, by: str) -> int:
        if action == "cancel":
            return await self._emails.cancel(email_id, by=by)
        if action == "hold":
            return await self._emails.hold(email_id, by=by)
        return await self._emails.release(email_id, by=by, own=True)

    async def _refuse(self, ticket: Ticket, problems: Sequence[Problem]) -> Done:
        request_id, text = claimed_id(ticket.body, ticket.id), "; ".join(map(str, problems))
        self._log.control_rejected(request_id, app=ticket.app, problems=text)
        if not ticket.reply_to:
            raise PermanentFailure(f"rejected: {text}")
        await self._answer(ticket, answer_json(request_id, "rejected", problems))
        return Done()


def _is_done(story: dict[str, Any], step: str, by: str) -> bool:
    """Whether that was the last word about it, and theirs: what was undone since is not done."""
    words = [line for line in story["timeline"] if line["step"] in _STEPS.values()]
    return bool(words) and words[-1]["step"] == step and words[-1]["data"].get("by") == by


def _why_not(story: dict[str, Any], action: Action) -> str:
    """`no recipient can be cancelled now: 2 relayed`."""
    counts = Counter(str(row["disposition"]) for row in story.get("recipients", ()))
    now = ", ".join(f"{count} {disposition}" for disposition, count in sorted(counts.items()))
    what = f"no recipient can be {_STEPS[action]} now: {now or 'the request was rejected'}"
    return what + ("; an app lets go what it held itself" if action == "release" and counts["held"] else "")
