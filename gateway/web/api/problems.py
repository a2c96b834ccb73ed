"""Answers that are no: problem+json (RFC 9457), one form for every error of the API, and the words for each kind of fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from gateway.errors import InvalidRequest, Problem, TransientFailure
from gateway.maillog import MailLog
from gateway.web.asking import NotAllowed
from gateway.web.guard import BodyEnded

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = "5"


class ProblemAt(BaseModel):
    """One thing wrong with a request, and where."""

    path: str
    message: str


class ProblemAnswer(BaseModel):
    """An RFC 9457 answer."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    errors: list[ProblemAt] = Field(default_factory=list)


def problem(
    status: int,
    title: str,
    problems: Sequence[Problem] = (),
    headers: dict[str, str] | None = None,
    **members: str,
) -> JSONResponse:
    """A problem+json answer, with further members of its own."""
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, **members}
    if problems:
        body["errors"] = [{"path": item.path, "message": item.message} for item in problems]
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def told_as(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these statuses, and of those that the guard and a fault of ours may give to any request."""
    wanted = {*statuses, 400, 401, 403, 408, 413, 415, 421, 431, 500, 503}
    schema = {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: schema}} for status in sorted(wanted)
    }


def answer_problems(api: FastAPI, log: MailLog) -> None:
    """Lets every error of the application end as a problem."""

    async def fault(request: Request, error: Exception) -> Response:
        if not isinstance(error, BodyEnded):  # the guard answers that one
            log.web_fault(method=request.method, route=_route(request), error=error)
        return problem(500, "a fault of the gateway itself; it is in the log")

    handlers: dict[type[Exception], Callable[[Request, Any], Any]] = {
        InvalidRequest: _invalid,
        RequestValidationError: _unreadable,
        TransientFailure: _unavailable,
        NotAllowed: _not_allowed,
        HTTPException: _plain,
        Exception: fault,
    }
    for kind, handler in handlers.items():
        api.add_exception_handler(kind, handler)


async def _invalid(request: Request, error: InvalidRequest) -> Response:
    return problem(422, "the request breaks its contract", error.problems)


async def _unreadable(request: Request, error: RequestValidationError) -> Response:
    found = [Problem(".".join(map(str, item["loc"][1:])), str(item["msg"])) for item in error.errors()]
    return problem(422, "the request cannot be read", found)


async def _unavailable(request: Request, error: TransientFailure) -> Response:
    return problem(503, f"cannot be answered now: {error}; try again", headers={"Retry-After": RETRY_SECONDS})


async def _not_allowed(request: Request, error: NotAllowed) -> Response:
    return problem(403, str(error))


async def _plain(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers) if error.headers else None
    return problem(error.status_code, HTTPStatus(error.status_code).phrase.lower(), headers=headers)


def _route(request: Request) -> str:
    """The route's pattern, never the path: that may hold anything."""
    return str(getattr(request.scope.get("route"), "path", "-"))
