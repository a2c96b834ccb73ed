"""The parsed mail as values, and its way out of the cage: one JSON object and the attachments' octets end to end.

Promises: text and html are free of NUL, html is sanitised already, filenames are bare names, times are UTC.  Everything
here is hearsay: who a mail is really from and to stands in its envelope.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """One address of a header, with the name shown beside it."""

    name: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedAttachment:
    """One leaf that is not the mail's own text; `content_type` and `charset` as declared."""

    filename: str
    content_type: str
    octets: bytes
    charset: str = ""
    content_id: str = ""
    inline: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedMail:
    """`text` is the plain text, made from the html where the mail has only html (`text_is_from_html`).

    `defects` say in words what was wrong and mended; `headers` is a small decoded subset by lower-case name.
    """

    subject: str = ""
    from_: Person = field(default_factory=Person)
    to: tuple[Person, ...] = ()
    date: datetime | None = None
    message_id: str = ""
    in_reply_to: str = ""
    references: tuple[str, ...] = ()
    text: str = ""
    text_is_from_html: bool = False
    html: str = ""
    attachments: tuple[ParsedAttachment, ...] = ()
    defects: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


def to_transport(mail: ParsedMail) -> tuple[dict[str, Any], bytes]:
    """The mail as JSON values, and all attachments' octets in order."""
    values = asdict(mail)
    values["date"] = mail.date.isoformat() if mail.date else None
    for attachment in values["attachments"]:
        attachment["octets"] = len(attachment["octets"])
    return values, b"".join(attachment.octets for attachment in mail.attachments)


def from_transport(values: Mapping[str, Any], octets: bytes) -> ParsedMail:
    """Reads what `to_transport` wrote."""
    attachments = []
    position = 0
    for item in values["attachments"]:
        end = position + item["octets"]
        attachments.append(ParsedAttachment(**item | {"octets": octets[position:end]}))
        position = end
    return ParsedMail(
        **dict(values)
        | {
            "from_": Person(**values["from_"]),
            "to": tuple(Person(**person) for person in values["to"]),
            "date": datetime.fromisoformat(values["date"]) if values["date"] else None,
            "references": tuple(values["references"]),
            "attachments": tuple(attachments),
            "defects": tuple(values["defects"]),
        }
    )
