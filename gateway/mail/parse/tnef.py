"""winmail.dat: what Outlook wraps in TNEF instead of MIME, taken apart.  Home of tnefparse; runs in the cage only.

Promises: attachments with their long names and octets, the body where it is text or html; None for what is no TNEF or is
damaged, so that the container stays an attachment as it came.
Limits: a body that exists only as compressed RTF is not read; mails embedded in TNEF are left out and named in `skipped`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from gateway.mail.parse import charset

_SIGNATURE = b"\x78\x9f\x3e\x22"
_MAX_ATTACHMENTS = 500


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
    return Unwrapped(files=tuple(files), text=_text(container.body), html=_text(container.htmlbody), skipped=skipped)


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
