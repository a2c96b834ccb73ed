"""Attachments typed by what they are, not by what they are called.  Home of python-magic (with pylibmagic's library).

Sniffing runs in the cage, on the first bytes only: libmagic is native code and the bytes are a stranger's.
Promises: order and octets as in the mail; every attachment gets a file name; a label is believed only where the content
does not contradict it.  Limits: office files look like zip archives to libmagic's eye, there the label decides.
"""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.mail.parse import Cage, ParsedAttachment

UNKNOWN = "application/octet-stream"
_HEAD_BYTES = 8 * 1024
_HASHED_HERE_BYTES = 1024 * 1024  # more would keep the event loop for milliseconds
# What libmagic answers for a whole family: the label knows better.
_VAGUE = frozenset({UNKNOWN, "application/zip", "application/x-ole-storage", "application/cdfv2", "text/xml"})
_EMPTY = frozenset({"inode/x-empty", "application/x-empty"})
_NEVER_PLAIN_TEXT = ("image/", "audio/", "video/", "font/")
_SUFFIXES = {"message/rfc822": ".eml", "image/jpeg": ".jpg", "text/plain": ".txt", UNKNOWN: ".bin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedAttachment:
    """`content_type` is the mail's label, `sniffed` libmagic's word; `type` weighs both.

    A mailbox may add a `caption`, and for a photo `waiting` (have it rendered) or `refused` with the reason in `refusal`.
    """

    filename: str
    content_type: str
    sniffed: str
    size: int
    sha256: str
    octets: bytes
    content_id: str = ""
    inline: bool = False
    description: str = ""
    caption: str = ""
    photo: str = ""
    refusal: str = ""

    @property
    def type(self) -> str:
        """What to hold it for."""
        return settle(self.content_type, self.sniffed)

    @property
    def is_photo(self) -> bool:
        return self.type.startswith("image/")


async def typed(attachments: Sequence[ParsedAttachment], cage: Cage) -> tuple[TypedAttachment, ...]:
    """Types each attachment; raises what the cage raises."""
    if not attachments:
        return ()
    heads = [attachment.octets[:_HEAD_BYTES] for attachment in attachments]
    request = {"sizes": [len(head) for head in heads]}
    answer, _ = await cage.run("gateway.inbound.attachments:sniff_job", request, b"".join(heads))
    if sum(len(attachment.octets) for attachment in attachments) <= _HASHED_HERE_BYTES:
        return _all_typed(attachments, answer["types"])
    return await asyncio.to_thread(_all_typed, attachments, answer["types"])


def sniff_job(request: dict[str, Any], octets: bytes) -> tuple[dict[str, Any], bytes]:
    """The cage's entry: the heads of some files end to end, to their media types."""
    detect = _detector()
    types = []
    position = 0
    for size in request["sizes"]:
        types.append(str(detect(octets[position : position + size])).lower())
        position += size
    return {"types": types}, b""


def settle(declared: str, sniffed: str) -> str:
    """The type to hold an attachment for: what it shows itself to be, or its label where that fits."""
    if sniffed in _EMPTY:
        return declared or UNKNOWN
    if sniffed == "text/plain":
        # Any format of text may follow its label; what is labelled a picture and is text is no picture.
        return sniffed if declared.startswith(_NEVER_PLAIN_TEXT) or declared in ("", UNKNOWN) else declared
    if sniffed in _VAGUE:
        return (declared if not declared.startswith("text/") else "") or sniffed
    return sniffed


def _all_typed(attachments: Sequence[ParsedAttachment], types: Sequence[str]) -> tuple[TypedAttachment, ...]:
    pairs = zip(attachments, types, strict=True)
    return tuple(_typed(number, attachment, sniffed) for number, (attachment, sniffed) in enumerate(pairs, 1))


def _typed(number: int, attachment: ParsedAttachment, sniffed: str) -> TypedAttachment:
    held_for = settle(attachment.content_type, sniffed)
    suffix = _SUFFIXES.get(held_for) or mimetypes.guess_extension(held_for) or ".bin"
    return TypedAttachment(
        filename=attachment.filename or f"attachment-{number}{suffix}",
        content_type=attachment.content_type,
        sniffed=sniffed,
        size=len(attachment.octets),
        sha256=hashlib.sha256(attachment.octets).hexdigest(),
        octets=attachment.octets,
        content_id=attachment.content_id,
        inline=attachment.inline,
        description=attachment.description,
    )


def _detector() -> Any:
    """libmagic with its database as pylibmagic brings them: the same word everywhere, whatever the system has or lacks."""
    import pylibmagic  # first: its import makes the library it carries the one that is found

    import magic  # isort: skip

    sniffer = magic.Magic(mime=True, magic_file=str(pylibmagic.data / "magic.mgc"))
    return lambda head: str(sniffer.from_buffer(head))
