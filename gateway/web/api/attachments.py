"""`/v1/attachments/{id}`: the octets of one attachment or of a picture made of it, in a form that runs nowhere.

Only pictures we know to be pictures are shown in place; all else is a download under its own name (RFC 6266, RFC 8187),
and nothing is anything but what we say it is (nosniff, a sandbox of its own).
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Response

from gateway.web.api.parts import READER, ApiParts, known_id
from gateway.web.api.problems import problem, told_as

_SHOWN = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_TYPE = re.compile(r"[a-z0-9.+-]{1,100}/[a-z0-9.+-]{1,100}")
_UNSAFE_NAME = re.compile(r'[\x00-\x1f\x7f"\\/\u202a-\u202e\u2066-\u2069]')
_OCTETS = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}, "description": "the octets"}


def attachment_routes(parts: ApiParts) -> APIRouter:
    routes = APIRouter(prefix="/v1/attachments", tags=["attachments"])

    @routes.get(
        "/{attachment_id}",
        response_class=Response,
        responses=told_as(404, 422) | {200: _OCTETS},
        dependencies=[READER],
    )
    async def get_attachment(
        attachment_id: str,
        rendition: Annotated[Literal["thumb", "web"] | None, Query(description="a smaller picture of a photo")] = None,
    ) -> Response:
        """Gives the octets as they were attached, or a picture made of them."""
        found = await parts.mails.attachment(known_id(attachment_id), rendition=rendition or "")
        if found is None:
            return problem(404, "no such attachment")
        octets = await parts.blobs.get(f"sha256:{found.sha256}")
        return Response(octets, media_type=None, headers=safe_headers(found.filename, found.content_type))

    return routes


def safe_headers(filename: str, content_type: str) -> dict[str, str]:
    """The headers that make a stranger's octets harmless, whatever they are."""
    kind = content_type.lower() if _TYPE.fullmatch(content_type.lower()) else "application/octet-stream"
    is_shown = kind in _SHOWN
    return {
        "Content-Type": kind if is_shown or not kind.startswith("text/") else "text/plain; charset=utf-8",
        "Content-Disposition": _disposition("inline" if is_shown else "attachment", filename),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, max-age=3600, immutable",
    }


def _disposition(kind: str, filename: str) -> str:
    name = _UNSAFE_NAME.sub("_", filename.encode("utf-8", "replace").decode())[:200].strip(". ") or "attachment"
    plain = name.encode("ascii", "replace").decode().replace("?", "_")
    extended = f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else ""
    return f'{kind}; filename="{plain}"{extended}'
