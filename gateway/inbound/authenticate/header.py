"""A mail's header read strictly, for judging who sent it: what two programs could read in two ways proves nothing here.

Other readers mend what is wrong, each in its own way; a forger lives on the difference.  So this one gives up (`Unreadable`)
on lines that are no header lines, on bare CR or LF and on NUL, and on a From that is not exactly one field with exactly one
address, in ASCII or in a form that normalising does not change.
Limit: a mail it cannot read may still be a fine mail; it is a mail of which nobody knows who wrote it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.mail.addresses import Address, parse_mailbox

MAX_HEADER_BYTES = 100 * 1024
MAX_FIELDS = 2_000
_ADDRESSES_ONCE = {"sender", "reply-to", "to", "cc", "bcc"}
_MIME_ONCE = {"mime-version", "content-type", "content-transfer-encoding", "content-disposition"}
_ONCE = frozenset({"date", "message-id", "in-reply-to", "references", "subject"} | _ADDRESSES_ONCE | _MIME_ONCE)
_FIELD = re.compile(rb"([!-9;-~]+):")
_QUOTED_NAME = re.compile(r'"(?:[^"\\\r\n]|\\.)*"')
# Dots that IDNA reads as the dot of a domain.
_OTHER_DOTS = frozenset("\u3002\uff0e\uff61")


class Unreadable(ValueError):
    """What cannot be read in one way only; the text says why, in words that fit behind "because"."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name in lower case, its value unfolded, and how many Received fields stand above it."""

    name: str
    value: str
    hop: int


@dataclass(frozen=True, slots=True)
class Header:
    """All fields in their order, and where the body begins."""

    fields: tuple[Field, ...]

    def all(self, name: str) -> list[Field]:
        return [field for field in self.fields if field.name == name]

    def repeated(self) -> dict[str, int]:
        """The fields that must stand once and stand more often (RFC 5322, section 3.6; RFC 2045), and how often.

        Programs differ in which one they show, so a signature over one of them lets anybody write what is read.
        """
        counted = Counter(field.name for field in self.fields if field.name in _ONCE)
        return {name: count for name, count in counted.items() if count > 1}

    def author(self) -> str:
        """The one address of the one From field, as people are compared; raises Unreadable."""
        found = self.all("from")
        if len(found) != 1:
            raise Unreadable(f"it has {len(found) or 'no'} From field{'s' if len(found) > 1 else ''}")
        return one_address(found[0].value).key


def read_header(octets: bytes) -> Header:
    """Reads the header of a mail; raises Unreadable."""
    return Header(tuple(_fields(header_lines(octets))))


def header_lines(octets: bytes) -> list[bytes]:
    """The lines of the header without their ends; raises Unreadable."""
    end = 0 if octets.startswith(b"\r\n") else octets.find(b"\r\n\r\n", 0, MAX_HEADER_BYTES + 4)
    if end < 0 and len(octets) > MAX_HEADER_BYTES:
        raise Unreadable(f"its header is longer than {MAX_HEADER_BYTES} bytes")
    block = octets[: end if end >= 0 else len(octets)].removesuffix(b"\r\n")
    lines = block.split(b"\r\n") if block else []
    if {block.count(b"\n"), block.count(b"\r")} != {max(0, len(lines) - 1)}:
        raise Unreadable("its header has a bare CR or LF")
    if b"\0" in block:
        raise Unreadable("its header has a NUL")
    return lines


def one_address(value: str) -> Address:
    """The only address of an address field, with or without a name beside it; raises Unreadable."""
    text = value.strip(" \t")
    quoted = _QUOTED_NAME.match(text)
    name = quoted[0] if quoted else text.partition("<")[0]
    rest = text[len(name) :].lstrip(" \t")
    if not rest and not quoted:
        return _address(text)
    if not (rest.startswith("<") and rest.endswith(">")):
        raise Unreadable("its From names more or less than one address")
    if not quoted and set(name) & set(',;:@"\\>'):
        raise Unreadable("its From may be read as more than one address")
    return _address(rest[1:-1].strip(" \t"))


def _address(text: str) -> Address:
    try:
        mailbox = parse_mailbox(text)
    except ValueError as error:
        raise Unreadable(f"its From is no plain address: {error}") from None
    domain = mailbox.rpartition("@")[2]
    is_same = mailbox == text and unicodedata.normalize("NFKC", domain) == domain
    if not is_same or _OTHER_DOTS & set(domain) or domain.startswith("["):
        raise Unreadable("its From is written in a way that looks like another address")
    local, _, ascii_domain = Address(mailbox=mailbox).key.rpartition("@")
    return Address(mailbox=f"{local.lower() if local.isascii() else local}@{ascii_domain}")


def _fields(lines: list[bytes]) -> Iterator[Field]:
    hop = 0
    for name, value in _unfolded(lines):
        yield Field(name, value, hop)
        hop += name == "received"


def _unfolded(lines: list[bytes]) -> Iterator[tuple[str, str]]:
    if len(lines) > MAX_FIELDS:
        raise Unreadable(f"its header has more than {MAX_FIELDS} lines")
    name, pieces = "", [b""]
    for line in lines:
        if line[:1] in (b" ", b"\t") and name:
            pieces.append(line)
            continue
        if name:
            yield name, _text(pieces)
        found = _FIELD.match(line)
        if found is None:
            raise Unreadable("a line of its header is no header line")
        name, pieces = found[1].decode("ascii").lower(), [line[found.end() :]]
    if name:
        yield name, _text(pieces)


def _text(pieces: list[bytes]) -> str:
    try:
        return b"".join(pieces).decode("utf-8").strip(" \t")
    except UnicodeDecodeError:
        # Kept apart from all text: no address has a replacement character in it.
        return b"".join(pieces).decode("utf-8", "replace").strip(" \t")
