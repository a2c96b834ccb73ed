"""`POST /v1/blobs`: octets for attachments too large to stand inline; they go to the disk as they come.

Promise: the digest is answered when the octets are kept; an upload cut short or too large leaves nothing behind.
Limits: a blob may have what a mail may have; some uploads at once; a blob that nothing names is collected after 30 days.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gateway.web.api import models
from gateway.web.api.parts import SENDER, ApiParts
from gateway.web.api.problems import problem, told_as

UPLOADS_AT_ONCE = 8
_OCTETS = {"schema": {"type": "string", "format": "binary"}}
_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": _OCTETS}}}


def blob_routes(parts: ApiParts) -> APIRouter:
    routes = APIRouter(prefix="/v1/blobs", tags=["blobs"])
    places = asyncio.Semaphore(UPLOADS_AT_ONCE)

    @routes.post(
        "", status_code=201, response_model=models.Blob, responses=told_as(), openapi_extra=_BODY, dependencies=[SENDER]
    )
    async def put_blob(request: Request) -> Response:
        """Keeps the body's octets and answers their digest."""
        if places.locked():
            return problem(503, "too many uploads at once; try again", headers={"Retry-After": "1"})
        if not parts.has_room(parts.max_blob_bytes):
            return problem(503, "too little free space; try again later", headers={"Retry-After": "300"})
        async with places:
            digest, size = await parts.blobs.put_stream(request.stream())
        return JSONResponse({"digest": digest, "size": size}, status_code=201)

    return routes
