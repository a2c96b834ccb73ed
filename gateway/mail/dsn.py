"""How a notice is written: `multipart/report` (RFC 3462, RFC 3464): words for people, facts for machines, their headers.

    multipart/report; report-type=delivery-status
      multipart/alternative     text/plain, text/html: what happened, in the reader's language
      message/delivery-status   one block for the mail, one for the recipient
      text/rfc822-headers       the header of the mail in question, never its body

A notice without a report (a digest, a word to an app's people) is the alternative alone.
Promises: `Auto-Submitted: auto-replied` (RFC 3834) and our trace header always; no value of a peer starts a line; ASCII only.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from typing import Literal

from gateway.mail.addresses import Address, wire_mailbox
from gateway.mail.loop_guard import TRACE_HEADER
from gateway.mail.mime_writer import MAX_LINE, address_line, folded, multipart, neutral, text_line, text_part

_MAX_FIELD = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A notice's own header; `answers` is the Message-ID of the mail it speaks of, '' for none."""

    id: str
    from_: Address
    to: str
    subject: str
    date: datetime
    hostname: str
    answers: str = ""

    @property
    def message_id(self) -> str:
        return f"<{self.id}@{self.hostname}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The facts for machines (RFC 3464, section 2); `headers` are octets of the mail in question."""

    recipient: str
    action: Literal["failed", "delayed", "delivered"]
    status: str
    arrived_at: datetime
    log_id: str
    headers: bytes
    diagnostic: str = ""
    last_attempt_at: datetime | None = None
    retried_until: datetime | None = None


def write_notice(head: Head, *, text: str, html: str, report: Report | None = None) -> bytes:
    """The octets of a notice, ready for a relay."""
    body = multipart("alternative", [text_part("plain", text), text_part("html", html)], head.id)
    if report is not None:
        parts = [body, _status_part(head, report), _headers_part(report.headers)]
        body = multipart("report; report-type=delivery-status", parts, head.id)
    lines = [
        address_line("From", [head.from_]),
        address_line("To", [Address(mailbox=head.to)]),
        text_line("Subject", neutral(head.subject)),
        b"Date: " + format_datetime(head.date).encode(),
        b"Message-ID: " + head.message_id.encode(),
        b"Auto-Submitted: auto-replied",
        f"{TRACE_HEADER}: {head.id}".encode(),
        b"MIME-Version: 1.0",
    ]
    if head.answers:
        lines += [folded("In-Reply-To", [head.answers]), folded("References", [head.answers])]
    return b"\r\n".join(lines) + b"\r\n" + body


def _status_part(head: Head, report: Report) -> bytes:
    message = [
        ("Reporting-MTA", f"dns; {head.hostname}"),
        ("Arrival-Date", format_datetime(report.arrived_at)),
    ]
    recipient = [
        ("Final-Recipient", _typed_address(report.recipient)),
        ("Action", report.action),
        ("Status", report.status),
        ("Diagnostic-Code", f"smtp; {report.diagnostic}" if report.diagnostic else ""),
        ("Last-Attempt-Date", format_datetime(report.last_attempt_at) if report.last_attempt_at else ""),
        ("Final-Log-ID", report.log_id),
        ("Will-Retry-Until", format_datetime(report.retried_until) if report.retried_until else ""),
    ]
    blocks = [b"\r\n".join(_field(*item) for item in block if item[1]) for block in (message, recipient)]
    return b"Content-Type: message/delivery-status\r\n\r\n" + b"\r\n\r\n".join(blocks) + b"\r\n"


def _field(name: str, value: str) -> bytes:
    ascii_value = neutral(value).encode("ascii", "replace").decode()[:_MAX_FIELD]
    return folded(name, ascii_value.split(" "))


def _typed_address(mailbox: str) -> str:
    """`rfc822; ann@example.org`, or for an international local part `utf-8; …` in its ASCII form (RFC 6533, section 3)."""
    wired = wire_mailbox(mailbox) if "@" in mailbox else mailbox
    if wired.isascii():
        return f"rfc822; {wired}"
    coded = "".join(
        letter if "!" <= letter <= "~" and letter not in "\\+=" else f"\\x{{{ord(letter):02X}}}" for letter in wired
    )
    return f"utf-8; {coded}"


def _headers_part(headers: bytes) -> bytes:
    octets = b"\r\n".join(headers.replace(b"\0", b"").splitlines()) + b"\r\n"
    encoding = b"7bit"
    if not octets.isascii() or max(map(len, octets.split(b"\r\n"))) > MAX_LINE:
        encoding, octets = b"quoted-printable", binascii.b2a_qp(octets, istext=True)
    return b"Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: " + encoding + b"\r\n\r\n" + octets
