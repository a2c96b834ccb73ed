"""Order per key, the outbound side: when an email of a serial key is over, the next one gets its ticket.

Flow: acceptance on `email.send.serial` numbers an email and sends nothing; `start_next` after each acceptance and after each
final record asks the ledger whose turn it is and publishes a ticket for each of its recipients, in the ordinary retry queue of
its stream.  The rows are due before the ticket is published and name none, so that after a crash in between the sweeper
issues one in its next round.
Limit: a ticket that waits longer than such a round in its queue gets a second one; whichever comes first does the work.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from gateway.mail.ids import new_id
from gateway.outbound.retry_ticket import retry_ticket
from gateway.queue.ticket import Ticket
from gateway.runtime import failpoint
from gateway.store.ledger import Ledger

Publish = Callable[[Sequence[Ticket]], Awaitable[None]]


async def start_next(ledger: Ledger, publish: Publish, serial_key: str) -> None:
    """Starts the key's next email if its turn has come; raises StoreUnavailable or QueueUnavailable."""
    started = await ledger.start_turn(serial_key)
    failpoint("deliver.turn_started")
    if started:
        await publish(
            [
                retry_ticket(
                    email_id=row.email_id,
                    recipient=row.recipient,
                    ticket_id=new_id(),
                    stream=row.stream,
                    attempt=row.attempts,
                    due_at=None,
                )
                for row in started
            ]
        )
