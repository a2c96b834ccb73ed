"""The API under `/v1`, with `/healthz`, `/readyz` and `/metrics`: a package by resource.  Home of FastAPI.

Flow: guard → here → the client's submit (queue) or the store's reads; nothing here writes the store but what an operator
orders.  Promise: OpenAPI at `/v1/openapi.json` says what is true: every answer has its model, every error is problem+json
(RFC 9457) naming each field, a fault of ours is 503 with Retry-After.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.contract.documents import schemas
from gateway.contract.email_send import SendEmail
from gateway.contract.post_create import CreatePost
from gateway.web.api import models
from gateway.web.api.attachments import attachment_routes
from gateway.web.api.blobs import blob_routes
from gateway.web.api.emails import email_routes
from gateway.web.api.events import EVENTS_PATH, EventStreams, event_routes
from gateway.web.api.mails import mail_routes
from gateway.web.api.parts import READER, ApiParts
from gateway.web.api.posts import post_routes
from gateway.web.api.problems import ProblemAnswer, answer_problems, problem, told_as

__all__ = ["ApiParts", "EventStreams", "create_api", "described_api", "openapi_document"]

OPENAPI_PATH = "/v1/openapi.json"
_METRICS_TYPE = "text/plain"
_ENDLESS = (EVENTS_PATH, "/live/")
_OPEN_PATHS = frozenset({"/healthz", "/readyz"})


def described_api() -> FastAPI:
    """The application for describing only: it has no parts and must not be asked."""
    nothing: Any = None
    names = (item.name for item in fields(ApiParts))
    return create_api(ApiParts(**dict.fromkeys(names, nothing)))


def create_api(parts: ApiParts, *more: APIRouter) -> FastAPI:
    """Builds the application; everything it needs is handed in, also the routes beside the API (login, pages)."""
    api = FastAPI(title="gateway", version="1", docs_url=None, redoc_url=None, openapi_url=None)
    answer_problems(api, parts.log)
    api.add_middleware(_HeadAsGet)
    for routes in (email_routes, mail_routes, post_routes, blob_routes, attachment_routes, event_routes):
        api.include_router(routes(parts))
    for beside in more:
        api.include_router(beside)
    _add_probes(api, parts)

    @api.get(OPENAPI_PATH, include_in_schema=False)
    async def openapi(request: Request) -> JSONResponse:
        return JSONResponse(openapi_document(api))

    return api


class _HeadAsGet:
    """Answers HEAD as GET (RFC 9110, section 9.3.2), the server leaves the body out; but for streams, which never end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD" and not scope["path"].startswith(_ENDLESS):
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


def _add_probes(api: FastAPI, parts: ApiParts) -> None:
    @api.get("/healthz", tags=["probes"], response_model=models.Health)
    async def healthz() -> Response:
        """Says that the process is alive."""
        return JSONResponse({"status": "alive"})

    @api.get("/readyz", tags=["probes"], response_model=models.Readiness, responses={503: {"model": models.Readiness}})
    async def readyz() -> Response:
        """Says whether queue and store answer."""
        troubles = await parts.readiness()
        answer = {"status": "not ready" if troubles else "ready", "troubles": troubles}
        return JSONResponse(
            answer, status_code=503 if troubles else 200, headers={"Retry-After": "5"} if troubles else None
        )

    text = {"content": {_METRICS_TYPE: {"schema": {"type": "string"}}}, "description": "counters, for Prometheus"}

    @api.get(
        "/metrics",
        tags=["probes"],
        response_class=Response,
        responses=told_as(404) | {200: text},
        dependencies=[READER],
    )
    async def metrics() -> Response:
        """Counters in the form that Prometheus reads."""
        if parts.metrics is None:
            return problem(404, "this gateway keeps no metrics")
        body, content_type = parts.metrics()
        return Response(body, headers={"Content-Type": content_type})


def openapi_document(api: FastAPI) -> dict[str, Any]:
    """What the API is, as OpenAPI 3.1."""
    document = get_openapi(title="gateway", version="1", description=_DESCRIPTION, routes=api.routes)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas(SendEmail, CreatePost, ProblemAnswer))
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "a key of `gateway keys add`"},
        "session": {"type": "apiKey", "in": "cookie", "name": "gateway_session", "description": "a person's session"},
    }
    document["security"] = [{"key": []}, {"session": []}]
    for path, item in document["paths"].items():
        for operation in item.values():
            _describe(operation, is_open=path in _OPEN_PATHS)
    return document


def _describe(operation: dict[str, Any], *, is_open: bool) -> None:
    """Says of one operation what FastAPI cannot know: errors are problems, and the probes are open."""
    if is_open:
        operation["security"] = []
    answer = operation["responses"].get("422")
    if answer is not None and "application/json" in answer.get("content", {}):
        answer["content"] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}}


_DESCRIPTION = """The mail room of a company's applications.

Keys are made with `gateway keys add APP`; scopes: `send` (an app's own emails, posts and blobs), `read` (everything),
`admin` (both, and holding or releasing). While there is neither user nor key the API is open on loopback only.
Every error is `application/problem+json`; after a 503 try again with the same id."""
