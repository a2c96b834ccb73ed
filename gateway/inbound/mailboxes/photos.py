"""The mailbox `photos`: a mail becomes an album, its photos in the mail's order, each with its caption.

Every attachment that shows itself to be a picture is looked at; what cannot be taken (cut off, too many pixels, a format
beside the list) stays in the album as a refused attachment with its reason, and the mail is delivered as `partial`.
Captions come from the part's description, from a line of the text that names the file or its number ("2. The harbour"),
or from a file name that somebody chose.  Limit: what is no picture is an ordinary attachment of the album.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from gateway.inbound.attachments import TypedAttachment
from gateway.inbound.mailbox import Context, Outcome, ReceivedMail
from gateway.inbound.mailboxes.posts import post_of

PARTIAL = "partial"
_MAX_CAPTION_CHARACTERS = 300
# Patterns meet text of strangers in this process: both stay short.
_MAX_LINE_CHARACTERS = 600
_MAX_TEXT_CHARACTERS = 64 * 1024
_NUMBERED = re.compile(r"\s*(?:photo|foto|bild|image|picture|img)?\s*#?(\d{1,3})\s*[.:)\-–]\s*(\S.*)", re.I)
_NAMED = re.compile(r"\s*[(\[]?([^\s:()\[\]]{1,200}\.[A-Za-z]{3,4})[)\]]?\s*[:\-–]\s*(\S.*)")
# What cameras and mailers call their files: a prefix with digits, or hexadecimal digits only.
_NOBODYS_NAME = re.compile(
    r"(?:(?:img|image|dsc[nf]?|pxl|photo|foto|bild|picture|attachment|whatsapp[ _]image|screenshot|mvimg|p|gopr|dji|_)"
    r"[\s_.\-()0-9a-z]{0,40}\d[\s_.\-()0-9apm~:]{0,40}|[0-9a-f\-_. ]{6,}|[\d\s_.\-()]+"
    r"|(?:img|image|photo|foto|bild|picture|noname|unnamed))",
    re.I,
)


class PhotoAlbum:
    """Takes every mail."""

    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        captions = _captions(mail)
        attachments = [
            await _looked_at(item, caption, context) for item, caption in zip(mail.attachments, captions, strict=True)
        ]
        is_partial = any(item.refusal for item in attachments)
        post = post_of(replace(mail, attachments=tuple(attachments)), kind="album")
        return replace(post, reason=PARTIAL) if is_partial else post


async def _looked_at(item: TypedAttachment, caption: str, context: Context) -> TypedAttachment:
    """A picture with its state, caption or reason; anything else as it is."""
    if not item.is_photo:
        return item
    refusal = await context.inspect_photo(item.octets)
    if refusal:
        return replace(item, photo="refused", refusal=refusal, caption=caption)
    return replace(item, photo="waiting", caption=caption)


def _captions(mail: ReceivedMail) -> list[str]:
    """A caption or '' for each attachment."""
    names, numbers = _spoken_of(mail.parsed.text)
    captions, number = [], 0
    for item in mail.attachments:
        number += item.is_photo
        told = _description(item) or names.get(item.filename.casefold(), "") or numbers.get(number, "")
        captions.append((told or _chosen_name(item.filename))[:_MAX_CAPTION_CHARACTERS] if item.is_photo else "")
    return captions


def _spoken_of(text: str) -> tuple[dict[str, str], dict[int, str]]:
    """The lines that name a file, and those that number the photos from 1 on without a gap."""
    lines = [line.strip()[:_MAX_LINE_CHARACTERS] for line in text[:_MAX_TEXT_CHARACTERS].splitlines()]
    names = {match[1].casefold(): match[2].strip() for match in map(_NAMED.match, lines) if match}
    numbered = [(int(match[1]), match[2].strip()) for match in map(_NUMBERED.match, lines) if match]
    in_order: Sequence[int] = [number for number, _ in numbered]
    return names, dict(numbered) if in_order == list(range(1, len(numbered) + 1)) else {}


def _description(item: TypedAttachment) -> str:
    """The part's Content-Description, unless a mailer only repeated the file name."""
    stem = PurePosixPath(item.filename).stem
    return (
        ""
        if item.description in (item.filename, stem) or _NOBODYS_NAME.fullmatch(item.description)
        else item.description
    )


def _chosen_name(filename: str) -> str:
    stem = PurePosixPath(filename).stem
    return "" if _NOBODYS_NAME.fullmatch(stem) else " ".join(stem.replace("_", " ").split())
