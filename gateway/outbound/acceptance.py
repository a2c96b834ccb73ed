"""Acceptance: a ticket's request becomes an email in the ledger, or is refused with every problem named.

The first half of a fresh `email.send` ticket; `deliver` does the second.  Order: checked, recorded, answered.  The answer to
an asker is `{"id", "status": "accepted" | "rejected" | "conflict", "errors": [...]}`, repeated when the ticket comes again.
A `serial_key` and the queue `email.send.serial` belong together: either without the other is refused.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from gateway.contract.email_send import VERSION, SendEmail, parse_send_email, refuse_too_large
from gateway.contract.request import answer_json, claimed_id
from gateway.contract.versions import refuse_newer
from gateway.errors import InvalidRequest, Problem
from gateway.mail.addresses import parse_address, wire_mailbox
from gateway.mail.ids import new_id
from gateway.maillog import MailLog
from gateway.queue.ticket import EMAIL_SEND_SERIAL, STREAM_QUEUES, Ticket, fresh_queue
from gateway.runtime import aside, failpoint
from gateway.store.ledger import Acceptance, Ledger

Answer = Callable[[Ticket, bytes], Awaitable[None]]
_STREAM_OF_QUEUE = {queue: stream for stream, queue in STREAM_QUEUES.items()}


class Templates(Protocol):
    """What acceptance asks of the templates."""

    def problems(self, name: str, params: dict[str, Any]) -> list[Problem]: ...


class AcceptanceDesk:
    """Accepts requests into the ledger."""

    def __init__(
        self, *, ledger: Ledger, templates: Templates, answer: Answer, log: MailLog, default_from: str
    ) -> None:
        self._ledger = ledger
        self._templates = templates
        self._answer = answer
        self._log = log
        self._default_from = default_from

    async def accept(self, ticket: Ticket) -> SendEmail | None:
        """Records the request and answers; returns it, None when there is nothing to send.

        Raises NewerVersion, StoreUnavailable, QueueUnavailable.
        """
        try:
            request, stream, content_hash = await aside(len(ticket.body), lambda: self._read(ticket))
        except InvalidRequest as invalid:
            await self._reject(ticket, invalid.problems)
            return None
        acceptance = await self._ledger.record_accepted(
            request,
            app=ticket.app,
            content_hash=content_hash,
            ticket_id=request.id,
            stream=stream,
            message_id=self._mint_message_id(request),
        )
        failpoint("deliver.accepted")
        return await self._tell(ticket, request, acceptance)

    def _read(self, ticket: Ticket) -> tuple[SendEmail, str, str]:
        """The request, its stream and its content's hash; the costly part, without a word to anybody."""
        request = read_request(ticket)
        return request, self._check(request, ticket), request.content_hash()

    async def _tell(self, ticket: Ticket, request: SendEmail, acceptance: Acceptance) -> SendEmail | None:
        if acceptance is Acceptance.CONFLICT:
            problem = Problem("id", "is taken by an email with other content")
            await self._ledger.record_rejected(request.id, app=ticket.app, problems=[problem])
            self._log.email_rejected(request.id, problems=str(problem))
            await self._respond(ticket, request.id, "conflict", [problem])
            return None
        if acceptance is Acceptance.ACCEPTED:
            recipients = len(request.recipients())
            self._log.email_accepted(request.id, recipients=recipients, template=request.template or "")
        await self._respond(ticket, request.id, "accepted", [])
        return request

    def _check(self, request: SendEmail, ticket: Ticket) -> str:
        """Checks what needs the queue and the templates; returns the stream."""
        problems = []
        stream = _STREAM_OF_QUEUE.get(fresh_queue(ticket.queue), "normal")
        if stream == "normal":  # the plain queue and the serial one take the body's word
            stream = request.stream or stream
        elif request.stream not in (None, stream):
            problems.append(Problem("stream", f"{request.stream} contradicts the key of the {stream} queue"))
        is_serial = fresh_queue(ticket.queue) == EMAIL_SEND_SERIAL
        if is_serial and request.serial_key is None:
            problems.append(Problem("serial_key", "is needed with the key email.send.serial, which keeps order by it"))
        elif request.serial_key is not None and not is_serial:
            problems.append(Problem("serial_key", "belongs to the key email.send.serial"))
        if request.template is not None:
            problems += self._templates.problems(request.template, request.params)
        if problems:
            raise InvalidRequest(problems)
        return stream

    async def _reject(self, ticket: Ticket, problems: Sequence[Problem]) -> None:
        request_id = await aside(len(ticket.body), lambda: claimed_id(ticket.body, ticket.id))
        await self._ledger.record_rejected(request_id, app=ticket.app, problems=problems)
        self._log.email_rejected(request_id, problems="; ".join(map(str, problems)))
        await self._respond(ticket, request_id, "rejected", problems)

    async def _respond(self, ticket: Ticket, email_id: str, status: str, problems: Sequence[Problem]) -> None:
        if ticket.reply_to:
            await self._answer(ticket, answer_json(email_id, status, problems))

    def _mint_message_id(self, request: SendEmail) -> str:
        mailbox = parse_address(request.from_ or self._default_from).mailbox
        domain = wire_mailbox(mailbox).rpartition("@")[2]
        return f"<{new_id()}@{domain}>"


def read_request(ticket: Ticket) -> SendEmail:
    """The ticket's request; raises InvalidRequest, or NewerVersion. Without an `id` of its own it has the ticket's."""
    refuse_too_large(ticket.body)
    try:
        data = json.loads(ticket.body)
    except (ValueError, RecursionError):
        return parse_send_email(ticket.body)  # says what is wrong in its own words
    if not isinstance(data, dict):
        return parse_send_email(ticket.body)
    refuse_newer(data, known=VERSION, contract="email.send")
    if "id" in data:
        return parse_send_email(ticket.body)
    return parse_send_email(json.dumps(data | {"id": ticket.id}))  # a new id at each delivery would be a new email
