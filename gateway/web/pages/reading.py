"""A mail as people read it: header, text, html in a frame, attachments.  One reader for mails, emails and captured mail.

Flow: octets → cage (`parse_styled`) → Reading, kept for a while, because a page with ten pictures asks eleven times.
Promises: the web process itself only searches and decodes the header; what cannot be parsed is a Reading with its `fault`
and still has header and raw octets; two who ask at once cost one parse.
Limits: the readings kept hold at most `KEPT_BYTES`.
"""

from __future__ import annotations

import asyncio
import base64
import html
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

from gateway.errors import JobFailed, OverBudget
from gateway.mail.parse import Cage, ParsedAttachment, ParsedMail, TooComplex, parse_styled
from gateway.mail.parse.guards import DEFAULT_LIMITS, header_block
from gateway.mail.parse.headers import decode_text
from gateway.mail.parse.structure import split_header, without_envelope_line

KEPT_BYTES = 64 * 1024 * 1024
MAX_FRAME_PICTURES_BYTES = 24 * 1024 * 1024
_MAX_HEADER_FIELDS = 300
_CID = re.compile(r'src="cid:([^"]{1,990})"')
_PICTURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What can be shown of one mail; `fault` says why the rest is empty."""

    size: int
    header: tuple[tuple[str, str], ...]
    mail: ParsedMail = field(default_factory=ParsedMail)
    fault: str = ""

    def attachment(self, number: int) -> ParsedAttachment | None:
        """The attachment of that number, counted from 0."""
        found = self.mail.attachments
        return found[number] if 0 <= number < len(found) else None


class Reader:
    """Reads mails in the cage and keeps the last ones."""

    def __init__(self, cage: Cage) -> None:
        self._cage = cage
        self._kept: OrderedDict[str, Reading] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[Reading | None]] = {}

    async def read(self, key: str, fetch: Callable[[], Awaitable[bytes | None]]) -> Reading | None:
        """The reading of what `fetch` gets, None where it gets nothing; `key` names octets that never change."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._read(key, fetch))
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(task)

    async def _read(self, key: str, fetch: Callable[[], Awaitable[bytes | None]]) -> Reading | None:
        octets = await fetch()
        if octets is None:
            return None
        reading = await self._parsed(octets)
        self._kept[key] = reading
        while len(self._kept) > 1 and sum(item.size for item in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return reading

    async def _parsed(self, octets: bytes) -> Reading:
        header = await asyncio.to_thread(header_of, octets)
        fault = ""
        try:
            mail = await parse_styled(octets, self._cage)
        except OverBudget as over:
            mail, fault = ParsedMail(), f"taking it apart ended at its limit ({over})"
        except JobFailed as failed:
            mail, fault = ParsedMail(), f"it cannot be taken apart: {failed.text}"
        except TooComplex as limit:
            mail, fault = ParsedMail(), f"it cannot be taken apart: {limit}"
        return Reading(size=len(octets), header=header, mail=mail, fault=fault)


def header_of(octets: bytes) -> tuple[tuple[str, str], ...]:
    """The fields of the first header, decoded, in their order; what is beyond the limits is left out."""
    octets = without_envelope_line(octets[: DEFAULT_LIMITS.header_bytes])
    try:
        block = octets[: header_block(octets, 0, len(octets), DEFAULT_LIMITS)]
    except TooComplex:
        block = octets
    return tuple((name, decode_text(value)[0]) for name, value in list(split_header(block))[:_MAX_HEADER_FIELDS])


def picture_type(octets: bytes) -> str:
    """The type of a picture that a browser may show, '' for everything else; told from the octets alone."""
    for magic, content_type in _PICTURES.items():
        if octets.startswith(magic):
            return content_type
    return "image/webp" if octets[:4] == b"RIFF" and octets[8:12] == b"WEBP" else ""


def framed_html(mail: ParsedMail) -> str:
    """The mail's html with its own pictures inside it, so that the frame needs to load nothing."""
    pictures = {item.content_id: item.octets for item in mail.attachments if item.content_id}
    left = MAX_FRAME_PICTURES_BYTES

    def picture(match: re.Match[str]) -> str:
        nonlocal left
        octets = pictures.get(unquote(html.unescape(match[1])), b"")
        content_type = picture_type(octets)
        if not content_type or len(octets) > left:
            return 'alt="(a picture that is not in this mail)"'
        left -= len(octets)
        return f'src="data:{content_type};base64,{base64.b64encode(octets).decode()}"'

    return _CID.sub(picture, mail.html)
