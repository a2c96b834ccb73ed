"""The parser that runs in the cage: octets to ParsedMail, as tolerant as mail is broken.

Promises: pure and idempotent; what is odd is mended and named in `defects`; what is beyond a limit raises TooComplex;
nothing is thrown away silently (what is not the text is an attachment).  Imports light things only.
Limits: uuencoded text and TNEF stay what they are; partial and external bodies are attachments.
"""

from __future__ import annotations

import base64
import binascii
import quopri
import re
from dataclasses import dataclass, field
from typing import Any

from gateway.mail.parse import charset, headers, html
from gateway.mail.parse.guards import DEFAULT_LIMITS, Limits
from gateway.mail.parse.structure import Part, Scan, leaves
from gateway.mail.parse.tree import ParsedAttachment, ParsedMail, Person, to_transport

_SUBSET = ("cc", "reply-to", "sender", "list-id", "auto-submitted", "precedence", "x-auto-response-suppress")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_IDENTITY = frozenset({"", "7bit", "8bit", "binary"})


def parse_job(request: dict[str, Any], octets: bytes) -> tuple[dict[str, Any], bytes]:
    """The cage's entry: `request` may carry `limits`, values of guards.Limits by name."""
    return to_transport(parse_octets(octets, Limits(**request.get("limits", {}))))


def parse_octets(octets: bytes, limits: Limits = DEFAULT_LIMITS) -> ParsedMail:
    """Parses in this process; only for the cage and for tests."""
    if octets.startswith((b"From ", b">From ")):
        octets = octets[octets.find(b"\n") + 1 :]  # an mbox line that some spools put in front
    scan = Scan(octets=octets, limits=limits)
    root = scan.part(0, len(octets), depth=0)
    harvest = _Harvest(scan=scan)
    for leaf, above in leaves(root):
        harvest.take(leaf, above)
    return _mail(root, harvest)


@dataclass(slots=True, kw_only=True)
class _Harvest:
    """What the leaves add up to."""

    scan: Scan
    texts: list[str] = field(default_factory=list)
    htmls: list[str] = field(default_factory=list)
    attachments: list[ParsedAttachment] = field(default_factory=list)

    def take(self, leaf: Part, above: str) -> None:
        octets = _decoded(leaf, self.scan)
        name = headers.filename(leaf.parameters, leaf.disposition_parameters)
        is_text = leaf.content_type in ("text/plain", "text/html") and leaf.disposition != "attachment" and not name
        if is_text and self._take_text(leaf, octets):
            return
        self.attachments.append(
            ParsedAttachment(
                filename=name,
                content_type=leaf.content_type,
                octets=octets,
                charset=headers.clean(leaf.parameters.get("charset", ""))[:64],
                content_id=headers.clean(leaf.value("content-id")).strip("<> ")[:990],
                inline=leaf.disposition == "inline" or (above == "multipart/related" and not leaf.disposition),
                description=headers.decode_text(leaf.value("content-description"))[0][:990],
            )
        )

    def _take_text(self, leaf: Part, octets: bytes) -> bool:
        if len(octets) > self.scan.limits.text_characters:
            self.scan.defects.append(f"{leaf.content_type} of {len(octets)} bytes kept as an attachment")
            return False
        text, replaced = charset.decode(octets, leaf.parameters.get("charset", ""))
        if replaced:
            self.scan.defects.append(f"{replaced} unreadable characters in {leaf.content_type}")
        if leaf.content_type == "text/html":
            self.htmls.append(text)
        elif text.strip():
            self.texts.append(text.replace("\r\n", "\n").replace("\r", "\n").rstrip())
        return True


def _mail(root: Part, harvest: _Harvest) -> ParsedMail:
    defects = harvest.scan.defects
    subject, replaced = headers.decode_text(root.value("subject"))
    if replaced:
        defects.append(f"{replaced} unreadable characters in the subject")
    safe = html.sanitise("\n".join(harvest.htmls)) if harvest.htmls else ""
    text = "\n\n".join(harvest.texts)
    senders = headers.people(root.value("from"))
    return ParsedMail(
        subject=subject,
        from_=senders[0] if senders else Person(),
        to=headers.people(root.value("to")),
        date=headers.date(root.value("date")) if root.value("date") else None,
        message_id=next(iter(headers.message_ids(root.value("message-id"))), ""),
        in_reply_to=next(iter(headers.message_ids(root.value("in-reply-to"))), ""),
        references=headers.message_ids(root.value("references")),
        text=text or (html.to_text(safe) if safe else ""),
        text_is_from_html=bool(safe) and not text,
        html=safe,
        attachments=tuple(harvest.attachments),
        defects=tuple(dict.fromkeys(defects)),
        headers={name: headers.decode_text(root.value(name))[0] for name in _SUBSET if root.value(name)},
    )


def _decoded(leaf: Part, scan: Scan) -> bytes:
    """The leaf's octets without their transfer encoding."""
    body = scan.octets[leaf.start : leaf.end]
    encoding = headers.clean(leaf.value("content-transfer-encoding")).lower()
    if leaf.content_type == "message/rfc822" and encoding != "base64":
        return body
    if encoding == "base64":
        return _base64(body, scan)
    if encoding == "quoted-printable":
        return quopri.decodestring(body)
    if encoding not in _IDENTITY:
        scan.defects.append(f"unknown transfer encoding {encoding[:40]!r}")
    return body


def _base64(body: bytes, scan: Scan) -> bytes:
    """Decodes base64 whatever stands between the letters; a rest of one letter carries nothing."""
    letters = body.translate(None, b"\r\n")
    try:
        return base64.b64decode(letters, validate=True)
    except (binascii.Error, ValueError):
        scan.defects.append("damaged base64")
    # Padding inside marks two encoded pieces put together: each ends where it says.
    pieces = (_NOT_BASE64.sub(b"", piece) for piece in re.split(rb"=+", letters))
    return b"".join(_base64_piece(piece) for piece in pieces)


def _base64_piece(letters: bytes) -> bytes:
    if len(letters) % 4 == 1:
        letters = letters[:-1]
    return base64.b64decode(letters + b"=" * (-len(letters) % 4))
