"""Bodies without their transfer encoding (RFC 2045, section 6): base64, quoted-printable, uuencode, whatever is left of them.

Promise: always octets; what was damaged is noted in the scan's defects.
"""

from __future__ import annotations

import base64
import binascii
import quopri
import re

from gateway.mail.parse import headers, uuencode
from gateway.mail.parse.guards import TooComplex
from gateway.mail.parse.structure import Part, Scan

_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_MENDED_HERE = 64 * 1024  # beyond it the cage mends
_MANY_PIECES = 100
_SOFT_BREAK = re.compile(rb"=[ \t]+(?=\r?\n)")
# A footer that somebody wrote behind base64, or a text that never was encoded: a rule, or three short words.
_WORDS = re.compile(rb"^(?:--|__|\S{1,15}[ \t]{1,4}\S{1,15}[ \t]{1,4}\S)", re.MULTILINE)
_IDENTITY = frozenset({"", "7bit", "8bit", "binary"})
_UUENCODED = frozenset({"x-uuencode", "uuencode", "x-uue", "uue"})


def decoded(leaf: Part, scan: Scan) -> bytes:
    """The leaf's octets without their transfer encoding."""
    body = scan.octets[leaf.start : leaf.end]
    # The first word is the encoding; some mailers add a comment, a semicolon or quotes.
    encoding = re.split(r"[\s;(]", headers.clean(leaf.value("content-transfer-encoding")).strip('"'))[0].lower()
    if leaf.content_type == "message/rfc822" and encoding != "base64":
        return body
    if encoding == "base64":
        octets = scan.clean_base64(body) if scan.clean_base64 else None
        if octets is None and scan.clean_base64 and len(body) > _MENDED_HERE:
            raise TooComplex("large damaged base64")
        return _base64(body, leaf, scan) if octets is None else octets
    if encoding == "quoted-printable":
        if scan.clean_base64 and len(body) > _MENDED_HERE:
            raise TooComplex("much quoted-printable")
        return quopri.decodestring(_SOFT_BREAK.sub(b"=", body))
    if encoding in _UUENCODED:
        return _uuencoded(body, scan)
    if encoding not in _IDENTITY:
        scan.defects.append(f"unknown transfer encoding {encoding[:40]!r}")
    return body


def _base64(body: bytes, leaf: Part, scan: Scan) -> bytes:
    """Decodes base64 whatever stands between the letters; words behind it belong to a text, and to nothing else."""
    try:
        return base64.b64decode(body.translate(None, b"\r\n"), validate=True)
    except (binascii.Error, ValueError):
        scan.defects.append("damaged base64")
    found = _WORDS.search(body)
    words = found.start() if found else len(body)
    octets = _mended_base64(body[:words].translate(None, b"\r\n"))
    if words == len(body) or not leaf.content_type.startswith("text/"):
        return octets
    return octets + (b"\n" if octets and not octets.endswith(b"\n") else b"") + body[words:]


def _mended_base64(letters: bytes) -> bytes:
    """What the letters carry; a rest of one letter carries nothing."""
    if letters.count(b"=") > _MANY_PIECES:
        return _base64_piece(_NOT_BASE64.sub(b"", letters))
    # Padding inside marks two encoded pieces put together: each ends where it says.
    pieces = (_NOT_BASE64.sub(b"", piece) for piece in re.split(rb"=+", letters))
    return b"".join(_base64_piece(piece) for piece in pieces)


def _base64_piece(letters: bytes) -> bytes:
    if len(letters) % 4 == 1:
        letters = letters[:-1]
    return base64.b64decode(letters + b"=" * (-len(letters) % 4))


def _uuencoded(body: bytes, scan: Scan) -> bytes:
    text = body.decode("latin-1").replace("\r\n", "\n")
    _, files = uuencode.take_out(text if text.endswith("\n") else text + "\n")
    if not files:
        scan.defects.append("damaged uuencode")
    return files[0][1] if files else body
