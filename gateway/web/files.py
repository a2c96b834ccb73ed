"""A stranger's file as an answer: its octets in a form that runs nowhere, whole or the one range that is asked for.

Only pictures we know to be pictures are ever shown in place; all else is a download under its own name (RFC 6266, RFC 8187),
cleaned of what could make it look like another.  Nothing is anything but what we say it is (nosniff, a sandbox of its own).
Limit: several ranges at once are answered whole, as is a range on a condition (RFC 9110, 14.2): what an id names never changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

SHOWN_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_TYPE = re.compile(r"[a-z0-9.+-]{1,100}/[a-z0-9.+-]{1,100}")
_UNSAFE_NAME = re.compile(r'[\x00-\x1f\x7f"\\/\u200e\u200f\u202a-\u202e\u2066-\u2069]')
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def safe_headers(filename: str, content_type: str) -> dict[str, str]:
    """The headers that make a stranger's octets harmless, whatever they are."""
    kind = content_type.lower() if _TYPE.fullmatch(content_type.lower()) else "application/octet-stream"
    is_shown = kind in SHOWN_TYPES
    return {
        "Content-Type": kind if is_shown or not kind.startswith("text/") else "text/plain; charset=utf-8",
        "Content-Disposition": _disposition("inline" if is_shown else "attachment", filename),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
        "Cache-Control": "private, max-age=3600, immutable",
    }


def file_answer(request: Request, octets: bytes, headers: Mapping[str, str]) -> Response:
    """The octets with these headers: all of them (200), the range asked for (206), or that there is no such (416)."""
    told = {**headers, "Accept-Ranges": "bytes"}
    asked = _range_asked(request, len(octets))
    if asked is None:
        return Response(octets, headers=told)
    if not asked:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(octets)}"})
    told["Content-Range"] = f"bytes {asked.start}-{asked.stop - 1}/{len(octets)}"
    return Response(octets[asked.start : asked.stop], status_code=206, headers=told)


def _range_asked(request: Request, size: int) -> range | None:
    """Which of `size` octets are asked for: None for all of them, an empty range for some that are not there."""
    match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if match is None or "if-range" in request.headers or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)


def _disposition(kind: str, filename: str) -> str:
    name = _UNSAFE_NAME.sub("_", filename.encode("utf-8", "replace").decode())[:200].strip(". ") or "attachment"
    plain = name.encode("ascii", "replace").decode().replace("?", "_")
    extended = f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else ""
    return f'{kind}; filename="{plain}"{extended}'
