"""From the structure of a mail to what people see: its text, its html and its attachments, in order.

A mail's body is a row of sections; an alternative makes one section of its plain and its html form.  Where only some
sections have html the others are turned into html, and the other way round: both forms tell the whole mail.
Promises: html is sanitised section by section; what is not the text is an attachment; what has no name gets one where its
type has a usual one; nothing is thrown away silently.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from gateway.mail.parse import charset, enriched, flowed, headers, html, tnef, uuencode
from gateway.mail.parse.guards import DEFAULT_LIMITS, TooComplex, header_block
from gateway.mail.parse.structure import Part, Scan, split_header
from gateway.mail.parse.transfer import decoded
from gateway.mail.parse.tree import ParsedAttachment, ParsedMail, Person

_SUBSET = ("cc", "reply-to", "sender", "list-id", "auto-submitted", "precedence", "x-auto-response-suppress")
_ATTACHED_MAIL = ("message/rfc822", "message/global")
_RARE_TEXTS = ("text/enriched", "text/richtext", "text/markdown")
_USUAL_NAMES = {
    "application/pkcs7-mime": "smime.p7m",
    "application/x-pkcs7-mime": "smime.p7m",
    "application/pkcs7-signature": "smime.p7s",
    "application/x-pkcs7-signature": "smime.p7s",
    "application/pgp-encrypted": "pgp-version.txt",
    "application/pgp-signature": "signature.asc",
    "application/pgp-keys": "openpgp-key.asc",
    "application/ms-tnef": "winmail.dat",
    "application/vnd.ms-tnef": "winmail.dat",
    "message/delivery-status": "delivery-status.txt",
    "message/disposition-notification": "disposition-notification.txt",
    "message/feedback-report": "feedback-report.txt",
    "text/rfc822-headers": "headers.txt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A stretch of the body in one or both forms; html is sanitised."""

    text: str | None = None
    html: str | None = None

    def as_text(self) -> str:
        return self.text if self.text is not None else html.to_text(self.html or "")

    def as_html(self) -> str:
        if self.html is not None:
            return self.html
        return "<p>" + escape(self.text or "", quote=False).replace("\n", "<br>") + "</p>"


def read_mail(scan: Scan) -> ParsedMail:
    """Reads the whole mail of `scan`; raises TooComplex beyond its limits."""
    root = scan.part(0, len(scan.octets), depth=0)
    harvest = _Harvest(scan=scan)
    sections = harvest.sections(root, "")
    sections = [section for section in sections if section.text or section.html] or harvest.spare
    subject, replaced = headers.decode_text(root.value("subject"))
    if replaced:
        scan.defects.append(f"{replaced} unreadable characters in the subject")
    senders = headers.people(root.value("from"))
    has_html = any(section.html for section in sections)
    return ParsedMail(
        subject=subject,
        from_=senders[0] if senders else Person(),
        to=headers.people(root.value("to")),
        date=headers.date(root.value("date")) if root.value("date") else None,
        message_id=next(iter(headers.message_ids(root.value("message-id"))), ""),
        in_reply_to=next(iter(headers.message_ids(root.value("in-reply-to"))), ""),
        references=headers.message_ids(root.value("references")),
        text="\n\n".join(filter(None, (section.as_text() for section in sections))),
        text_is_from_html=has_html and not any(section.text for section in sections),
        html="\n".join(section.as_html() for section in sections) if has_html else "",
        attachments=tuple(harvest.attachments),
        defects=tuple(dict.fromkeys(scan.defects)),
        headers={name: headers.decode_text(root.value(name))[0] for name in _SUBSET if root.value(name)},
    )


@dataclass(slots=True, kw_only=True)
class _Harvest:
    """Walks the parts in order and gathers attachments; `spare` is a body that counts only where there is no other."""

    scan: Scan
    attachments: list[ParsedAttachment] = field(default_factory=list)
    spare: list[Section] = field(default_factory=list)
    text_octets: int = 0
    html_tags: int = 0

    def sections(self, part: Part, above: str) -> list[Section]:
        """The part's sections; its attachments are gathered on the way."""
        if not part.children:
            return self._leaf(part, above)
        found = [self.sections(child, part.content_type) for child in part.children]
        if part.content_type == "multipart/alternative":
            return _one_of(found)
        return [section for sections in found for section in sections]

    def _leaf(self, leaf: Part, above: str) -> list[Section]:
        octets = decoded(leaf, self.scan)
        name = headers.filename(leaf.parameters, leaf.disposition_parameters)
        # What is the whole mail, or one of its forms, is its text even when a mailer gave it a name.
        is_body = leaf.disposition != "attachment" and (not name or above in ("", "multipart/alternative"))
        if is_body and leaf.content_type in ("text/plain", "text/html") and (section := self._text(leaf, octets)):
            return [section]
        if is_body and leaf.content_type in _RARE_TEXTS and (section := self._text(leaf, octets)):
            self.spare.append(section)
        if tnef.is_tnef(leaf.content_type, name, octets) and self._unwrapped(octets):
            return []
        self.attachments.append(
            ParsedAttachment(
                filename=name or _usual_name(leaf, above, octets),
                content_type=leaf.content_type,
                octets=octets,
                charset=headers.clean(leaf.parameters.get("charset", ""))[:64],
                content_id=headers.clean(leaf.value("content-id")).strip("<> ")[:990],
                inline=leaf.disposition == "inline" or (above == "multipart/related" and not leaf.disposition),
                description=headers.decode_text(leaf.value("content-description"))[0][:990],
            )
        )
        return []

    def _text(self, leaf: Part, octets: bytes) -> Section | None:
        limits = self.scan.limits
        if len(octets) > limits.text_characters:
            self.scan.defects.append(f"{leaf.content_type} of {len(octets)} bytes kept as an attachment")
            return None
        self.text_octets += len(octets)
        if self.text_octets > limits.all_text_octets:
            raise TooComplex(f"more than {limits.all_text_octets} bytes of text")
        text, replaced = charset.decode(octets, leaf.parameters.get("charset", ""))
        if replaced:
            self.scan.defects.append(f"{replaced} unreadable characters in {leaf.content_type}")
        if leaf.content_type == "text/html":
            return self._html(text)
        return Section(text=self._plain(leaf, text.replace("\r\n", "\n").replace("\r", "\n")))

    def _html(self, text: str) -> Section:
        self.html_tags += text.count("<")
        if self.html_tags > self.scan.limits.html_tags:
            raise TooComplex(f"more than {self.scan.limits.html_tags} html tags")
        if html.deepest(text) > self.scan.limits.html_depth:
            raise TooComplex(f"html nested more than {self.scan.limits.html_depth} deep")
        if max(map(len, text.split("<"))) > self.scan.limits.html_tag_characters:
            raise TooComplex(
                f"more than {self.scan.limits.html_tag_characters} characters from one html tag to the next"
            )
        return Section(html=html.sanitise(text, styled=self.scan.styled))

    def _plain(self, leaf: Part, text: str) -> str:
        if leaf.content_type in ("text/enriched", "text/richtext"):
            text = enriched.to_text(text)
        if uuencode.looks_uuencoded(text):
            text, files = uuencode.take_out(text)
            self._add_files(files)
        if leaf.parameters.get("format", "").lower() == "flowed":
            text = flowed.unflow(text, delsp=leaf.parameters.get("delsp", "").lower() == "yes")
        return text.rstrip() if text.strip() else ""

    def _unwrapped(self, octets: bytes) -> bool:
        """Whether the files of a TNEF container are all here now, so that it need not be kept itself."""
        if not self.scan.limits.containers:
            raise TooComplex("a TNEF container")
        found = tnef.unwrap(octets)
        if found is None:
            self.scan.defects.append("a damaged TNEF container kept as it is")
            return False
        self._add_files(found.files)
        if found.skipped:
            self.scan.defects.append(f"{found.skipped} parts of a TNEF container left inside it")
        if found.text or found.html:
            self.spare.append(
                Section(
                    text=found.text.replace("\r\n", "\n").rstrip() or None,
                    html=html.sanitise(found.html, styled=self.scan.styled) if found.html else None,
                )
            )
        return not found.skipped and bool(found.files or found.text or found.html)

    def _add_files(self, files: Sequence[tuple[str, bytes]]) -> None:
        for given, octets in files:
            name = headers.bare_name(given)
            content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
            self.attachments.append(ParsedAttachment(filename=name, content_type=content_type, octets=octets))
        if len(self.attachments) > self.scan.limits.parts:
            raise TooComplex(f"more than {self.scan.limits.parts} attachments")


def _one_of(alternatives: list[list[Section]]) -> list[Section]:
    """One section in both forms; alternatives of one form only are put one after the other."""
    plain = [section for sections in alternatives for section in sections if not _has_html(sections)]
    rich = [section for sections in alternatives for section in sections if _has_html(sections)]
    text = "\n\n".join(filter(None, (section.as_text() for section in plain)))
    if not rich or not text:
        return plain + rich
    return [Section(text=text, html="\n".join(section.as_html() for section in rich if section.text or section.html))]


def _has_html(sections: Sequence[Section]) -> bool:
    return any(section.html is not None for section in sections)


def _usual_name(leaf: Part, above: str, octets: bytes) -> str:
    if leaf.content_type in _ATTACHED_MAIL:
        return headers.bare_name(f"{_subject(octets) or 'attached mail'}.eml")
    if above == "multipart/encrypted" and leaf.content_type == "application/octet-stream":
        return "encrypted.asc"
    return _USUAL_NAMES.get(leaf.content_type, "")


def _subject(octets: bytes) -> str:
    """The subject of an attached mail as a file may be called."""
    try:
        block = octets[: header_block(octets, 0, len(octets), DEFAULT_LIMITS)]
    except TooComplex:
        return ""
    for name, value in split_header(block):
        if name.lower() == "subject":
            return headers.decode_text(value)[0].replace("/", "-").replace("\\", "-")
    return ""
