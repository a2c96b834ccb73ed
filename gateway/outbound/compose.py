"""Our own writer of emails (RFC 5322, RFC 2045-2047, RFC 2231): from a request and its rendered parts to exact octets.

Shape: mixed(related(alternative(text, html), inline images), attachments), each level only where it is needed.
Promises: CRLF only, no NUL, no line over 998 octets; Bcc is never written; no value can start a header: control characters
become spaces before encoding, and `verify` reads the result back with the standard library's parser and compares every
header, address and file name with the request before anyone stores the octets.
Limit: UTF-8 stands raw only in local parts that have no other form (RFC 6532); such octets need a relay with SMTPUTF8.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.header import decode_header
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import compat32
from email.utils import format_datetime, getaddresses
from inspect import signature
from urllib.parse import quote

from gateway.contract.email_send import Attachment, SendEmail
from gateway.errors import PermanentFailure
from gateway.mail.addresses import Address, parse_address, wire_mailbox
from gateway.mail.mime_writer import (
    LINE,
    MAX_LINE,
    address_line,
    base64_lines,
    multipart,
    neutral,
    text_line,
    text_part,
)

NO_RECIPIENTS_SHOWN = "undisclosed-recipients:;"
_PLAIN_FILENAME = re.compile(r"[A-Za-z0-9._+()@-]+(?: [A-Za-z0-9._+()@-]+)*")
_MESSAGE_ID = re.compile(r"<[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9.:\[\]-]+>")
_PART_HEADERS = {"content-type", "content-transfer-encoding", "content-disposition", "content-id"}
_HEADER_PARSER = BytesHeaderParser(policy=compat32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What the template (or the app itself) made: `html` is '' for a text-only email."""

    subject: str
    text: str
    html: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What the gateway adds to each email: minted once, the same in every attempt."""

    message_id: str
    date: datetime
    default_from: str


def compose(
    request: SendEmail,
    rendered: Rendered,
    *,
    message_id: str,
    date: datetime,
    default_from: str,
    blobs: Mapping[str, bytes],
) -> bytes:
    """Writes the email; `blobs` holds the octets of attachments given by digest. Raises PermanentFailure."""
    if not _MESSAGE_ID.fullmatch(message_id):
        raise ValueError(f"{message_id!r} is not a Message-ID")
    stamp = Stamp(message_id=message_id, date=date, default_from=default_from)
    head = [address_line(name, addresses) for name, addresses in _addresses(request, stamp) if addresses]
    if not request.to and not request.cc:
        head.insert(1, b"To: " + NO_RECIPIENTS_SHOWN.encode())
    head.append(text_line("Subject", neutral(rendered.subject)))
    head.append(b"Date: " + format_datetime(date).encode())
    head.append(b"Message-ID: " + message_id.encode())
    head.append(b"MIME-Version: 1.0")
    head.extend(text_line(name, neutral(value)) for name, value in request.headers.items())
    octets = b"\r\n".join(head) + b"\r\n" + _body(request, rendered, blobs, seed=message_id)
    verify(octets, request, rendered, stamp)
    return octets


# Headers


def _addresses(request: SendEmail, stamp: Stamp) -> list[tuple[str, list[Address]]]:
    return [
        ("From", [parse_address(request.from_ or stamp.default_from)]),
        ("To", request.addresses("to")),
        ("Cc", request.addresses("cc")),
        ("Reply-To", request.addresses("reply_to")),
    ]


# Body


def _body(request: SendEmail, rendered: Rendered, blobs: Mapping[str, bytes], *, seed: str) -> bytes:
    parts = [text_part("plain", rendered.text)]
    if rendered.html:
        parts.append(text_part("html", rendered.html))
    body = multipart("alternative", parts, seed)
    inline = [item for item in request.attachments if item.inline and rendered.html]
    if inline:
        kind = 'related; type="multipart/alternative"'
        body = multipart(kind, [body, *(_file_part(item, blobs) for item in inline)], seed)
    attached = [item for item in request.attachments if item not in inline]
    return multipart("mixed", [body, *(_file_part(item, blobs) for item in attached)], seed)


def _file_part(item: Attachment, blobs: Mapping[str, bytes]) -> bytes:
    octets = blobs[item.blob] if item.blob is not None else item.octets()
    content_type = item.content_type.lower()
    if content_type.startswith(("multipart/", "message/")):  # neither may be base64 (RFC 2045, section 6.4)
        content_type = "application/octet-stream"
    lines = [
        f"Content-Type: {content_type};\r\n {_name_parameter(item.filename)}",
        "Content-Transfer-Encoding: base64",
        f"Content-Disposition: {'inline' if item.inline else 'attachment'};\r\n {_filename_parameter(item.filename)}",
    ]
    if item.inline:
        lines.append(f"Content-ID: <{quote(item.filename, safe='@+')}>")
    return "\r\n".join([*lines, "", ""]).encode() + base64_lines(octets)


def _filename_parameter(filename: str) -> str:
    """`filename=` where it is plain, otherwise RFC 2231: percent-encoded UTF-8, continued where it is long."""
    if _PLAIN_FILENAME.fullmatch(filename) and len(filename) <= LINE - 15:
        return f'filename="{filename}"'
    segments, segment = [], ""
    for character in filename:
        coded = quote(character, safe="")
        if len(segment) + len(coded) > LINE - 25:
            segments.append(segment)
            segment = ""
        segment += coded
    segments.append(segment)
    if len(segments) == 1:
        return f"filename*=utf-8''{segment}"
    segments[0] = "utf-8''" + segments[0]
    return ";\r\n ".join(f"filename*{number}*={part}" for number, part in enumerate(segments))


def _name_parameter(filename: str) -> str:
    """An ASCII likeness in `name=`, for readers that know no RFC 2231."""
    ascii_name = unicodedata.normalize("NFKD", filename).encode("ascii", "ignore").decode()
    likeness = re.sub(r"[^A-Za-z0-9._+()@ -]", "_", ascii_name).strip() or "file"
    return f'name="{likeness[-LINE + 10 :].lstrip()}"'


# Reading back


def verify(octets: bytes, request: SendEmail, rendered: Rendered, stamp: Stamp) -> None:
    """Reads the octets with another parser and compares; raises PermanentFailure where anything differs."""
    if not octets.count(b"\r\n") == octets.count(b"\r") == octets.count(b"\n") or b"\0" in octets:
        raise _unfaithful("line ends")
    if max(map(len, octets.split(b"\r\n"))) > MAX_LINE:
        raise _unfaithful("line length")
    head = _HEADER_PARSER.parsebytes(octets[: octets.find(b"\r\n\r\n") + 4])
    expected = _expected(request, rendered, stamp)
    found = [(name, value) for name, value in _decoded(head) if name.lower() not in _PART_HEADERS]
    if sorted(found) != sorted(expected):
        differing = {name for name, _ in set(found) ^ set(expected)}
        raise _unfaithful(", ".join(sorted(differing)) or "number of headers")
    _verify_parts(octets, request)


def _expected(request: SendEmail, rendered: Rendered, stamp: Stamp) -> list[tuple[str, str]]:
    expected = [
        (name, _shown((neutral(address.name), wire_mailbox(address.mailbox)) for address in addresses))
        for name, addresses in _addresses(request, stamp)
        if addresses
    ]
    if not request.to and not request.cc:
        expected.append(("To", NO_RECIPIENTS_SHOWN))
    return [
        *expected,
        ("Subject", neutral(rendered.subject)),
        ("Date", format_datetime(stamp.date)),
        ("Message-ID", stamp.message_id),
        ("MIME-Version", "1.0"),
        *((name, neutral(value)) for name, value in request.headers.items()),
    ]


def _decoded(head: Message) -> Iterable[tuple[str, str]]:
    for name, raw in head.raw_items():
        value = re.sub(r"\r\n(?=[ \t])", "", str(raw)).encode("ascii", "surrogateescape").decode()
        if name in {"From", "To", "Cc", "Reply-To"} and value.strip() != NO_RECIPIENTS_SHOWN:
            yield name, _shown((_decode(display), mailbox) for display, mailbox in _addresses_in(value))
        else:
            yield name, _decode(value.strip(" "))


def _addresses_in(value: str) -> list[tuple[str, str]]:
    # The stdlib's strict reading, where a Python has it, takes address literals for an attack and returns nothing.
    if "strict" in signature(getaddresses).parameters:
        return getaddresses([value], strict=False)  # type: ignore[call-arg,unused-ignore]
    return getaddresses([value])


def _decode(value: str) -> str:
    return "".join(
        part.decode(charset or "utf-8") if isinstance(part, bytes) else part for part, charset in decode_header(value)
    )


def _shown(pairs: Iterable[tuple[str, str]]) -> str:
    return repr(list(pairs))


def _verify_parts(octets: bytes, request: SendEmail) -> None:
    """Every part's head: only the headers a part has, and the file names in their order."""
    names = []
    for part in octets.split(b"\r\n--=_")[1:]:
        _, _, rest = part.partition(b"\r\n")
        parsed = _HEADER_PARSER.parsebytes(rest[: rest.find(b"\r\n\r\n") + 2])
        if not {name.lower() for name in parsed} <= _PART_HEADERS:
            raise _unfaithful("a part's headers")
        filename = parsed.get_filename()
        if filename is not None and parsed.get("Content-Disposition") is not None:
            names.append(filename)
    if sorted(names) != sorted(item.filename for item in request.attachments):
        raise _unfaithful("file names")


def _unfaithful(what: str) -> PermanentFailure:
    return PermanentFailure(f"the composed email does not read back as meant: {what}")
