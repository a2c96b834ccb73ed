"""THE queue contract: publish, consume with leases, retry later, dead letters, events for subscribers, replies.

Engines: `queue.sqlite` (nothing to install) and, later, RabbitMQ; one suite proves both (`tests/contract`).
Promises every engine keeps:
  * `publish` returns when **all** tickets are durable, else raises QueueUnavailable and promises nothing;
  * a ticket is leased to one consumer at a time; a consumer that dies gives its leases back, counted;
  * a ticket is gone only after `settle(Done())` or `settle(Dead())`; crash anywhere else = it comes again;
  * `Later` puts it into its retry queue, not before its time; fresh tickets never wait behind it;
  * `email.send.serial` is worked one ticket at a time, in the order they were published: while one of it is leased, by
    whomever, no other is; given back in whatever way it keeps its place; what waits for its retry or is a suspect has
    left the line;
  * queues consumed together share by weight: none starves, none has strict priority;
  * `Suspect` puts it into `gateway.suspect`, its home queue in a header, its deliveries counted anew; from there Later goes
    to the home's retry queue, and a dead letter says the home queue;
  * a ticket for a queue that nobody knows goes to `gateway.unroutable`, that name in the header `routing_key`;
  * the `DELIVERY_LIMIT`th lease that ends without a word sends the ticket to `gateway.dead.crashed`.
Not promised: order between tickets of any other queue; delivery exactly once (handlers are idempotent: record, publish, ack last).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gateway.queue.ticket import Ticket

DELIVERY_LIMIT = 20


@dataclass(frozen=True, slots=True)
class Done:
    """The work is recorded; the ticket goes away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """The ticket comes again at `at` in its retry queue; `climbs` counts this attempt on the ladder."""

    at: datetime
    climbs: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead:
    """We gave up: the ticket goes to `gateway.dead.failed` with its reason, an operator's turn.

    `crashed`: it goes to `gateway.dead.crashed`, because whoever works it dies.
    """

    reason: str
    crashed: bool = False


@dataclass(frozen=True, slots=True)
class Suspect:
    """Workers die while they hold it: the ticket goes to `gateway.suspect`, to be worked apart from all others."""


@dataclass(frozen=True, slots=True)
class Release:
    """The ticket goes back untouched (drain): ready at once, this delivery not counted."""


Outcome = Done | Later | Dead | Suspect | Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One CloudEvent for the topic exchange `gateway.events`; `key` is its type and routing key."""

    key: str
    id: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """One line of `gateway queues`."""

    name: str
    ready: int
    leased: int
    delayed: int
    dead: int
    oldest_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadTicket:
    """A dead letter: the ticket as it was, where it died, why and when; `box` is the dead queue it lies in."""

    number: str
    ticket: Ticket
    queue: str
    reason: str
    died_at: datetime
    box: str = ""


class Lease(Protocol):
    """One worker's temporary hold on a ticket."""

    @property
    def ticket(self) -> Ticket: ...

    @property
    def delivery_count(self) -> int:
        """How often this ticket was leased before without being settled (0 at first)."""
        ...

    async def settle(self, outcome: Outcome) -> None:
        """Ends the lease; durable on return, except Done, which may ride in the next commit. Raises LeaseLost."""
        ...


class Consumer(Protocol):
    """A running subscription to some work queues: iterate it for leases; at most `concurrency` are out at once."""

    def __aiter__(self) -> AsyncIterator[Lease]:
        """Iterates until `stop`; QueueUnavailable ends one wait, not the consumer: iterating again goes on."""
        ...

    def stop(self) -> None:
        """Stops leasing: the iteration ends, leases not yet handed out go back. Idempotent."""
        ...

    def pause(self) -> None:
        """Leases no more until `resume`; what is not handed out goes back and is ready for others. Idempotent."""
        ...

    def resume(self) -> None: ...


class Broker(Protocol):
    """What the gateway needs of a queue engine."""

    async def publish(self, tickets: Sequence[Ticket]) -> None:
        """Keeps all tickets durably or raises QueueUnavailable."""
        ...

    async def publish_events(self, events: Sequence[Event]) -> None:
        """Copies each event durably to every subscriber whose patterns match its key."""
        ...

    def consume(
        self, queues: Mapping[str, int], *, concurrency: int, lease_seconds: float = 960
    ) -> AbstractAsyncContextManager[Consumer]:
        """Leases from `queues` (name → weight ≥ 1); leaving the context releases what is still out."""
        ...

    async def subscribe(self, name: str, patterns: Sequence[str]) -> str:
        """Binds the durable queue `subscriber.<name>` to events (`*` one word, `#` any) and returns its name."""
        ...

    async def ask(self, ticket: Ticket, *, timeout_seconds: float) -> bytes:
        """Publishes with a private reply address and returns the answer's body; TimeoutError after the publish."""
        ...

    async def answer(self, ticket: Ticket, body: bytes) -> None:
        """Answers a ticket that has `reply_to`; an asker gone changes nothing. Never raises for a missing asker."""
        ...

    async def depths(self) -> list[Depth]: ...

    async def has_consumed_past(self, queue: str, published_at: datetime) -> bool:
        """Whether `queue` is empty of due tickets or has since consumed one published after `published_at`."""
        ...

    async def dead(self, *, limit: int = 1000) -> list[DeadTicket]:
        """The dead letters, oldest first, their tickets without the bodies."""
        ...

    def all_dead(self) -> AsyncIterator[DeadTicket]:
        """Every dead letter with its body, however many, one after the other and in no promised order.

        Iterate without dawdling and to the end, or close it: where queues cannot be looked into, other readers wait.
        """
        ...

    async def dead_one(self, number: str) -> DeadTicket | None:
        """One dead letter with its body; None when there is none of that number."""
        ...

    async def retry_dead(self, number: str) -> bool:
        """Puts a dead letter back into its home queue, counters at zero; False when there is none."""
        ...

    async def drop_dead(self, number: str, *, is_recorded: bool = False) -> bool:
        """Throws a dead letter away; False when there is none.

        `is_recorded`: the store has all it stood for, so that its receipt loses nothing by it.
        """
        ...

    async def close(self) -> None: ...
