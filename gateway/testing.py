"""For authors of mailboxes: a mail as the gateway would hand it over, and a mailbox run against it.

    from gateway import testing

    async def test_a_greeting_is_kept():
        mail = await testing.mail("Nice place!", subject="Hello")
        outcome = await testing.receive(Guestbook(), mail)
        assert outcome.title == "Hello"

The mail goes through the gateway's own parser, sanitiser and type detection; no queue, no store, no files.
Limit: it is read in this process, without the cage that guards the gateway: for mails you made or trust.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from gateway.inbound.attachments import typed
from gateway.inbound.mailbox import Context, Discard, Forward, Hold, Mailbox, Outcome, Post, ReceivedMail, Refuse
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.mail.parse import parse

__all__ = [
    "Context",
    "Discard",
    "Forward",
    "Hold",
    "Mailbox",
    "Outcome",
    "Post",
    "ReceivedMail",
    "Refuse",
    "mail",
    "read",
    "receive",
]

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


class _OpenCage:
    """Runs the gateway's jobs in this process, without limits."""

    async def run(
        self,
        job: str,
        request: dict[str, Any],
        octets: bytes = b"",
        *,
        cpu_seconds: float | None = None,
        wall_seconds: float | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        module, _, name = job.partition(":")
        work = getattr(importlib.import_module(module), name)
        answer: tuple[dict[str, Any], bytes] = await asyncio.to_thread(work, request, octets)
        return answer


async def mail(
    text: str = "",
    *,
    subject: str = "",
    html: str = "",
    attachments: Mapping[str, bytes] | None = None,
    from_: str = "Ann <ann@example.org>",
    mail_from: str = "ann@example.org",
    to: str = "posts@localhost",
    headers: Mapping[str, str] | None = None,
) -> ReceivedMail:
    """A mail made of its parts; `attachments` are octets by file name, in order."""
    message = EmailMessage()
    message["From"] = from_
    message["To"] = to
    message["Subject"] = subject
    message["Message-ID"] = f"<{new_id()}@example.org>"
    for name, value in (headers or {}).items():
        message[name] = value
    message.set_content(text)
    if html:
        message.add_alternative(html, subtype="html")
    for filename, octets in (attachments or {}).items():
        message.add_attachment(octets, maintype="application", subtype="octet-stream", filename=filename)
    crlf = message.as_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return await read(crlf, mail_from=mail_from, to=to)


async def read(
    source: bytes | Path, *, mail_from: str = "ann@example.org", to: str = "posts@localhost"
) -> ReceivedMail:
    """The mail in an .eml file (or its octets), as it would come to `to`; raises TooComplex for what would be held."""
    octets = source if isinstance(source, bytes) else source.read_bytes()
    envelope = Envelope(mail_id=new_id(), mail_from=mail_from, rcpt_to=(to,), received_at=NOW, door="testing")
    cage = _OpenCage()
    parsed = await parse(octets, cage)
    attachments = await typed(parsed.attachments, cage)
    return ReceivedMail(envelope=envelope, rcpt_to=to, parsed=parsed, attachments=attachments)


async def receive(mailbox: Mailbox, mail: ReceivedMail, *, now: datetime = NOW, is_released: bool = False) -> Outcome:
    """What the mailbox decides; what it raises comes out (the gateway would retry), a non-outcome is a TypeError."""
    bare = mail.rcpt_to.rpartition("@")
    address = f"{bare[0].partition('+')[0]}@{bare[2]}"
    kind = f"{type(mailbox).__module__}:{type(mailbox).__name__}"
    context = Context(mailbox=kind, address=address, now=now, is_released=is_released)
    outcome = await mailbox.receive(mail, context)
    if not isinstance(outcome, Outcome):
        raise TypeError(f"{kind} answered {type(outcome).__name__}, which is no outcome")
    return outcome
