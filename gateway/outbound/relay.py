"""The relays we hand email to: chooses one by weight, pauses the ones that fail, says whose fault a failure is.

`send` is one transaction for one recipient.  It returns a RelayResult or raises what `verdict` tells apart.  A fault of a
relay pauses it (5 s growing to 5 min) and the next usable relay is tried at once, as long as the dot was not recorded; the
first send after a pause is a probe and goes alone.  With no usable relay `wait_usable` blocks: consumers stop leasing.
A mail that twice loses its connection halfway is taken for the cause and deferred, or it would pause everybody's relay.
Limits: pauses and suspicions are this process's own knowledge; a restart forgets them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from gateway.errors import FaultOwner
from gateway.maillog import MailLog
from gateway.outbound.capture import Capture
from gateway.outbound.letter import BeforeDot, Letter
from gateway.outbound.relay_url import RelaySpec, parse_relay_url
from gateway.outbound.smtp_relay import RelayLimits, SmtpRelay
from gateway.outbound.verdict import (
    Deferred,
    OutcomeUnknown,
    Refused,
    RelayUnusable,
    StepFailed,
    as_transient,
    judge,
)
from gateway.reply import Reply
from gateway.runtime import Clock

__all__ = [
    "Deferred",
    "OutcomeUnknown",
    "PausedRelay",
    "Refused",
    "RelayHealth",
    "RelayLimits",
    "RelayPool",
    "RelayResult",
    "RelaySpec",
    "RelayUnusable",
    "parse_relay_url",
]

_LOOK_AGAIN_SECONDS = 0.5
_PROBE_SECONDS = 5
_NOWHERE_SECONDS = 300
_SUSPECTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayResult:
    """A relay took the mail: its name and its reply to the dot."""

    relay: str
    reply: Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class PausedRelay:
    """A relay that is not used for now, and why."""

    relay: str
    until: datetime
    failures: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayHealth:
    """What this process knows of one relay; neither failing nor proven: it was not tried since the start."""

    relay: str
    is_failing: bool
    is_proven: bool
    why: str


class _Transport(Protocol):
    async def transact(self, letter: Letter, before_dot: BeforeDot) -> Reply: ...

    async def close(self) -> None: ...


class _Lane:
    """One relay with what we know of its health."""

    def __init__(self, spec: RelaySpec, transport: _Transport) -> None:
        self.spec = spec
        self.transport = transport
        self.credit = 0
        self.failures = 0
        self.paused_until: datetime | None = None
        self.why = ""
        self.is_probed = False
        self.is_proven = False

    def usable_at(self, now: datetime) -> datetime:
        if self.paused_until and self.paused_until > now:
            return self.paused_until
        return now + timedelta(seconds=_PROBE_SECONDS) if self.is_probed else now


class RelayPool:
    """All relays of this process."""

    def __init__(
        self,
        relays: Sequence[RelaySpec],
        *,
        hostname: str,
        captured_dir: Path,
        log: MailLog,
        clock: Clock,
        limits: RelayLimits | None = None,
    ) -> None:
        self._limits = limits or RelayLimits()
        self._log = log
        self._clock = clock
        self._changed = asyncio.Event()
        self._suspects: dict[int, int] = {}
        self._lanes = [
            _Lane(
                spec,
                Capture(captured_dir, clock=clock)
                if spec.is_capture
                else SmtpRelay(spec, hostname=hostname, limits=self._limits),
            )
            for spec in relays
        ]

    async def __aenter__(self) -> RelayPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every kept connection with QUIT."""
        await asyncio.gather(*(lane.transport.close() for lane in self._lanes))

    @property
    def paused(self) -> list[PausedRelay]:
        """The relays not used for now."""
        now = self._clock()
        return [
            PausedRelay(relay=lane.spec.name, until=lane.paused_until, failures=lane.failures, why=lane.why)
            for lane in self._lanes
            if lane.paused_until and lane.paused_until > now
        ]

    @property
    def health(self) -> list[RelayHealth]:
        """Every relay as we know it: failing until something goes through again, proven once something has."""
        return [
            RelayHealth(relay=lane.spec.name, is_failing=lane.failures > 0, is_proven=lane.is_proven, why=lane.why)
            for lane in self._lanes
        ]

    def usable_at(self, stream: str, mail_from: str) -> datetime:
        """When the next mail of this stream and sender may be tried; now or earlier: at once."""
        now = self._clock()
        times = [lane.usable_at(now) for lane in self._lanes if lane.spec.serves(stream, mail_from)]
        return min(times, default=now + timedelta(seconds=_NOWHERE_SECONDS))

    async def wait_usable(self) -> None:
        """Returns as soon as any relay may be used: the gate before a consumer leases."""
        while all(lane.usable_at(now := self._clock()) > now for lane in self._lanes):
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _LOOK_AGAIN_SECONDS)

    async def send(
        self, mail_from: str, recipient: str, octets: bytes, *, before_dot: BeforeDot, stream: str
    ) -> RelayResult:
        """Hands one email to a relay for one recipient; `before_dot` is awaited between body and dot.

        Raises Deferred, Refused, RelayUnusable, OutcomeUnknown, or what `before_dot` raised (then no dot was sent).
        """
        letter = Letter(mail_from=mail_from, recipient=recipient, octets=octets, stream=stream)
        letter.check()
        journal = _Journal(before_dot)
        fault = self._nowhere(letter)
        for _ in self._lanes:
            lane = self._choose(letter)
            if lane is None:
                break
            try:
                reply = await self._through(lane, letter, journal)
            except RelayUnusable as unusable:
                fault = unusable
                if journal.is_written:
                    break
            else:
                return RelayResult(relay=lane.spec.name, reply=reply)
        raise fault

    async def _through(self, lane: _Lane, letter: Letter, journal: _Journal) -> Reply:
        pause = lane.paused_until
        lane.is_probed = is_probe = lane.failures > 0
        try:
            reply = await lane.transport.transact(letter, journal.before_dot)
        except StepFailed as failure:
            verdict = self._judge(lane, letter, failure)
            if isinstance(verdict, RelayUnusable):
                self._pause(lane, pause, str(verdict))
            else:
                self._resume(lane, pause)
            raise verdict from failure
        except OutcomeUnknown as unknown:
            self._pause(lane, pause, str(unknown))
            raise
        finally:
            if is_probe:
                lane.is_probed = False
                self._changed.set()
        self._resume(lane, pause)
        return reply

    def _choose(self, letter: Letter) -> _Lane | None:
        """Smooth weighted round robin over the usable relays."""
        now = self._clock()
        usable = [
            lane
            for lane in self._lanes
            if lane.spec.serves(letter.stream, letter.mail_from) and lane.usable_at(now) <= now
        ]
        if not usable:
            return None
        for lane in usable:
            lane.credit += lane.spec.weight
        chosen = max(usable, key=lambda lane: lane.credit)
        chosen.credit -= sum(lane.spec.weight for lane in usable)
        return chosen

    def _judge(self, lane: _Lane, letter: Letter, failure: StepFailed) -> Deferred | Refused | RelayUnusable:
        verdict = judge(failure, relay=lane.spec.name)
        halfway = not failure.step.is_opening and failure.lost_connection
        if halfway and isinstance(verdict, RelayUnusable) and self._is_suspect(letter):
            return Deferred(as_transient(failure), relay=lane.spec.name, owner=FaultOwner.DOMAIN)
        return verdict

    def _is_suspect(self, letter: Letter) -> bool:
        key = hash((letter.mail_from, letter.recipient, letter.octets))
        if self._suspects.pop(key, 0):
            return True
        if len(self._suspects) >= _SUSPECTS:
            self._suspects.clear()
        self._suspects[key] = 1
        return False

    def _pause(self, lane: _Lane, pause: datetime | None, why: str) -> None:
        if lane.paused_until is not pause:
            return  # many sends fail at once when a relay goes: one pause, not one each
        seconds = min(
            self._limits.first_pause_seconds * 2 ** min(lane.failures, 16), self._limits.longest_pause_seconds
        )
        lane.failures += 1
        lane.why = why
        lane.paused_until = self._clock() + timedelta(seconds=seconds)
        self._log.relay_paused(lane.spec.name, seconds=seconds, why=why)

    def _resume(self, lane: _Lane, pause: datetime | None) -> None:
        lane.is_proven = True
        if not lane.failures or lane.paused_until is not pause:
            return  # an old connection's success proves nothing about a relay paused since
        lane.failures = 0
        lane.paused_until = None
        self._changed.set()
        self._log.relay_resumed(lane.spec.name)

    def _nowhere(self, letter: Letter) -> RelayUnusable:
        if any(lane.spec.serves(letter.stream, letter.mail_from) for lane in self._lanes):
            text = "every relay is paused: " + "; ".join(f"{item.relay}: {item.why}" for item in self.paused)
        else:
            text = f"no relay serves stream {letter.stream} from {letter.mail_from or '<>'}"
        return RelayUnusable(Reply.from_peer(451, f"4.4.1 {text}"), relay="")


class _Journal:
    """Remembers whether `before_dot` wrote: from then on no other relay may be tried in the same attempt."""

    def __init__(self, before_dot: BeforeDot) -> None:
        self._before_dot = before_dot
        self.is_written = False

    async def before_dot(self) -> None:
        await self._before_dot()
        self.is_written = True
