"""`/v1/attachments/{id}`: the octets of one attachment or of a picture made of it, whole or in ranges (`web.files`)."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from gateway.web.api.parts import READER, ApiParts, known_id
from gateway.web.api.problems import problem, told_as
from gateway.web.files import file_answer, safe_headers

_OCTETS = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}, "description": "the octets"}


def attachment_routes(parts: ApiParts) -> APIRouter:
    routes = APIRouter(prefix="/v1/attachments", tags=["attachments"])

    @routes.get(
        "/{attachment_id}",
        response_class=Response,
        responses=told_as(404, 416, 422) | {200: _OCTETS, 206: _OCTETS},
        dependencies=[READER],
    )
    async def get_attachment(
        request: Request,
        attachment_id: str,
        rendition: Annotated[Literal["thumb", "web"] | None, Query(description="a smaller picture of a photo")] = None,
    ) -> Response:
        """Gives the octets as they were attached, or a picture made of them."""
        found = await parts.mails.attachment(known_id(attachment_id), rendition=rendition or "")
        if found is None:
            return problem(404, "no such attachment")
        octets = await parts.blobs.get(f"sha256:{found.sha256}")
        return file_answer(request, octets, safe_headers(found.filename, found.content_type))

    return routes
