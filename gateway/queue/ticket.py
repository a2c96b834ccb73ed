"""A ticket: what a queue stores.  The names of the queues stand here too, the same on every engine.

Flow: a door or the client makes tickets, `Broker.publish` keeps them, a worker gets each in a lease.
Limits: headers are JSON values and small (on AMQP all of them must fit one frame of 128 KiB).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

MAIL_INBOUND = "mail.inbound"
EMAIL_SEND = "email.send"
EMAIL_SEND_URGENT = "email.send.urgent"
EMAIL_SEND_BULK = "email.send.bulk"
EMAIL_SEND_SERIAL = "email.send.serial"  # worked one ticket at a time, in the order of its tickets
EMAIL_BROADCAST = "email.broadcast"
EMAIL_CONTROL = "email.control"
POST_CREATE = "post.create"
PHOTO_RENDER = "photo.render"
SUSPECT = "gateway.suspect"
HOME_QUEUE = "home_queue"  # the header in which a suspect keeps where it came from
DEAD_FAILED = "gateway.dead.failed"
DEAD_CRASHED = "gateway.dead.crashed"
UNROUTABLE = "gateway.unroutable"  # commands whose key leads nowhere
ROUTING_KEY = "routing_key"  # the header in which these have that key

WORK_QUEUES = (
    MAIL_INBOUND,
    POST_CREATE,
    PHOTO_RENDER,
    EMAIL_SEND_URGENT,
    EMAIL_SEND,
    EMAIL_SEND_BULK,
    EMAIL_SEND_SERIAL,
    EMAIL_CONTROL,
)
COMMAND_QUEUES = (  # what apps publish to, each queue by the key of its name
    EMAIL_SEND,
    EMAIL_SEND_URGENT,
    EMAIL_SEND_BULK,
    EMAIL_SEND_SERIAL,
    EMAIL_BROADCAST,
    EMAIL_CONTROL,
    POST_CREATE,
)
HOME_QUEUES = (MAIL_INBOUND, *COMMAND_QUEUES, PHOTO_RENDER)
STREAM_QUEUES = {"urgent": EMAIL_SEND_URGENT, "normal": EMAIL_SEND, "bulk": EMAIL_SEND_BULK}
EMAIL_QUEUES = (*STREAM_QUEUES.values(), EMAIL_SEND_SERIAL)
SUBSCRIBER = "subscriber."
REPLY = "reply."
_RETRY = ".retry"


def retry_queue(name: str) -> str:
    """The queue in which a kind's unsuccessful attempts wait and run, so that fresh work never waits behind them."""
    return name if name.endswith(_RETRY) else name + _RETRY


def fresh_queue(name: str) -> str:
    """The queue a retry queue belongs to."""
    return name.removesuffix(_RETRY)


def leads_somewhere(name: str) -> bool:
    """Whether tickets for a queue of that name have a reader; what has none goes to `gateway.unroutable`."""
    if name.startswith((SUBSCRIBER, REPLY)):
        return True
    return fresh_queue(name) in (*HOME_QUEUES, UNROUTABLE) or name in (SUSPECT, DEAD_FAILED, DEAD_CRASHED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One piece of work.

    `id` is the mail id or the request's id (AMQP `message_id`); several tickets may carry the same id.
    `attempt` counts the attempts that climbed the ladder; `due_at` None means now; `app` is who published it, as the
    engine or the API knows it (never what the body claims), '' on an engine without users.
    """

    queue: str
    id: str
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 0
    due_at: datetime | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    app: str = ""


def home_queue(ticket: Ticket) -> str:
    """The queue whose handler works the ticket: its own, or for a suspect the one it came from."""
    return str(ticket.headers.get(HOME_QUEUE, ticket.queue)) if ticket.queue == SUSPECT else ticket.queue


def routed(ticket: Ticket) -> Ticket:
    """The ticket, or where its queue has no reader the same among the unroutable, that name in a header."""
    if leads_somewhere(ticket.queue):
        return ticket
    return replace(ticket, queue=UNROUTABLE, headers={**ticket.headers, ROUTING_KEY: ticket.queue})


def at_home(ticket: Ticket) -> Ticket:
    """The ticket as its handler knows it, wherever it was leased from."""
    if ticket.queue != SUSPECT:
        return ticket
    headers = {key: value for key, value in ticket.headers.items() if key != HOME_QUEUE}
    return replace(ticket, queue=home_queue(ticket), headers=headers)
