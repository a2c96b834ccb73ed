"""The intake: the one check all doors share, and the moment from which a mail is kept.

Flow: a door asks `check_room` and `check_recipient` while the client speaks, then hands over the octets; `accept` returns
the mail id when every ticket (and, beyond the threshold, the blob) is durable.  Only then may a door say 250.
Promises: the octets are kept exactly; no bare CR, LF or NUL ever gets in; one mail id however many tickets.
What a mail server of ours hands over it has taken already, and would return to whom a forger named: so nothing is refused of
it that ingest can hold (a header that is too long, too many hops, a token that is none).
Limits: a crash between the publish and the client's hearing of it lets the client send the mail again, under a new id.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from gateway.errors import PermanentFailure, QueueUnavailable, StoreUnavailable, TransientFailure
from gateway.inbound.incoming import Room
from gateway.inbound.router import Router
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.maillog import MailLog
from gateway.queue.broker import Broker
from gateway.queue.ticket import MAIL_INBOUND, Ticket
from gateway.reply import Reply
from gateway.runtime import Clock, failpoint

RECIPIENTS_PER_TICKET = 100
BLOB_THRESHOLD = 256 * 1024
_STEP_BYTES = 256 * 1024  # a look at more than that in one call would keep the event loop from its turn
_RECEIVED = re.compile(rb"^received:", re.IGNORECASE | re.MULTILINE)
_Result = TypeVar("_Result")


class Blobs(Protocol):
    """What inbound needs of the blob store."""

    async def put(self, octets: bytes) -> str: ...

    async def get(self, digest: str) -> bytes: ...

    async def exists(self, digest: str) -> bool: ...

    async def is_there(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeLimits:
    """What a mail may be, whichever door it comes through."""

    mail_bytes: int = 35 * 1024 * 1024
    header_bytes: int = 100 * 1024
    hops: int = 50
    publish_seconds: float = 60.0
    room_bytes: int = 256 * 1024 * 1024


class Intake:
    """Keeps mails on the queue; one for all doors of a process."""

    def __init__(
        self,
        router: Router,
        broker: Broker,
        blobs: Blobs,
        *,
        data_dir: Path,
        clock: Clock,
        log: MailLog,
        blob_threshold: int = BLOB_THRESHOLD,
        min_free_bytes: int = 0,
        limits: IntakeLimits | None = None,
    ) -> None:
        self._router = router
        self._broker = broker
        self._blobs = blobs
        self._data_dir = data_dir
        self._clock = clock
        self._log = log
        self._blob_threshold = blob_threshold
        self._min_free_bytes = min_free_bytes
        self._limits = limits or IntakeLimits()
        self.room = Room(self._limits.room_bytes)

    def check_recipient(self, rcpt_to: str, *, by_trusted_host: bool = False) -> None:
        """Raises PermanentFailure (unknown here, not ours to relay) or TransientFailure (may pass)."""
        if by_trusted_host:
            self._router.route(rcpt_to)
        else:
            self._router.accepts(rcpt_to)

    def check_room(self, size: int = 0) -> None:
        """Raises TransientFailure (452) when keeping `size` bytes would leave too little free space."""
        if self._min_free_bytes and shutil.disk_usage(self._data_dir).free - size < self._min_free_bytes:
            raise TransientFailure("too little free space", reply=_NO_ROOM)

    async def check_content(self, octets: bytes, *, by_trusted_host: bool = False) -> None:
        """Raises PermanentFailure for what must never be stored or sent on, and for what no honest client sends.

        In steps, with a turn for others between them: a thread would hold the interpreter as long, and less politely.
        """
        for start in range(0, len(octets), _STEP_BYTES):
            if _is_bare(octets, start):
                raise _refusal(554, "5.6.0", "a bare CR, bare LF or NUL is in the mail (RFC 5321, section 2.3.8)")
            if start:
                await asyncio.sleep(0)
        if len(octets) > self._limits.mail_bytes:
            raise _refusal(552, "5.3.4", f"the mail is larger than {self._limits.mail_bytes} bytes")
        if not by_trusted_host:
            self._check_header(octets)

    def _check_header(self, octets: bytes) -> None:
        end = 0 if octets.startswith(b"\r\n") else octets.find(b"\r\n\r\n", 0, self._limits.header_bytes + 4)
        if end < 0 and len(octets) > self._limits.header_bytes:
            raise _refusal(552, "5.3.4", f"the header is larger than {self._limits.header_bytes} bytes")
        header = octets[: end if end >= 0 else len(octets)]
        if len(_RECEIVED.findall(header)) > self._limits.hops:
            raise _refusal(554, "5.4.6", f"more than {self._limits.hops} hops: a mail loop")

    async def accept(self, envelope: Envelope, octets: bytes) -> str:
        """Keeps the mail durably and returns its id, minted here.

        Raises PermanentFailure for its content, QueueUnavailable, StoreUnavailable or TransientFailure for a fault of ours.
        """
        await self.check_content(octets, by_trusted_host=envelope.by_trusted_host)
        self.check_room(len(octets))
        envelope = replace(envelope, mail_id=new_id(), received_at=self._clock())
        tickets = await self._tickets(envelope, octets)
        failpoint("intake.published.before")
        await self._in_time(self._broker.publish(tickets), QueueUnavailable("the queue did not confirm in time"))
        failpoint("intake.published.after")
        self._log.mail_queued(
            envelope.mail_id,
            door=envelope.door,
            client=envelope.client,
            size=len(octets),
            recipients=len(envelope.rcpt_to),
        )
        return envelope.mail_id

    async def _tickets(self, envelope: Envelope, octets: bytes) -> Sequence[Ticket]:
        facts: dict[str, object] = {"size": len(octets)}
        if len(octets) > self._blob_threshold:
            late = StoreUnavailable("the blob store did not answer in time")
            facts["blob"] = blob = await self._in_time(self._blobs.put(octets), late)
            facts["sha256"] = blob.removeprefix("sha256:")
            failpoint("intake.blob_stored")
            octets = b""
        else:
            facts["sha256"] = hashlib.sha256(octets).hexdigest()
        shares = [
            envelope.rcpt_to[start : start + RECIPIENTS_PER_TICKET]
            for start in range(0, len(envelope.rcpt_to), RECIPIENTS_PER_TICKET)
        ]
        return [
            Ticket(
                queue=MAIL_INBOUND,
                id=envelope.mail_id,
                body=octets,
                content_type="message/rfc822",
                headers=replace(envelope, rcpt_to=share).to_headers() | facts,
            )
            for share in shares
        ]

    async def _in_time(self, work: Awaitable[_Result], late: TransientFailure) -> _Result:
        try:
            async with asyncio.timeout(self._limits.publish_seconds):
                return await work
        except TimeoutError:
            raise late from None


_NO_ROOM = Reply(code=452, enhanced_status="4.3.1", text="too little free space, try again later")


def _is_bare(octets: bytes, start: int) -> bool:
    """Whether a CR or LF without the other, or a NUL, begins in this step."""
    end = start + _STEP_BYTES
    returns = octets.count(b"\r", start, end)
    pairs = octets.count(b"\r\n", start, end + 1)
    # The line feeds of the step are looked for one octet later, so that each stands with its own return.
    feeds = octets.count(b"\n", start + 1 if start else 0, end + 1)
    return returns != pairs or feeds != pairs or octets.find(b"\0", start, end) >= 0


def _refusal(code: int, status: str, text: str) -> PermanentFailure:
    return PermanentFailure(text, reply=Reply(code=code, enhanced_status=status, text=text))
