"""What our own mail server found out (RFC 8601): its topmost Authentication-Results, and nothing else.  Home of authres.

Believed only where a mail server of ours handed the mail over (`Envelope.by_trusted_host`), and the topmost field of the name
bears its `trusted_authserv_id`.  Each of its filters writes a field of its own, and where it stands decides how many count:
above the topmost Received (our server's) nobody else can write, so there all of them do, up to the first of another name;
right below it, where opendkim and opendmarc write, a forged one may follow ours line by line, so there the topmost counts
alone.  Fields below are hearsay, whoever they name.  The server must take such fields of strangers out (RFC 8601, section 5).
Promise: fields that cannot be read, that contradict each other, or that a sender's own words may have bent, are none.
Also home of what it says about junk: who marks his own mail as junk gets what he asks for, so any place will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import authres

from gateway.inbound.authenticate.header import Field, Header
from gateway.inbound.authenticate.result import Authentication, DmarcCheck, Result, SignatureCheck, SpfCheck
from gateway.inbound.authenticate.signatures import MAX_TOLD, tags_of
from gateway.mail.addresses import domain_to_ascii, parse_mailbox
from gateway.mail.envelope import Envelope
from gateway.mail.people import person_key

_NAME = "authentication-results"
_MAX_FIELDS = 10
_MAX_VALUE = 4 * 1024
_MAX_COMMENTS = 50
_BENDING = re.compile(r"[^A-Za-z0-9@.+_\[\]:/-]")
MAX_JUNK_HEADER_BYTES = 1024 * 1024
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_FIELD = re.compile(rb"^([!-9;-~]{1,100})[ \t]*:(?:[ \t]|\r?\n[ \t]){0,50}([^\r\n]{0,80})", re.MULTILINE)
_YES = re.compile(r"(?:yes|true|1)\b", re.IGNORECASE)


def own_results(header: Header, authserv_id: str) -> list[Field]:
    """The fields our server wrote, as far as nobody else can have."""
    found = header.all(_NAME)
    if not found or found[0].hop > 1 or not _is_of(authserv_id, found[0]):
        return []
    is_bounded = found[0].hop == 0 and bool(header.all("received"))
    if not is_bounded:
        return found[:1]
    return list(takewhile(lambda field: field.hop == 0 and _is_of(authserv_id, field), found))


def _is_of(authserv_id: str, field: Field) -> bool:
    named = field.value.partition(";")[0].split()
    return named[:1] != [] and named[0].lower() == authserv_id.lower()


def read_results(fields: Sequence[Field], header: Header, envelope: Envelope) -> Authentication | None:
    """What they say together; None when they cannot be read, or when the sender's own words could have written part of it."""
    if any(_BENDING.search(text) for text in _senders_words(header, envelope)):
        return None
    if len(fields) > _MAX_FIELDS or any(map(_is_beyond_measure, fields)):
        return None
    try:
        results = [
            item for field in fields for item in authres.AuthenticationResultsHeader.parse_value(field.value).results
        ]
        spf = [_spf(item) for item in results if item.method == "spf"]
        signatures = [_signature(item) for item in results if item.method == "dkim"]
        dmarcs = {_dmarc(item) for item in results if item.method == "dmarc"}
        logins = {_login(item) for item in results if item.method == "auth"}
    # Broad: the library raises SyntaxError, RecursionError and others for what it cannot read.
    except Exception:  # noqa: BLE001
        return None
    if len(dmarcs) > 1 or len(logins) > 1:
        return None
    return Authentication(
        source="mta",
        spf=_agreed([item for item in spf if item.identity == "mailfrom"]) or SpfCheck(),
        helo=_agreed([item for item in spf if item.identity == "helo"]) or SpfCheck(identity="helo"),
        dkim=tuple(signatures[:MAX_TOLD]),
        dmarc=next(iter(dmarcs), DmarcCheck()),
        login=next(iter(logins), ""),
    )


def _senders_words(header: Header, envelope: Envelope) -> Iterator[str]:
    """What a filter writes into its field as it came: names of the envelope, and those of signatures."""
    yield from (envelope.mail_from, envelope.helo)
    for field in header.all("dkim-signature"):
        try:
            tags = tags_of(field.value)
        except ValueError:
            yield ";"  # nobody knows what a filter read there
            continue
        yield from (tags.get(name, "") for name in ("d", "i", "s"))


def _is_beyond_measure(field: Field) -> bool:
    return len(field.value) > _MAX_VALUE or field.value.count("(") > _MAX_COMMENTS


def _agreed(checks: Sequence[SpfCheck]) -> SpfCheck | None:
    """What several filters found of one identity: it passes where all of them say so, of one domain."""
    doubts = (item for item in checks if item.result is not Result.PASS or item.domain != checks[0].domain)
    return next(doubts, checks[0]) if checks else None


def junk_verdict(octets: bytes, marks: Sequence[str]) -> str:
    """The field that says the mail is junk, '' for none; a mark is a field's name, and `yes` its value.

    Read leniently, from the raw header: an odd line must not hide what stands beside it.
    """
    end = _HEADER_END.search(octets, 0, MAX_JUNK_HEADER_BYTES)
    for found in _FIELD.finditer(octets, 0, end.start() if end else MAX_JUNK_HEADER_BYTES):
        name, value = found[1].decode("latin-1").lower(), found[2].decode("utf-8", "replace")
        if name in marks and _YES.match(value):
            return f"{name}: {value[:40]}"
    return ""


def _result(text: str) -> Result:
    try:
        return Result("fail" if text.lower() == "hardfail" else text.lower())
    except ValueError:
        return Result.PERMERROR


def _value(item: Any, kind: str, *names: str) -> tuple[str, str]:
    """The first of these properties that is there, and its domain in A-labels ('' when it has none)."""
    for found in item.properties:
        if found.type == kind and found.name in names:
            try:
                return str(found.name), domain_to_ascii(str(found.value).rpartition("@")[2])
            except ValueError:
                return str(found.name), ""
    return "", ""


def _spf(item: Any) -> SpfCheck:
    name, domain = _value(item, "smtp", "mailfrom", "helo")
    return SpfCheck(result=_result(str(item.result)), domain=domain, identity=name or "helo")


def _signature(item: Any) -> SignatureCheck:
    _, domain = _value(item, "header", "d")
    return SignatureCheck(result=_result(str(item.result)), domain=domain or _value(item, "header", "i")[1])


def _dmarc(item: Any) -> DmarcCheck:
    return DmarcCheck(result=_result(str(item.result)), domain=_value(item, "header", "from")[1])


def _login(item: Any) -> str:
    """Whose login our server took, '' for a name that is no address: such a name does not say who may be told."""
    names = [str(found.value) for found in item.properties if (found.type, found.name) == ("smtp", "auth")]
    if _result(str(item.result)) is not Result.PASS or len(names) != 1:
        return ""
    try:
        return person_key(parse_mailbox(names[0]))
    except ValueError:
        return ""
