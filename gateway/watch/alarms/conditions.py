"""What is wrong by the look of things: facts of one look in, conditions out.  Pure: asks nobody, remembers nothing.

A condition is what somebody should be told of; the book (`alarms.book`) decides when it becomes an alarm and when that is
over.  A look says which topics it could judge at all: a process that sees no relay cannot say that a relay is well again.
`docs/alarms.md` has a paragraph for each topic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gateway.queue.broker import Depth
from gateway.queue.ticket import SUSPECT

if TYPE_CHECKING:
    from gateway.inbound.certificate import Trouble
    from gateway.outbound.relay import RelayHealth
    from gateway.store.accounting import HeldFaults

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
MAX_CHARACTERS = 300
DEATHS_AT_ONCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """What all alarms of one topic have in common; `patience_seconds` must pass before one is raised."""

    severity: Severity
    title: str
    patience_seconds: float = 0


TOPICS: dict[str, Topic] = {
    "store": Topic(severity="critical", title="the store cannot be reached", patience_seconds=3),
    "queue": Topic(severity="critical", title="the queue cannot be reached", patience_seconds=3),
    "disk": Topic(severity="critical", title="too little disk"),
    "certificate": Topic(severity="warning", title="the door's certificate"),
    "restarts": Topic(severity="critical", title="the gateway dies again and again"),
    "relay": Topic(severity="warning", title="a relay does not work", patience_seconds=60),
    "old-tickets": Topic(severity="warning", title="work waits too long"),
    "dead-letters": Topic(severity="warning", title="dead letters"),
    "templates": Topic(severity="warning", title="a template is broken"),
    "mailbox": Topic(severity="warning", title="a mailbox cannot take its mail"),
    "failures": Topic(severity="warning", title="more email fails than goes out"),
    "suspects": Topic(severity="info", title="workers died of a ticket"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One thing that is wrong now; `subject` tells things of one topic apart, `count` is how many where that can grow.

    `is_own`: the count is this process's own, those of several processes add up, and their sum begins the sentence `what`;
    `is_urgent`: no patience.
    """

    topic: str
    what: str
    next_step: str
    subject: str = ""
    count: int = 0
    severity: Severity = "warning"
    is_own: bool = False
    is_urgent: bool = False

    def said(self, count: int) -> str:
        """What it says when so many were counted in all."""
        return f"{count} {self.what}" if self.is_own else self.what


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The facts of one look, at `seen_at` of the monotonic clock.  None: it could not be asked, or is not our business."""

    queue_fault: str | None = None
    store_fault: str | None = None
    depths: Sequence[Depth] | None = None
    held: HeldFaults | None = None
    relays: Sequence[RelayHealth] = ()
    certificate: Sequence[Trouble] | None = None
    free_bytes: int | None = None
    min_free_bytes: int = 0
    failures: int = 0
    deaths: int = 0
    asks_store: bool = True
    old_seconds: float = 900
    seen_at: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one process found: conditions, and the topics (or `topic:subject`) it could judge."""

    conditions: tuple[Condition, ...]
    judged: frozenset[str]


def look_at(sight: Sight) -> Look:
    """Judges the facts."""
    found = [*_of_machine(sight), *_of_certificate(sight), *_of_queues(sight), *_of_relays(sight), *_of_held(sight)]
    return Look(conditions=tuple(found), judged=frozenset(_judged(sight)))


def _judged(sight: Sight) -> Iterator[str]:
    yield from ("queue", "failures", "restarts")
    if sight.asks_store:
        yield "store"
    if sight.free_bytes is not None:
        yield "disk"
    if sight.certificate is not None:
        yield "certificate"
    if sight.depths is not None:
        yield from ("old-tickets", "dead-letters", "suspects")
    if sight.held is not None:
        yield from ("templates", "mailbox")
    yield from (f"relay:{relay.relay}" for relay in sight.relays if relay.is_failing or relay.is_proven)


def condition(topic: str, what: str, next_step: str, **more: object) -> Condition:
    """A condition with its topic's severity, its words cut to size and made harmless."""
    values = {"severity": TOPICS[topic].severity} | more
    text = "".join(c if c.isprintable() else " " for c in what)[:MAX_CHARACTERS]
    return Condition(topic=topic, what=text, next_step=next_step, **values)  # type: ignore[arg-type]


def _of_machine(sight: Sight) -> Iterator[Condition]:
    if sight.store_fault is not None:
        what = f"the store cannot be reached; mail is still taken in and waits in the queue: {sight.store_fault}"
        yield condition("store", what, "gateway doctor; look at the database, its disk and its rights")
    if sight.queue_fault is not None:
        what = f"the queue cannot be reached; doors answer 451, nothing is taken in or sent: {sight.queue_fault}"
        yield condition("queue", what, "gateway doctor; look at the broker or the file, its disk and its rights")
    if sight.free_bytes is not None and sight.free_bytes < sight.min_free_bytes:
        what = f"{sight.free_bytes // 2**20} MiB free, {sight.min_free_bytes // 2**20} wanted: doors answer 452"
        yield condition("disk", what, "make room on the disk of data_dir")
    if sight.deaths >= DEATHS_AT_ONCE:
        what = f"{sight.deaths} processes of the gateway died within an hour"
        yield condition("restarts", what, "read the log's last lines before each gateway-serving", count=sight.deaths)


def _of_certificate(sight: Sight) -> Iterator[Condition]:
    for trouble in sight.certificate or ():
        severity = "critical" if trouble.level == "wrong" else "warning"
        what = f"the SMTP door's certificate: {trouble.text}"
        yield condition("certificate", what, trouble.next_step, subject=trouble.subject, severity=severity)


def _of_queues(sight: Sight) -> Iterator[Condition]:
    depths = sight.depths or ()
    old = [depth for depth in depths if depth.ready and (depth.oldest_seconds or 0) > sight.old_seconds]
    if old:
        what = ", ".join(
            f"{item.name}: {item.ready} ready, the oldest since {item.oldest_seconds:.0f} s" for item in old
        )
        yield condition("old-tickets", what, "is `gateway run` running, are its workers? gateway queues")
    if dead := sum(depth.dead for depth in depths):
        names = ", ".join(depth.name for depth in depths if depth.dead)
        step = "gateway dead list; mend the cause, then dead retry, replay or dead drop"
        yield condition("dead-letters", f"{dead} dead letters ({names})", step, count=dead)
    suspects = sum(depth.ready + depth.leased for depth in depths if depth.name == SUSPECT)
    if suspects:
        what = f"{suspects} tickets that workers died with are worked apart from all others"
        yield condition("suspects", what, "nothing yet: the guilty end as dead letters", count=suspects)


def _of_relays(sight: Sight) -> Iterator[Condition]:
    all_fail = bool(sight.relays) and all(relay.is_failing for relay in sight.relays)
    for relay in sight.relays:
        if relay.is_failing:
            rest = "no other relay is usable: email waits" if all_fail else "others carry on"
            what = f"{relay.relay} is paused: {relay.why}; {rest}"
            severity = "critical" if all_fail else "warning"
            step = "look at the relay; it is tried again by itself, at most every 5 minutes"
            yield condition("relay", what, step, subject=relay.relay, severity=severity)


def _of_held(sight: Sight) -> Iterator[Condition]:
    held = sight.held
    if held and held.templates:
        what = f"{held.templates} recipients' email is held: it cannot be rendered"
        step = "gateway templates check; mend it, then gateway release ID (gateway emails --disposition held)"
        yield condition("templates", what, step, count=held.templates)
    if held and held.mailboxes:
        what = f"{held.mailboxes} mails are held: their mailbox fails on them"
        step = "gateway mails --disposition held; mend the mailbox, then gateway replay ID"
        yield condition("mailbox", what, step, count=held.mailboxes)
    if sight.failures:
        what = "recipients failed for good, more than were relayed"
        step = "gateway emails --disposition failed: what do the relays say?"
        yield condition("failures", what, step, count=sight.failures, is_own=True)


def concerns(severity: Severity, topic: str, *, from_severity: Severity, topics: Set[str]) -> bool:
    """Whether an admin wants to hear of it; no topics mean all."""
    return SEVERITIES.index(severity) >= SEVERITIES.index(from_severity) and (not topics or topic in topics)
