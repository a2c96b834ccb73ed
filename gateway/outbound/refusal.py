"""Refusal: commands that have no handler, `gateway.unroutable` and for now `email.broadcast`; told, recorded, kept.

Order: recorded as rejected (event `email.rejected`) where the request has an id, answered `rejected` where somebody asked, then a
dead letter with the reason, which the admins hear of.  Nothing an app published vanishes, however wrong its key.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn, Protocol

from gateway.contract.request import answer_json, claimed_id
from gateway.errors import PermanentFailure, Problem
from gateway.mail.ids import canonical_uuid
from gateway.maillog import MailLog
from gateway.queue.ticket import COMMAND_QUEUES, ROUTING_KEY, Ticket

Answer = Callable[[Ticket, bytes], Awaitable[None]]

_MAX_KEY_SHOWN = 100
_NOT_BUILT = "broadcast is not built yet: send one email.send a recipient, with key email.send.bulk"


class Rejections(Protocol):
    """What refusal asks of the ledger."""

    async def record_rejected(self, request_id: str, *, app: str, problems: Sequence[Problem]) -> None: ...


class RefusalDesk:
    """Says no to what nobody here can work."""

    def __init__(self, rejections: Rejections, *, answer: Answer, log: MailLog) -> None:
        self._rejections = rejections
        self._answer = answer
        self._log = log

    async def unroutable(self, ticket: Ticket) -> NoReturn:
        """A key that leads nowhere; always raises PermanentFailure, the reason of the dead letter."""
        await self._refuse(ticket, Problem("routing key", _no_such_key(str(ticket.headers.get(ROUTING_KEY, "")))))

    async def broadcast(self, ticket: Ticket) -> NoReturn:
        """A command of a later version; always raises PermanentFailure, the reason of the dead letter."""
        await self._refuse(ticket, Problem("routing key", _NOT_BUILT))

    async def _refuse(self, ticket: Ticket, problem: Problem) -> NoReturn:
        request_id = claimed_id(ticket.body, ticket.id)
        self._log.command_refused(request_id, queue=ticket.queue, app=ticket.app, problems=str(problem))
        if _is_id(request_id):
            await self._rejections.record_rejected(request_id, app=ticket.app, problems=[problem])
        if ticket.reply_to:
            await self._answer(ticket, answer_json(request_id, "rejected", [problem]))
        raise PermanentFailure(f"rejected: {problem}")


def _no_such_key(key: str) -> str:
    shown = repr(key[:_MAX_KEY_SHOWN])
    near = difflib.get_close_matches(key[:_MAX_KEY_SHOWN], COMMAND_QUEUES, n=1)
    return f"{shown} is no command" + (f", perhaps {near[0]}?" if near else f"; there are {', '.join(COMMAND_QUEUES)}")


def _is_id(text: str) -> bool:
    try:
        return bool(canonical_uuid(text))
    except ValueError:
        return False
