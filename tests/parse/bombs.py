"""Mails made to hurt: small to send, dear to read.  `BOMBS` maps a name to a function that makes the octets.

Each is for a budget of 2 s of processor time and 256 MiB: it is parsed or held within it, and the next mail goes on.
Importable by whoever sends them through a door; all are under 4 MB.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable

from compressed_rtf import compress
from compressed_rtf.crc32 import crc32

TEXT = b"Content-Type: text/plain\r\n\r\n"
HTML = b"Content-Type: text/html; charset=utf-8\r\n\r\n"
ORDINARY = b"From: mallory@example.org\r\nSubject: a bomb\r\nMIME-Version: 1.0\r\n"


def _in_header(name: bytes, value: bytes) -> bytes:
    return ORDINARY + name + b": " + value + b"\r\n\r\nbody\r\n"


def _html(body: bytes) -> bytes:
    return ORDINARY + HTML + body


def _parts(part: bytes, count: int) -> bytes:
    return ORDINARY + b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + part * count + b"--x--\r\n"


def _nested(depth: int, kind: bytes = b"mixed") -> bytes:
    levels = (b"Content-Type: multipart/%s; boundary=b%d\r\n\r\n--b%d\r\n" % (kind, n, n) for n in range(depth))
    return ORDINARY + b"".join(levels) + TEXT + b"deep\r\n"


def _nested_mails(depth: int) -> bytes:
    return ORDINARY + b"Content-Type: message/rfc822\r\n\r\n" * depth + TEXT


def _tnef(*objects: tuple[int, int, int, bytes]) -> bytes:
    pieces = [b"\x78\x9f\x3e\x22\x01\x00"]
    for level, name, kind, data in objects:
        pieces += [struct.pack("<BHHI", level, name, kind, len(data)), data, struct.pack("<H", sum(data) & 0xFFFF)]
    head = b"Content-Type: application/ms-tnef; name=winmail.dat\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    return ORDINARY + head + base64.encodebytes(b"".join(pieces))


def _tnef_of_many_objects() -> bytes:
    return _tnef(*[(1, 0x8004, 7, b"")] * 200_000)


def _tnef_of_many_properties() -> bytes:
    return _tnef((1, 0x9003, 6, struct.pack("<I", 0xFFFFFFFF) + b"\x03\x00\x01\x00\x00\x00\x00\x00" * 100))


def _tnef_of_many_recipients() -> bytes:
    return _tnef((1, 0x9004, 6, struct.pack("<I", 0x7FFFFFFF) + b"\0" * 100))


def _tnef_of_many_values() -> bytes:
    return _tnef((1, 0x9003, 6, struct.pack("<IHHI", 1, 0x1002, 1, 0xFFFFFFF) + b"\0" * 1_000_000))


def _tnef_of_rtf(packed: bytes) -> bytes:
    """A container whose body is this compressed RTF."""
    padded = packed + b"\0" * (-len(packed) % 4)
    return _tnef((1, 0x9003, 6, struct.pack("<IHHII", 1, 0x0102, 0x1009, 1, len(packed)) + padded))


def _rtf_that_swells() -> bytes:
    """Copies of copies (MS-OXRTFCP, section 2.2): two octets make seventeen, and the size in front is a lie."""
    place, pieces = 207, []
    for _ in range(3_500):
        pieces.append(b"\xff")
        for _ in range(8):
            pieces.append(struct.pack(">H", ((place + 100) % 4096) << 4 | 15))
            place = (place + 17) % 4096
    packed = b"".join(pieces)
    return _tnef_of_rtf(struct.pack("<II4sI", len(packed) + 12, 100, b"LZFu", crc32(packed)) + packed)


def _uuencoded(count: int) -> bytes:
    return ORDINARY + TEXT + b"begin 644 a\r\n" * count + b"`\r\nend\r\n"


BOMBS: dict[str, Callable[[], bytes]] = {
    "one header of three megabytes": lambda: _in_header(b"X-Long", b"y" * 3_000_000),
    "a hundred thousand headers": lambda: ORDINARY + b"X: y\r\n" * 100_000 + b"\r\n",
    "a header of folds": lambda: _in_header(b"Subject", b"\r\n " * 30_000 + b"x"),
    "a header that never ends": lambda: b"X-A: b\r\n" * 300_000,
    "semicolons": lambda: _in_header(b"Content-Type", b"text/plain" + b";" * 90_000),
    "many parameters": lambda: _in_header(b"Content-Type", b"text/plain" + b"; a=b" * 15_000),
    "pieces of one parameter": lambda: _in_header(
        b"Content-Disposition", b"attachment" + b"".join(b"; filename*%d*=%%41" % n for n in range(4_000))
    ),
    "quotes without an end": lambda: _in_header(b"Content-Type", b"text/plain" + b'; a="' * 190 + b"\\" * 90_000),
    "nested comments": lambda: _in_header(b"From", b"(" * 45_000 + b")" * 45_000),
    "comments in a date": lambda: _in_header(b"Date", b"(" * 90_000),
    "comments in a recipient list": lambda: _in_header(b"To", b"a(b(" * 20_000),
    "groups in a recipient list": lambda: _in_header(b"To", b"g:" * 45_000),
    "routes in a recipient list": lambda: _in_header(b"To", b"<@a,@b:" * 12_000),
    "sixteen thousand recipients": lambda: _in_header(b"To", b"a@b.c," * 16_000),
    "backslashes in a name": lambda: _in_header(b"From", b'"' + b"\\" * 90_001),
    "encoded words": lambda: _in_header(b"Subject", b"=?utf-8?Q?=C3=A4?= " * 4_800),
    "openings of encoded words": lambda: _in_header(b"Subject", b"=?a?q?" * 15_000),
    "encoded words of changing charsets": lambda: _in_header(
        b"Subject", b"".join(b"=?cp%d?B?4A==?= " % (1250 + n % 8) for n in range(5_000))
    ),
    "encoded words of one mega-charset": lambda: _in_header(b"Subject", b"=?" + b"c" * 90_000 + b"?q?a?="),
    "references": lambda: _in_header(b"References", b"<a@b> " * 16_000),
    "openings of references": lambda: _in_header(b"References", b"<" * 90_000),
    "digits in a date": lambda: _in_header(b"Date", b"9" * 90_000),
    "nested multiparts": lambda: _nested(5_000),
    "nested alternatives": lambda: _nested(29, b"alternative"),
    "nested mails": lambda: _nested_mails(50_000),
    "a hundred thousand parts": lambda: _parts(b"--x\r\n\r\n\r\n", 100_000),
    "parts with large headers": lambda: _parts(b"--x\r\nX: " + b"y" * 90_000 + b"\r\n\r\n\r\n", 40),
    "nine hundred html parts": lambda: _parts(
        b"--x\r\nContent-Type: text/html\r\n\r\n" + b"<b><i>" * 100 + b"\r\n", 900
    ),
    "nearly boundaries": lambda: _parts(b"--x-\r\n", 300_000),
    "an empty boundary": lambda: ORDINARY + b'Content-Type: multipart/mixed; boundary=""\r\n\r\n' + b"--\r\n" * 300_000,
    "nearly undeclared boundaries": lambda: ORDINARY + b"Content-Type: multipart/mixed\r\n\r\n" + b"--ab\r\n" * 90_000,
    "html nested deep": lambda: _html(b"<div>" * 200_000),
    "html formatting never closed": lambda: _html(b"<b><p><i><a>" * 60_000),
    "html tables in tables": lambda: _html(b"<table><tr><td>" * 60_000),
    "html links": lambda: _html(b'<a href="http://example.org/?a=1">x</a>' * 40_000),
    "html of brackets": lambda: _html(b"<" * 1_500_000),
    "html of entities": lambda: _html(b"&amp;&#x41;&notanentity;" * 60_000),
    "html attributes": lambda: _html(b"<p " + b" ".join(b"a%d=b" % n for n in range(150_000)) + b">"),
    "html comments without an end": lambda: _html(b"<!--" * 400_000),
    "html quotes in quotes": lambda: _html(b"<blockquote>" * 100_000),
    "quoted text": lambda: ORDINARY + TEXT + b">" * 1_000_000 + b"\r\n" + b"> " * 500_000,
    "flowed quotes": lambda: (
        ORDINARY + b"Content-Type: text/plain; format=flowed\r\n\r\n" + b"> a \r\n>> b \r\n" * 90_000
    ),
    "uuencode without an end": lambda: _uuencoded(100_000),
    "uuencoded files": lambda: ORDINARY + TEXT + b"begin 644 a\r\n#86)C\r\n`\r\nend\r\n" * 60_000,
    "tnef of many objects": _tnef_of_many_objects,
    "tnef of many properties": _tnef_of_many_properties,
    "tnef of many recipients": _tnef_of_many_recipients,
    "tnef of many values": _tnef_of_many_values,
    "rtf of groups": lambda: _tnef_of_rtf(compress(rb"{\rtf1 " + b"{" * 20_000)),
    "rtf of links": lambda: _tnef_of_rtf(compress(rb"{\rtf1 " + b'{HYPERLINK "' * 2_000)),
    "rtf of letters by number": lambda: _tnef_of_rtf(compress(rb"{\rtf1 " + rb"\u1 " * 5_000)),
    "rtf that swells": _rtf_that_swells,
    "base64 junk": lambda: (
        ORDINARY + b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b"=a!" * 900_000
    ),
    "quoted-printable junk": lambda: (
        ORDINARY + b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=" * 2_000_000
    ),
    "octets of no charset": lambda: ORDINARY + TEXT + bytes(range(128, 256)) * 15_000,
    "utf-7": lambda: ORDINARY + b"Content-Type: text/plain; charset=utf-7\r\n\r\n" + b"+AAA-" * 300_000,
    "escapes of iso-2022": lambda: (
        ORDINARY + b"Content-Type: text/plain; charset=iso-2022-jp\r\n\r\n" + b"\x1b$B\x1b(B" * 200_000
    ),
}
