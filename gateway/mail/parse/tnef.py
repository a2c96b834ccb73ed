"""winmail.dat: what Outlook wraps in TNEF instead of MIME, taken apart.  Home of tnefparse, compressed-rtf and striprtf.

Runs in the cage only.  Promises: attachments with their long names and octets, the body where it is text, html or (as words
without their looks) RTF; None for what is no TNEF or is damaged, so that the container stays an attachment as it came.
Limits: RTF beyond `_MAX_RTF_BYTES` is not read: both libraries work letter by letter; mails embedded in TNEF are left out.
Whatever was not read is counted in `skipped`.
"""

from __future__ import annotations

import logging
import re
import struct
from dataclasses import dataclass

from gateway.mail.parse import charset

_SIGNATURE = b"\x78\x9f\x3e\x22"
_MAX_ATTACHMENTS = 500
_MAX_RTF_BYTES = 64 * 1024  # the dearest found of this size takes 1 s
_LINK = re.compile("hyperlink", re.I)  # striprtf's pattern for links costs the cube of what it looks at
_LZFU_HEADER = struct.Struct("<II")  # MS-OXRTFCP, section 2.1.3.1: both sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwrapped:
    """What the container held; the body is '' where there is none to read."""

    files: tuple[tuple[str, bytes], ...]
    text: str
    html: str
    skipped: int


def is_tnef(content_type: str, name: str, octets: bytes) -> bool:
    """Whether a leaf is a TNEF container, by label or name, and by its first octets."""
    labelled = content_type in ("application/ms-tnef", "application/vnd.ms-tnef") or name.lower() == "winmail.dat"
    return labelled and octets.startswith(_SIGNATURE)


def unwrap(octets: bytes) -> Unwrapped | None:
    """Takes the container apart; None when the library cannot read it."""
    from tnefparse import TNEF

    logging.getLogger("tnefparse").setLevel(logging.CRITICAL)  # it words a stranger's damage as our error
    try:
        container = TNEF(octets, do_checksum=False)
    except Exception:  # noqa: BLE001 - the library raises whatever its indexing meets; the caller notes the defect
        return None
    files = []
    skipped = len(container.attachments[_MAX_ATTACHMENTS:])
    for attachment in container.attachments[:_MAX_ATTACHMENTS]:
        if hasattr(attachment, "embed") or not isinstance(attachment.data, bytes):
            skipped += 1
            continue
        files.append((_name(attachment), attachment.data))
    text, html = _text(container.body), _text(container.htmlbody)
    if not text.strip() and not html.strip() and container._rtfbody:
        text = _words_of_rtf(container._rtfbody)
        skipped += not text
    return Unwrapped(files=tuple(files), text=text, html=html, skipped=skipped)


def _words_of_rtf(compressed: bytes) -> str:
    """The words of a compressed RTF body; '' when there are none, or it is damaged or too long."""
    from compressed_rtf import decompress
    from striprtf.striprtf import rtf_to_text

    try:
        _, size = _LZFU_HEADER.unpack_from(compressed)
        if max(size, len(compressed)) > _MAX_RTF_BYTES:
            return ""
        rtf = decompress(compressed)
        if len(rtf) > _MAX_RTF_BYTES:  # the size in front was a lie
            return ""
        text = _LINK.sub("", rtf.decode("latin-1"))
        words = str(rtf_to_text(text, errors="replace"))  # type: ignore[no-untyped-call]
        return words.replace("\0", "").strip()
    except Exception:  # noqa: BLE001 - both libraries raise whatever their indexing meets; the container is kept then
        return ""


def _name(attachment: object) -> str:
    try:
        name = attachment.long_filename()  # type: ignore[attr-defined]
    except UnicodeDecodeError:
        name = getattr(attachment, "_name", b"")
    return _text(name).strip()


def _text(value: object) -> str:
    if isinstance(value, list):
        return "".join(map(_text, value))
    if isinstance(value, bytes):
        return charset.decode(value)[0].strip("\0")
    return value.replace("\0", "") if isinstance(value, str) else ""
