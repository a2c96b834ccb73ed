"""Limits on a mail's octets, checked before and while anything parses them.

`check` looks at the raw octets only (searches, no parsing): 4 ms a megabyte, so a large mail's is for a thread; what needs the
structure (parts, depth, parameters) is counted by `structure.scan` inside the cage against the same Limits.
Promise: a mail beyond a limit raises TooComplex naming it; it is then held with its octets, never dropped.
Limit: a mail within all limits may still be slow to parse; the cage's budget of time and memory is the last word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_OPENINGS = (b"=?", b'"', b"(", b"<", b",", b"[", b"\\")
_STRETCH_BYTES = 1024 * 1024
_HEADER_END = re.compile(rb"\r?\n\r?\n|\r\r")


class TooComplex(ValueError):
    """The mail is beyond a limit; the text names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Real mail stays far below all of these; bombs do not.

    `openings` counts what makes grammars look ahead in the first header: encoded words, quotes, comments, brackets, commas.
    """

    mail_bytes: int = 40 * 1024 * 1024
    header_bytes: int = 100 * 1024
    header_lines: int = 2_000
    all_headers_bytes: int = 2 * 1024 * 1024
    parameters: int = 200
    parts: int = 1_000
    depth: int = 30
    boundary_lines: int = 100_000
    text_characters: int = 2 * 1024 * 1024
    all_text_octets: int = 16 * 1024 * 1024
    html_tags: int = 1_000_000
    html_depth: int = 5_000
    html_tag_characters: int = 16 * 1024 * 1024  # attributes cost the square of their number
    openings: int = 1_000_000
    containers: bool = True  # whether TNEF may be taken apart


DEFAULT_LIMITS = Limits()


def check(octets: bytes, limits: Limits = DEFAULT_LIMITS) -> None:
    """Raises TooComplex when the mail, its header or its count of boundary-like lines is beyond the limits."""
    if len(octets) > limits.mail_bytes:
        raise TooComplex(f"{len(octets)} bytes, at most {limits.mail_bytes}")
    header = header_block(octets, 0, len(octets), limits)
    if octets.count(b"\n", 0, header) > limits.header_lines:
        raise TooComplex(f"more than {limits.header_lines} header lines")
    if sum(octets.count(sign, 0, header) for sign in _OPENINGS) > limits.openings:
        raise TooComplex(f"more than {limits.openings} openings in the header")
    if _boundary_lines(octets) > limits.boundary_lines:
        raise TooComplex(f"more than {limits.boundary_lines} lines like part boundaries")


def _boundary_lines(octets: bytes) -> int:
    """Counted stretch by stretch: one search of 35 MB keeps every other thread from running for a tenth of a second."""
    stretches = range(0, len(octets), _STRETCH_BYTES)
    return sum(octets.count(b"\n--", at, at + _STRETCH_BYTES + 2) for at in stretches)


def header_block(octets: bytes, start: int, end: int, limits: Limits) -> int:
    """Returns where the header that begins at `start` ends (its last line end included, the empty line not)."""
    if octets[start : start + 1] == b"\n" or octets[start : start + 2] == b"\r\n":
        return start
    found = _HEADER_END.search(octets, start, min(end, start + limits.header_bytes + 4))
    if found:
        first = octets.find(b"\n", found.start(), found.end())
        return (first if first >= 0 else found.start()) + 1
    if end - start > limits.header_bytes:
        raise TooComplex(f"a header of more than {limits.header_bytes} bytes")
    return end
