"""What our own mail server found out (RFC 8601): its topmost Authentication-Results, and nothing else.  Home of authres.

Believed only where the mail was handed over by that server (the LMTP door), the topmost field of the name bears its
`trusted_authserv_id`, and at most one Received (its own) stands above it.  Fields below are hearsay, whoever they name.  The
server must take such fields of strangers out (RFC 8601, section 5), and write one field with all its results.
Promise: a field that cannot be read, or that a sender's own words may have bent, is none.
Also home of what it says about junk: who marks his own mail as junk gets what he asks for, so any place will do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import authres

from gateway.inbound.authenticate.header import Field, Header
from gateway.inbound.authenticate.result import Authentication, DmarcCheck, Result, SignatureCheck, SpfCheck
from gateway.mail.addresses import domain_to_ascii
from gateway.mail.envelope import Envelope

DOORS = frozenset({"lmtp", "explain"})
_MAX_VALUE = 4 * 1024
_MAX_COMMENTS = 50
_BENDING = re.compile(r"[^A-Za-z0-9@.+_\[\]:/-]")
_YES = re.compile(r"(?:yes|true|1)\b", re.IGNORECASE)


def topmost_results(header: Header, authserv_id: str) -> Field | None:
    """The field our server wrote, if it wrote one."""
    found = header.all("authentication-results")
    if not found or found[0].hop > 1 or len(found[0].value) > _MAX_VALUE or found[0].value.count("(") > _MAX_COMMENTS:
        return None
    named = found[0].value.partition(";")[0].split()
    return found[0] if named[:1] and named[0].lower() == authserv_id.lower() else None


def read_results(field: Field, envelope: Envelope) -> Authentication | None:
    """What it says; None when it cannot be read, or when the sender's own words could have written part of it."""
    if any(_BENDING.search(text) for text in (envelope.mail_from, envelope.helo)):
        return None
    try:
        results = authres.AuthenticationResultsHeader.parse_value(field.value).results
        spf = [_spf(item) for item in results if item.method == "spf"]
        signatures = [_signature(item) for item in results if item.method == "dkim"]
        dmarcs = [_dmarc(item) for item in results if item.method == "dmarc"]
    # Broad: the library raises SyntaxError, RecursionError and others for what it cannot read.
    except Exception:  # noqa: BLE001
        return None
    if len(spf) > 2 or len(dmarcs) > 1:
        return None
    mail_from = next((item for item in spf if item.identity == "mailfrom"), SpfCheck())
    helo = next((item for item in spf if item.identity == "helo"), SpfCheck(identity="helo"))
    told = dmarcs[0] if dmarcs else DmarcCheck()
    return Authentication(source="mta", spf=mail_from, helo=helo, dkim=tuple(signatures), dmarc=told)


def junk_verdict(header: Header, marks: Sequence[str]) -> str:
    """The field that says the mail is junk, '' for none; a mark is a field's name, and `yes` its value."""
    for field in header.fields:
        if field.name in marks and _YES.match(field.value):
            return f"{field.name}: {field.value[:40]}"
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
