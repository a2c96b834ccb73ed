"""Outbound work on one table: the real ledger in a file, the real relays, and a queue that is a list.

`handle` runs one ticket as a worker would and keeps what comes of it; `walk` goes on, moving the clock to each ticket's
time, until no ticket is left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.contract.email_send import SendEmail
from gateway.errors import QueueUnavailable
from gateway.maillog import MailLog
from gateway.outbound.deliver import Deliver, Patience
from gateway.outbound.relay import RelayPool
from gateway.outbound.templates import TemplateSet
from gateway.queue.broker import Done, Later
from gateway.queue.ladder import Ladder
from gateway.queue.ticket import EMAIL_SEND, Ticket, retry_queue
from gateway.store.blobs import FileBlobStore
from gateway.store.emails import DatabaseLedger
from gateway.store.ledger import RecipientRecord
from gateway.store.lists import Lists

FIVE_DAYS = Ladder.parse("1m 5m 15m 1h*2 4h*3 12h*9")
TEMPLATES = Path(__file__).parent.parent.parent / "templates"
MAIL_FROM = "bounces@example.com"


def request(*recipients: str, **fields: Any) -> SendEmail:
    values: dict[str, Any] = {"to": list(recipients or ["ann@example.org"]), "from": "Billing <billing@example.com>"}
    if "template" not in fields:
        values |= {"subject": "Grüße", "text": "Hello\n.dot\n"}
    return SendEmail.model_validate(values | fields)


def ticket_of(email: SendEmail, **fields: Any) -> Ticket:
    return Ticket(**({"queue": EMAIL_SEND, "id": email.id, "body": email.to_json()} | fields))


@dataclass
class Desk:
    """Deliver with everything around it."""

    ledger: DatabaseLedger
    lists: Lists
    pool: RelayPool
    clock: Any
    log: MailLog
    blobs: FileBlobStore
    patience: Patience = field(default_factory=Patience)
    ladder: Ladder = FIVE_DAYS
    queue_is_away: bool = False
    published: list[Ticket] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    waiting: list[Ticket] = field(default_factory=list)
    jitter: Callable[[], float] = lambda: 0.5

    def deliver(self) -> Deliver:
        return Deliver(
            ledger=self.ledger,
            pool=self.pool,
            cage=None,  # type: ignore[arg-type]  # requests with their own text need no cage
            templates=TemplateSet([TEMPLATES]),
            blobs=self.blobs,
            publish=self.publish,
            answer=self.answer,
            ladder=self.ladder,
            clock=self.clock,
            log=self.log,
            mail_from=MAIL_FROM,
            patience=self.patience,
            jitter=self.jitter,
        )

    async def publish(self, tickets: Sequence[Ticket]) -> None:
        if self.queue_is_away:
            raise QueueUnavailable("the queue is away")
        self.published += tickets
        self.waiting += tickets

    async def answer(self, ticket: Ticket, body: bytes) -> None:
        self.answers.append(json.loads(body))

    async def handle(self, ticket: Ticket) -> Done | Later:
        outcome = await self.deliver().handle(ticket)
        if isinstance(outcome, Later):
            attempt = ticket.attempt + outcome.climbs
            self.waiting.append(replace(ticket, queue=retry_queue(ticket.queue), due_at=outcome.at, attempt=attempt))
        return outcome

    async def walk(self, *, until: datetime | None = None, most: int = 100) -> int:
        """Handles every waiting ticket in the order of its time, moving the clock; returns how many it handled."""
        for count in range(most):
            due = [ticket for ticket in self.waiting if until is None or (ticket.due_at or self.clock()) <= until]
            if not due:
                return count
            ticket = min(due, key=lambda item: item.due_at or self.clock())
            self.waiting.remove(ticket)
            self.clock.now = max(self.clock.now, ticket.due_at or self.clock.now)
            await self.handle(ticket)
        raise AssertionError(f"still waiting after {most} tickets: {self.waiting}")

    async def row(self, email: SendEmail, recipient: str = "ann@example.org") -> RecipientRecord:
        [row] = [row for row in await self.ledger.recipients(email.id) if row.recipient == recipient]
        return row
