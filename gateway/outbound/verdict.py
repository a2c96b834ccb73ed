"""What a relay's answer means: whose fault it is and whether trying again can help.  The one place that decides it.

    send ended as     raised            the ledger hears        the attempt
    2xx to the dot    (a RelayResult)   relayed                 spent
    Deferred          4xx, may pass     delayed, ladder climbs  spent
    Refused           5xx, proven       failed                  spent
    RelayUnusable     the relay's own   nothing, claim released not spent, the relay pauses
    OutcomeUnknown    dot, no reply     unknown                 spent, nobody knows how

Rules: everything before MAIL is the relay's fault, as are 421, 530 and quotas anywhere, a connection lost before the dot
and an answer that is no SMTP.  At RCPT a reply speaks of the recipient; at MAIL, DATA and the dot 5xx speaks of the
content and 4xx of the domain.  After the dot silence and garbage prove nothing: unknown (RFC 5321, section 4.5.3.2.6).
"""

from __future__ import annotations

import re
from enum import StrEnum

from gateway.errors import FaultOwner, GatewayError, PermanentFailure, TransientFailure
from gateway.reply import Reply

_RELAY_CODES = frozenset({421, 503, 530, 535, 538})
_QUOTA = re.compile(r"quota|throttl|(rate|sending|message) limit|too many (messages|connections)", re.IGNORECASE)
_SYSTEM_STATUS = ("4.3.1", "4.3.2")
_OF_THE_MAILBOX = ("4.1.", "4.2.")


class Step(StrEnum):
    """How far a transaction had come."""

    CONNECT = "connect"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    BODY = "body"
    DOT = "dot"

    @property
    def is_opening(self) -> bool:
        return self in _OPENING


_OPENING = {Step.CONNECT, Step.EHLO, Step.STARTTLS, Step.AUTH}


class StepFailed(GatewayError):
    """One step of an SMTP transaction did not go on; `spoken` says whether `reply` is really the relay's word."""

    def __init__(self, step: Step, reply: Reply, *, spoken: bool) -> None:
        super().__init__(f"{step}: {reply}")
        self.step = step
        self.reply = reply
        self.spoken = spoken

    @property
    def lost_connection(self) -> bool:
        return not self.spoken or self.reply.code == 421


class Deferred(TransientFailure):
    """Not now: 4xx by the fault of a domain or a recipient."""

    def __init__(self, reply: Reply, *, relay: str, owner: FaultOwner) -> None:
        super().__init__(str(reply), reply=reply, owner=owner)
        self.relay = relay


class Refused(PermanentFailure):
    """Never: 5xx by the fault of a recipient or the content (`ours`: the mail itself is one we must not send)."""

    def __init__(self, reply: Reply, *, relay: str, owner: FaultOwner) -> None:
        super().__init__(str(reply), reply=reply, owner=owner)
        self.relay = relay


class RelayUnusable(TransientFailure):
    """No relay could be used and nothing was sent; the mail has no part in it."""

    def __init__(self, reply: Reply, *, relay: str) -> None:
        super().__init__(str(reply), reply=reply, owner=FaultOwner.RELAY)
        self.relay = relay


class OutcomeUnknown(GatewayError):
    """The final dot went out and no intelligible reply came back."""

    def __init__(self, text: str, *, relay: str) -> None:
        super().__init__(text)
        self.relay = relay


def owner_of(failure: StepFailed) -> FaultOwner:
    """Says whose fault a step that did not go on is."""
    reply = failure.reply
    if not failure.spoken or failure.step.is_opening or _speaks_of_the_relay(failure.step, reply):
        return FaultOwner.RELAY
    if failure.step is Step.RCPT:
        return FaultOwner.DOMAIN if reply.enhanced_status.startswith("4.4.") else FaultOwner.RECIPIENT
    return FaultOwner.CONTENT if reply.is_permanent else FaultOwner.DOMAIN


def judge(failure: StepFailed, *, relay: str) -> Deferred | Refused | RelayUnusable:
    """Turns a step that did not go on into the exception that says what follows."""
    owner = owner_of(failure)
    if owner is FaultOwner.RELAY:
        return RelayUnusable(as_transient(failure), relay=relay)
    kind = Refused if failure.reply.is_permanent else Deferred
    return kind(failure.reply, relay=relay, owner=owner)


def as_transient(failure: StepFailed) -> Reply:
    """The relay's word as a 4xx of ours: a relay's refusal of us never is a refusal of a mail."""
    if failure.reply.is_transient:
        return failure.reply
    return Reply(code=451, enhanced_status="4.3.5", text=f"relay refused {failure.step}: {failure.reply}")


def _speaks_of_the_relay(step: Step, reply: Reply) -> bool:
    codes = {421} if step is Step.DOT else _RELAY_CODES
    return reply.code in codes or _is_quota(step, reply)


def _is_quota(step: Step, reply: Reply) -> bool:
    if not reply.is_transient or reply.enhanced_status.startswith(_OF_THE_MAILBOX):
        return False
    if reply.enhanced_status in _SYSTEM_STATUS:
        return True
    return step is not Step.RCPT and bool(_QUOTA.search(reply.text))  # at RCPT it would be the mailbox's quota
