"""The ledger contract: what outbound work asks of the store.  The ledger is the truth, the queue its clock.

A row per (email, recipient) holds its disposition, its journal and the ticket that will next work it.  Journal of one
attempt: `claim` → `record_dot_sent` → one of `record_relayed | record_delayed | record_failed | record_unknown`.
Promises:
  * every verb is one transaction: row, timeline line and outbox event together, or nothing;
  * every verb that takes a Claim says `WHERE claim_token = ?` and raises ClaimLost when no row changed;
  * a claim whose time ran out is free again; one that ran out after `dot_sent` is `unknown`, never silently resent.
Implementation: `store.emails.DatabaseLedger`; `store.outage` journals the few notices that are sent without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from gateway.contract.email_send import SendEmail
from gateway.errors import Problem
from gateway.mail.disposition import Disposition
from gateway.reply import Reply


class Acceptance(StrEnum):
    """What became of a request: new, the same again, or an id taken by other content."""

    ACCEPTED = "accepted"
    KNOWN = "known"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailRecord:
    """An accepted email without its recipients' state. `octets` are the bytes every attempt sends, None until rendered."""

    id: str
    app: str
    request: SendEmail
    stream: str
    accepted_at: datetime
    expires_at: datetime
    send_at: datetime | None
    message_id: str
    return_path: str
    octets: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientRecord:
    """One recipient's row."""

    email_id: str
    recipient: str
    disposition: Disposition
    reason: str
    attempts: int
    copies: int
    next_attempt_at: datetime | None
    ticket_id: str
    claim_until: datetime | None
    dot_sent_at: datetime | None
    relay: str
    reply: Reply | None
    stream: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to make one attempt for one recipient until `until` (renewable)."""

    email_id: str
    recipient: str
    token: str
    until: datetime
    attempt: int
    copy: int


class Ledger(Protocol):
    """One verb per fact."""

    async def record_accepted(
        self, request: SendEmail, *, app: str, content_hash: str, ticket_id: str, stream: str, message_id: str
    ) -> Acceptance:
        """Inserts the email and a pending row per recipient if the id is new; they may wait for `send_at` or for their turn."""
        ...

    async def record_rejected(self, request_id: str, *, app: str, problems: Sequence[Problem]) -> None:
        """Notes a request that was never accepted: event `email.rejected` and a timeline line."""
        ...

    async def email(self, email_id: str) -> EmailRecord | None: ...

    async def recipients(self, email_id: str) -> list[RecipientRecord]: ...

    async def record_rendered(self, email_id: str, octets: bytes, *, subject: str = "") -> bytes:
        """Stores the bytes if none are stored yet and returns the stored ones (the first writer wins).

        `subject` is what the lists show.
        """
        ...

    async def claim(
        self, email_id: str, recipient: str, *, ticket_id: str, lifetime_seconds: float
    ) -> Claim | RecipientRecord:
        """Compare-and-set on a due, unclaimed row; otherwise returns the row as it is.

        Due: pending, delayed with next_attempt_at past, unknown with next_attempt_at past (copies + 1), or sending with
        an expired claim and no dot (free again). An expired claim **with** dot becomes `unknown` here and is returned.
        An email of a serial key that does not have its turn goes back to waiting for it and is returned.
        """
        ...

    async def start_turn(self, serial_key: str) -> list[RecipientRecord]:
        """Lets the next email of a key go once all before it are final: its rows that are due now, and have no ticket yet."""
        ...

    async def stalled_keys(self, *, limit: int = 200) -> list[str]:
        """Serial keys whose next email could go and was not started, for the sweeper."""
        ...

    async def renew(self, claim: Claim, *, lifetime_seconds: float) -> Claim: ...

    async def record_dot_sent(self, claim: Claim) -> None: ...

    async def record_relayed(self, claim: Claim, *, relay: str, reply: Reply) -> None: ...

    async def record_delayed(
        self,
        claim: Claim,
        *,
        relay: str,
        reply: Reply,
        reason: str,
        next_attempt_at: datetime,
        ticket_id: str,
    ) -> None:
        """The attempt did not succeed and is counted. `ticket_id` names the ticket that works the row next."""
        ...

    async def record_failed(self, claim: Claim, *, relay: str, reply: Reply, reason: str) -> None: ...

    async def record_unknown(self, claim: Claim, *, relay: str, reason: str) -> None:
        """The dot went out and no intelligible reply came: `unknown` now, not only when the claim runs out.

        `next_attempt_at` is set `unknown_wait` ahead where on_unknown is `resend`, to None where it is `hold`; the row
        keeps its current ticket.
        """
        ...

    async def record_late_relayed(self, claim: Claim, *, relay: str, reply: Reply) -> bool:
        """The relay's yes came after the claim was gone: heals a row that is open and not claimed anew, else False."""
        ...

    async def release_claim(self, claim: Claim, *, due_at: datetime | None = None) -> None:
        """Gives the claim back without an attempt (drain, a fault of the relay): the row is due at `due_at`, else at once.

        Also after `record_dot_sent` where the dot provably did no harm (never written, or answered 421).
        """
        ...

    async def postpone(self, email_id: str, recipient: str | None = None, *, ticket_id: str, until: datetime) -> bool:
        """No attempt can be made: rows of this ticket (one recipient's, or all) that are due are due at `until` instead.

        False when no open row has this as its current ticket: then it must not come again.
        """
        ...

    async def record_held(self, email_id: str, *, reason: str) -> int:
        """Holds every open, unclaimed recipient of an email; returns how many."""
        ...

    async def record_dead(self, email_id: str, *, reason: str, ticket_id: str | None = None) -> int:
        """Leaves open, unclaimed recipients (all, or those of one ticket) to an operator; returns how many."""
        ...

    async def revive(self, email_id: str, *, ticket_id: str) -> int:
        """Makes the dead recipients of a ticket that came again pending and due; returns how many."""
        ...

    async def sweep_expired(self, *, limit: int = 200) -> int:
        """Ends open rows past `expires_at` as expired, and turns dead claims with a dot into `unknown`."""
        ...

    async def overdue(self, *, older_than_seconds: float, limit: int = 200) -> list[RecipientRecord]:
        """Open rows due since so long and unclaimed, for the sweeper: at most `limit` of each stream, urgent ones first.

        Before them, as many that have no ticket (their `send_at` has come, an operator released them), due at all.
        """
        ...

    async def reissue(self, row: RecipientRecord, *, ticket_id: str) -> bool:
        """Names a new current ticket for a row, if its ticket is still the one in `row` (compare-and-set)."""
        ...
