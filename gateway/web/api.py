"""The API under /v1: `POST /v1/emails` puts a validated `email.send` on the queue, `GET /v1/emails/{id}` tells its story.

Flow: request → the client's submit → queue; nothing here writes the store.  Home of FastAPI and uvicorn.
Promise: 202 means kept by the queue; every error is problem+json (RFC 9457) naming each field; a fault of ours is 503
with Retry-After.  Limit: open on loopback only (see `guard`) until users and keys exist.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from gateway.contract.email_send import MAX_REQUEST_BYTES, SendEmail, parse_send_email, refuse_too_large
from gateway.errors import InvalidRequest, Problem, TransientFailure
from gateway.mail.ids import canonical_uuid
from gateway.runtime import Stop, aside
from gateway.web.guard import Guard

REMEMBERED_SECONDS = 600.0
REMEMBERED_IDS = 10_000
EmailStory = Callable[[str], Awaitable[dict[str, Any] | None]]
Readiness = Callable[[], Awaitable[list[str]]]


class Submit(Protocol):
    """What puts a request on the queue: `client.Client`."""

    async def send(self, email: SendEmail, /) -> str: ...


def create_api(
    *, submit: Submit, check: Callable[[SendEmail], list[Problem]], story: EmailStory, readiness: Readiness
) -> FastAPI:
    """Builds the application; everything it needs is handed in."""
    api = FastAPI(title="gateway", version="1", docs_url=None, redoc_url=None)
    api.add_exception_handler(InvalidRequest, _invalid)
    api.add_exception_handler(RequestValidationError, _unreadable)
    api.add_exception_handler(TransientFailure, _unavailable)

    queued = _Queued()

    @api.post("/v1/emails", status_code=202)
    async def post_email(request: Request) -> JSONResponse:
        body, key = await request.body(), request.headers.get("idempotency-key")
        email = await aside(len(body), lambda: _read(body, key, check))
        try:
            email_id = await submit.send(email)
        except TransientFailure as fault:
            return _unconfirmed(fault, email.id)
        queued.add(email_id)
        return JSONResponse(
            {"id": email_id, "status": "queued"}, status_code=202, headers={"Location": f"/v1/emails/{email_id}"}
        )

    @api.get("/v1/emails/{email_id}")
    async def get_email(email_id: str) -> Response:
        try:
            known = canonical_uuid(email_id)
        except ValueError:
            return problem(422, "the id is not a UUID", [Problem("id", "not a UUID")])
        found = await story(known)
        if found is None and known in queued:
            return JSONResponse({"id": known, "status": "pending"})
        if found is None:
            return problem(404, "no such email in the ledger (yet)", headers={"Retry-After": "1"})
        return JSONResponse(found)

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @api.get("/readyz")
    async def readyz() -> JSONResponse:
        troubles = await readiness()
        return JSONResponse(
            {"status": "not ready" if troubles else "ready", "troubles": troubles}, status_code=503 if troubles else 200
        )

    return api


class _Queued:
    """The ids this process queued in the last minutes: known to us before the ledger knows them."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def add(self, email_id: str) -> None:
        self._until.pop(email_id, None)  # so that the oldest always stands first
        self._until[email_id] = time.monotonic() + REMEMBERED_SECONDS
        while len(self._until) > REMEMBERED_IDS:
            del self._until[next(iter(self._until))]

    def __contains__(self, email_id: str) -> bool:
        return self._until.get(email_id, 0.0) > time.monotonic()


def _read(body: bytes, key: str | None, check: Callable[[SendEmail], list[Problem]]) -> SendEmail:
    email = _with_idempotency_key(body, key)
    problems = check(email)
    if problems:
        raise InvalidRequest(problems)
    return email


def _with_idempotency_key(body: bytes, key: str | None) -> SendEmail:
    """Reads the body; the Idempotency-Key is the email's id (and must not contradict one in the body)."""
    if key is None:
        return parse_send_email(body)
    key = key.strip().strip('"')  # a string in quotes in the IETF's draft, plain nearly everywhere else
    refuse_too_large(body)
    try:
        data = json.loads(body)
    except RecursionError:
        raise InvalidRequest([Problem("(request)", "is nested too deep")]) from None
    except ValueError as error:
        raise InvalidRequest([Problem("(request)", f"is not JSON: {error}")]) from None
    if not isinstance(data, dict):
        raise InvalidRequest([Problem("(request)", "is not a JSON object")])
    given = str(data.setdefault("id", key)).lower()
    if given != key.lower():
        raise InvalidRequest([Problem("Idempotency-Key", "differs from the id in the body")])
    return parse_send_email(json.dumps(data))


def problem(
    status: int,
    title: str,
    problems: list[Problem] | None = None,
    headers: dict[str, str] | None = None,
    **members: str,
) -> JSONResponse:
    """An RFC 9457 answer, with further members of its own."""
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, **members}
    if problems:
        body["errors"] = [{"path": item.path, "message": item.message} for item in problems]
    return JSONResponse(body, status_code=status, media_type="application/problem+json", headers=headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidRequest)
    return problem(422, "the request breaks its contract", list(error.problems))


async def _unreadable(request: Request, error: Exception) -> Response:
    return problem(422, "the request cannot be read")


async def _unavailable(request: Request, error: Exception) -> Response:
    return problem(503, f"cannot be answered now: {error}; try again", headers={"Retry-After": "5"})


def _unconfirmed(fault: Exception, email_id: str) -> JSONResponse:
    """The queue may or may not have it: the same id makes trying again safe, so it is told."""
    title = f"not confirmed: {fault}; try again with the same id"
    return problem(503, title, headers={"Retry-After": "5"}, id=email_id)


class _QuietServer(uvicorn.Server):
    """uvicorn without its signal handling: the process has one owner of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_api(api: FastAPI, listener: socket.socket, stop: Stop, *, grace_seconds: float) -> None:
    """Serves until stop; requests under way get the grace time."""
    import asyncio

    config = uvicorn.Config(
        Guard(api, max_body_bytes=MAX_REQUEST_BYTES),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, int(grace_seconds)),
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = _QuietServer(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    server.should_exit = True
    await serving
