"""Tickets as AMQP messages: what stands in properties, what in headers, and whose word counts.

`message_id` is the ticket's id, `user_id` the connection's user as the broker has proved it.  What the engine itself notes
stands in headers that begin with `x-gateway-`; they count only in messages published by the house's own user, so that no
app can claim another app's name, an attempt or a moment.
Limits: headers carry text, whole numbers of 64 bits, true, false, null, lists and tables of these; all of them must fit one
frame; a body has at most 16 MiB, as RabbitMQ 4 takes no more.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage

from gateway.errors import PermanentFailure
from gateway.queue.broker import DELIVERY_LIMIT, DeadTicket
from gateway.queue.ticket import (
    DEAD_CRASHED,
    DEAD_FAILED,
    HOME_QUEUE,
    ROUTING_KEY,
    SUSPECT,
    UNROUTABLE,
    Ticket,
    at_home,
    home_queue,
)

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_HEADERS_BYTES = 100 * 1024  # a frame has 128 KiB; properties and the notes of later stations need some of it
_MAX_REASON = 8_000
_MAX_SHORT = 255
_OURS = "x-gateway-"
_ATTEMPT, _DUE_AT, _PUBLISHED_AT = _OURS + "attempt", _OURS + "due-at", _OURS + "published-at"
_APP, _BEFORE = _OURS + "app", _OURS + "deliveries-before"
_NUMBER, _DIED_IN, _DIED_AT, _REASON = _OURS + "number", _OURS + "died-in", _OURS + "died-at", _OURS + "reason"
_ROUTES = ("CC", "BCC")  # more queues, to the broker: by our default exchange that would be any, `mail.inbound` too
_BROKERS = ("x-death", "x-opt-deaths", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
_CRASHED = f"{DELIVERY_LIMIT} leases ended without a word: whoever works on it dies or hangs"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A ticket as it came out of a queue; `published_at` is None where only the publisher knows it."""

    ticket: Ticket
    deliveries: int
    published_at: datetime | None


def to_message(
    ticket: Ticket,
    *,
    user: str,
    published_at: datetime | None,
    deliveries: int = 0,
    death: Mapping[str, Any] | None = None,
) -> Message:
    """The ticket as a durable message of `user`'s."""
    notes = {
        _ATTEMPT: ticket.attempt or None,
        _DUE_AT: _micros(ticket.due_at),
        _PUBLISHED_AT: _micros(published_at),
        _APP: ticket.app or None,
        _BEFORE: deliveries or None,
    }
    noted = {key: value for key, value in notes.items() if value is not None}
    return Message(
        ticket.body,
        headers={**_routeless(ticket.headers), **noted, **(death or {})},
        content_type=ticket.content_type,
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=ticket.id,
        reply_to=ticket.reply_to,
        correlation_id=ticket.correlation_id,
        user_id=user,
    )


def read(message: AbstractIncomingMessage, queue: str, *, user: str) -> Arrived:
    """The ticket in a message; what is not ours in it is taken as it stands and judged by its handler."""
    is_ours = message.user_id == user
    notes = {key: value for key, value in message.headers.items() if is_ours and key.startswith(_OURS)}
    ticket = Ticket(
        queue=queue,
        id=message.message_id or "",
        body=message.body,
        content_type=message.content_type or "application/octet-stream",
        headers=_headers(message, queue),
        attempt=_number(notes.get(_ATTEMPT)),
        due_at=_moment(notes.get(_DUE_AT)),
        reply_to=message.reply_to,
        correlation_id=message.correlation_id,
        app=str(notes.get(_APP, "") if is_ours else message.user_id or ""),
    )
    # The broker writes its count over whatever stands there from the second delivery on; before, it is the app's own word.
    counted = _number(message.headers.get("x-delivery-count")) if message.redelivered else 0
    deliveries = _number(notes.get(_BEFORE)) + counted
    return Arrived(ticket=ticket, deliveries=deliveries, published_at=_moment(notes.get(_PUBLISHED_AT)))


def copy(message: AbstractIncomingMessage, queue: str, *, user: str) -> Message:
    """The message as it lies in `queue`, to be published again by the house: an app's name becomes a note."""
    is_dead = queue in (DEAD_FAILED, DEAD_CRASHED)
    headers = {
        key: value for key, value in _routeless(message.headers).items() if is_dead or not key.startswith(_BROKERS)
    }
    if message.user_id != user:
        headers = {key: value for key, value in headers.items() if not key.startswith(_OURS)}
        headers |= {_APP: message.user_id} if message.user_id else {}
    return Message(
        message.body,
        headers=headers,
        content_type=message.content_type,
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=message.message_id,
        reply_to=message.reply_to,
        correlation_id=message.correlation_id,
        user_id=user,
    )


def _headers(message: AbstractIncomingMessage, queue: str) -> dict[str, Any]:
    headers = {key: _plain(value) for key, value in _routeless(message.headers).items() if not _is_note(key)}
    # By the default exchange we ourselves sent it on: retried or dead it keeps the key that led nowhere.
    is_fresh = queue == UNROUTABLE and message.exchange
    return headers | ({ROUTING_KEY: message.routing_key} if is_fresh else {})


def _routeless(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in headers.items() if key not in _ROUTES}


def _is_note(key: str) -> bool:
    return key.startswith((_OURS, *_BROKERS))


def _plain(value: Any) -> Any:
    """A header of any program's as a ticket can have and keep it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return bytes(value).decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)


def death_notes(ticket: Ticket, reason: str, died_at: datetime) -> dict[str, Any]:
    """The headers that make a message a dead letter: its number, its home, why and when."""
    notes = {_NUMBER: uuid.uuid4().hex, _DIED_IN: home_queue(ticket), _DIED_AT: _micros(died_at)}
    return notes | {_REASON: reason[:_MAX_REASON].encode("utf-8", "replace").decode()}


def read_dead(message: AbstractIncomingMessage, box: str, *, user: str) -> DeadTicket:
    """The dead letter in a message of a dead queue, buried by us or by the broker at its delivery limit."""
    headers = message.headers
    if message.user_id == user and _NUMBER in headers:
        number, died_in, reason = str(headers[_NUMBER]), str(headers[_DIED_IN]), str(headers[_REASON])
        died_at = _moment(headers[_DIED_AT]) or _EPOCH
    else:
        died_in, died_at, reason = _broker_death(headers)
        number = hashlib.sha256(f"{message.message_id} {died_in} {died_at}".encode() + message.body).hexdigest()[:32]
    ticket = read(message, died_in, user=user).ticket
    if died_in == SUSPECT:
        died_in, ticket = home_queue(ticket), at_home(ticket)
    return DeadTicket(number=number, ticket=ticket, queue=died_in, reason=reason, died_at=died_at, box=box)


def _broker_death(headers: Mapping[str, Any]) -> tuple[str, datetime, str]:
    deaths = headers.get("x-death")
    death = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    died_at = death.get("time")
    if not isinstance(died_at, datetime):
        died_at = _EPOCH
    why = death.get("reason", "unknown")
    reason = _CRASHED if why == "delivery_limit" else f"put here by the broker: {why}"
    return str(death.get("queue", "")), died_at if died_at.tzinfo else died_at.replace(tzinfo=UTC), reason


def crashed_reason() -> str:
    return _CRASHED


def waits(ticket: Ticket, *, now: datetime) -> float:
    """The seconds until the ticket is due; 0 when it is."""
    return 0.0 if ticket.due_at is None else max(0.0, (ticket.due_at - now).total_seconds())


def suspect(ticket: Ticket) -> Ticket:
    """The ticket on its way to the suspects, its home in a header."""
    return replace(ticket, queue=SUSPECT, headers={**ticket.headers, HOME_QUEUE: ticket.queue})


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH) // _MICROSECOND


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _moment(micros: Any) -> datetime | None:
    return _EPOCH + timedelta(microseconds=micros) if isinstance(micros, int) else None


def refuse_unfit(ticket: Ticket) -> None:
    """Raises PermanentFailure for what would close the channel, and end every publish under way on it, once it is sent."""
    if len(ticket.body) > MAX_BODY_BYTES:
        raise PermanentFailure(f"a ticket of {len(ticket.body)} bytes; at most {MAX_BODY_BYTES}")
    size = _size(ticket.headers)
    if size > MAX_HEADERS_BYTES:
        raise PermanentFailure(f"a ticket with {size} bytes of headers; at most {MAX_HEADERS_BYTES}")
    shorts = (ticket.id, ticket.content_type, ticket.reply_to or "", ticket.correlation_id or "", ticket.queue)
    if max(len(short.encode()) for short in shorts) > _MAX_SHORT:
        raise PermanentFailure(f"id, type, reply address and queue of a ticket have at most {_MAX_SHORT} bytes each")


def _size(value: Any, depth: int = 0) -> int:
    """About how many bytes a header value takes; raises PermanentFailure for what AMQP has no exact form for."""
    if depth > 50:
        raise PermanentFailure("a header nested more than 50 deep")
    if isinstance(value, str):
        return 5 + len(value.encode())
    if value is None or isinstance(value, bool):
        return 2
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return 9
    if isinstance(value, list):
        return 5 + sum(_size(item, depth + 1) for item in value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and len(key.encode()) <= _MAX_SHORT for key in value):
            raise PermanentFailure(f"a header's name is text of at most {_MAX_SHORT} bytes")
        return 5 + sum(1 + len(key.encode()) + _size(item, depth + 1) for key, item in value.items())
    raise PermanentFailure(f"a header of {type(value).__name__} {value!r:.50}: AMQP has no exact form for it")
