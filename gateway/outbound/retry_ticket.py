"""The ticket that works one recipient again: published by `deliver` after a delay, by the sweeper for an overdue row.

The ledger names a row's current ticket by `ticket_id`; a request's own ticket goes by the request's id.
"""

from __future__ import annotations

from datetime import datetime

from gateway.queue.ticket import STREAM_QUEUES, Ticket, retry_queue


def retry_ticket(
    *, email_id: str, recipient: str, ticket_id: str, stream: str, attempt: int, due_at: datetime | None
) -> Ticket:
    """A one-recipient ticket for the retry queue of its stream."""
    return Ticket(
        queue=retry_queue(STREAM_QUEUES[stream]),
        id=email_id,
        body=b"{}",
        headers={"email_id": email_id, "recipient": recipient, "ticket_id": ticket_id},
        attempt=attempt,
        due_at=due_at,
    )


def ticket_id_of(ticket: Ticket) -> str:
    """What the ledger calls this ticket: a retry's name, or the id of the request it carries."""
    return str(ticket.headers.get("ticket_id") or ticket.id)
