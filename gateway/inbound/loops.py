"""Mail that goes in circles: what was here before and comes back, known by what it carries.

Own marks: the trace header on everything a machine of ours wrote, and a Delivered-To of the same recipient between two
Received: it came here once by what is below, and again by what is above.  The one that our mail server adds to this very
delivery stands above the last hop or right below it, with no hop between.  The number of hops is the intake's business.
Looks at the raw header only, leniently: whoever mends a line must not hide a mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gateway.inbound.router import recipient_key
from gateway.mail.loop_guard import TRACE_HEADER

_MAX_HEADER_BYTES = 100 * 1024
_LINE = re.compile(
    rb"^(received|delivered-to|" + TRACE_HEADER.lower().encode() + rb")[ \t]*:[ \t]*([^\r\n]{0,320})",
    re.IGNORECASE | re.MULTILINE,
)


def marks_of(octets: bytes) -> tuple[tuple[str, str], ...]:
    """The marks of a mail, (`trace` or `delivered-to`, value); nothing of them depends on the recipient."""
    end = re.search(rb"\r?\n\r?\n", octets[: _MAX_HEADER_BYTES + 4])
    header = octets[: end.start() if end else _MAX_HEADER_BYTES]
    return tuple(_marks(header))


def _marks(header: bytes) -> Iterator[tuple[str, str]]:
    has_travelled = False
    between: list[str] = []
    for found in _LINE.finditer(header):
        name, value = found[1].lower(), found[2].decode("utf-8", "replace").strip(" \t<>")
        if name == TRACE_HEADER.lower().encode():
            yield "trace", value
        elif name == b"received":
            yield from (("delivered-to", address) for address in between)
            has_travelled, between = True, []
        elif has_travelled:
            between.append(value)


def loop_in(marks: tuple[tuple[str, str], ...], rcpt_to: str) -> str:
    """Why the mail has been here before, '' when nothing says so."""
    for kind, value in marks:
        if kind == "trace":
            return "a mail loop: a machine of ours wrote it, and it came back"
        if recipient_key(value) == recipient_key(rcpt_to):
            return "a mail loop: it was delivered to this address before"
    return ""
