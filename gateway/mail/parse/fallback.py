"""The parser that runs in the cage: octets to ParsedMail, as tolerant as mail is broken.

Promises: pure and idempotent; what is odd is mended and named in `defects`; what is beyond a limit raises TooComplex;
nothing is thrown away silently (what is not the text is an attachment).  The stdlib's compat32 parser reads each header;
policy.default raises on real mails.
Limits: partial and external bodies are attachments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.parser import BytesParser
from email.policy import compat32
from typing import Any

from gateway.mail.parse.guards import DEFAULT_LIMITS, Limits
from gateway.mail.parse.harvest import read_mail
from gateway.mail.parse.structure import Scan, without_envelope_line
from gateway.mail.parse.tree import ParsedMail, to_transport

_PARSER = BytesParser(policy=compat32)
_BLANK_BEFORE_COLON = re.compile(rb"^([!-9;-~]+)[ \t]+:", re.MULTILINE)


def parse_job(request: dict[str, Any], octets: bytes) -> tuple[dict[str, Any], bytes]:
    """The cage's entry: `request` may carry `limits`, values of guards.Limits by name, and `styled` (`html.sanitise`)."""
    limits = Limits(**request.get("limits", {}))
    return to_transport(parse_octets(octets, limits, styled=bool(request.get("styled"))))


def parse_octets(octets: bytes, limits: Limits = DEFAULT_LIMITS, *, styled: bool = False) -> ParsedMail:
    """Parses in this process; only for the cage and for tests."""
    octets = without_envelope_line(octets)
    return read_mail(Scan(octets=octets, limits=limits, read_header=_compat32_header, styled=styled))


def _compat32_header(block: bytes) -> Iterable[tuple[str, str]]:
    # RFC 5322, section 4.5: a blank may stand before the colon; the stdlib takes such a line for the end of the header.
    message = _PARSER.parsebytes(_BLANK_BEFORE_COLON.sub(rb"\1:", block), headersonly=True)
    return [(name, str(value)) for name, value in message.raw_items()]
