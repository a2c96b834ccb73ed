"""The fast path: benign mail read in this process, without the cage's two copies and its round trip.  Home of fast-mail-parser.

Flow: `read` answers the tree the fallback would, or None when the mail is for the cage: beyond FAST_LIMITS, a container
format inside, or anything unexpected at all (a Rust panic is a BaseException and is caught).
What it uses the Rust library for is large base64 bodies, five times as fast as the stdlib, and strict: any odd octet is an
error there, and our own decoding has the word.  It does not use the library's tree: of the 48 mails of CPython's own tests
12 come out otherwise (parts without header, missing boundaries, broken base64), it keeps no raw header, so encoded words
are decoded before anybody can take an address list apart, and octets without a charset are lost.
Limit: nothing here can be killed; FAST_LIMITS are the guard.  The dearest mail found within them took 65 ms, the dearest
of up to 64 KiB 31 ms.
"""

from __future__ import annotations

import importlib
import sys

from gateway.mail.parse.guards import Limits, check
from gateway.mail.parse.harvest import read_mail
from gateway.mail.parse.structure import Scan, split_header, without_envelope_line
from gateway.mail.parse.tree import ParsedMail

FAST_LIMITS = Limits(
    mail_bytes=16 * 2**20,
    header_bytes=32 * 1024,
    header_lines=400,
    all_headers_bytes=128 * 1024,
    parameters=40,
    parts=200,
    depth=12,
    boundary_lines=4_000,
    all_text_octets=256 * 1024,
    html_tags=4_000,
    html_depth=100,
    html_tag_characters=4_096,
    openings=600,
    containers=False,
)
_WORTH_RUST = 4 * 1024
_BLANKS = (b" ", b"\t", b"\x0b", b"\x0c")  # the library passes over them, where we note a defect
_NATIVE = ("nh3", "turbohtml", "chardetng_py", "fast_mail_parser")
_ONE_PART = b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n"


def read(octets: bytes) -> ParsedMail | None:
    """The mail, or None when it is for the cage."""
    try:
        check(octets, FAST_LIMITS)
        return read_mail(
            Scan(
                octets=without_envelope_line(octets),
                limits=FAST_LIMITS,
                read_header=split_header,
                clean_base64=clean_base64,
            )
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - whatever it was (a limit, a Rust panic, our own mistake), the cage has the word
        return None


def is_warm() -> bool:
    """Whether the native libraries are loaded: a tenth of a second, which is nothing for an event loop."""
    return all(name in sys.modules for name in _NATIVE)


def warm() -> None:
    """Loads them; for a thread."""
    for name in _NATIVE:
        importlib.import_module(name)


def clean_base64(body: bytes) -> bytes | None:
    """The octets of faultless base64; None when it is short, or has anything but letters, line ends and padding."""
    if len(body) < _WORTH_RUST or any(blank in body for blank in _BLANKS):
        return None
    if body.find(b"=", 0, len(body.rstrip(b"\r\n="))) >= 0:  # two pieces put together: the library may accept that
        return None
    from fast_mail_parser import ParseError, parse_email

    try:
        (part,) = parse_email(_ONE_PART + body, strict=True).attachments
    except (ParseError, ValueError):
        return None
    return part.content
