"""`/v1/emails`: puts a validated `email.send` on the queue, lists, tells stories, and holds, releases or cancels.

Promise: 202 means kept by the queue.  A key that may only send sees and stops its own app's emails and no others: they are
not there for it.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse

from gateway.contract.email_send import SendEmail, parse_send_email
from gateway.errors import InvalidRequest, TransientFailure
from gateway.mail.disposition import Disposition
from gateway.runtime import aside
from gateway.store.lists import Page
from gateway.web.api import models
from gateway.web.api.parts import (
    OPERATOR,
    SENDER,
    SENDER_OR_READER,
    ApiParts,
    app_of,
    body_of,
    known_id,
    listed,
    name_of,
    only_app_of,
    page_asked,
    read_with_key,
)
from gateway.web.api.problems import RETRY_SECONDS, problem, told_as
from gateway.web.asking import Asker

REMEMBERED_SECONDS = 600.0
REMEMBERED_IDS = 10_000
_EXAMPLE = {"template": "welcome", "to": ["Ann <ann@example.org>"], "params": {"name": "Ann"}}
_STORY = models.EmailStory | models.RejectedStory | models.Pending
IdempotencyKey = Annotated[str | None, Header(description="the id of the request, a UUID: the same again is done once")]


def email_routes(parts: ApiParts) -> APIRouter:
    routes = APIRouter(prefix="/v1/emails", tags=["emails"])
    queued = RecentlyQueued()

    @routes.post(
        "",
        status_code=202,
        response_model=models.Queued,
        responses=told_as(422),
        openapi_extra=body_of(SendEmail, _EXAMPLE),
    )
    async def send_email(request: Request, idempotency_key: IdempotencyKey = None, asker: Asker = SENDER) -> Response:
        """Queues one email; what becomes of it is told at its Location."""
        body = await request.body()
        email = await aside(len(body), lambda: _checked(parts, body, idempotency_key))
        try:
            email_id = await parts.submit(app_of(asker)).send(email)
        except TransientFailure as fault:
            return _unconfirmed(fault, email.id)
        queued.add(app_of(asker), email_id)
        answer = {"id": email_id, "status": "queued"}
        return JSONResponse(answer, status_code=202, headers={"Location": f"/v1/emails/{email_id}"})

    @routes.get("", response_model=models.EmailList, responses=told_as(422))
    async def list_emails(
        page: Annotated[Page, Depends(page_asked)],
        filters: Annotated[dict[str, str | None], Depends(_filters)],
        asker: Asker = SENDER_OR_READER,
    ) -> Response:
        """Lists emails, one line per recipient, the newest first; rejected requests stand among them."""
        only = only_app_of(asker)
        return await listed(parts, "emails", filters if only is None else filters | {"app": only}, page)

    @routes.get("/{email_id}", response_model=_STORY, responses=told_as(404, 422))
    async def get_email(email_id: str, asker: Asker = SENDER_OR_READER) -> Response:
        """Tells the whole story of one email."""
        known = known_id(email_id)
        found = await _visible(parts, asker, known)
        if found is None and queued.has(app_of(asker), known):
            return JSONResponse({"id": known, "status": "pending"})
        return JSONResponse(found) if found is not None else _unknown()

    async def change(email_id: str, asker: Asker, verb: str) -> Response:
        known = known_id(email_id)
        if await _visible(parts, asker, known) is None:
            return _unknown()
        changed = await _VERBS[verb](parts, known, name_of(asker))
        if not changed:
            return problem(409, f"no recipient of this email can be {verb} now")
        return JSONResponse({"id": known, "changed": changed})

    @routes.post("/{email_id}/cancel", response_model=models.Changed, responses=told_as(404, 409, 422))
    async def cancel_email(email_id: str, asker: Asker = SENDER) -> Response:
        """Cancels what is not yet sent of an email."""
        return await change(email_id, asker, "cancelled")

    @routes.post("/{email_id}/hold", response_model=models.Changed, responses=told_as(404, 409, 422))
    async def hold_email(email_id: str, asker: Asker = OPERATOR) -> Response:
        """Holds what is not yet sent of an email for a person."""
        return await change(email_id, asker, "held")

    @routes.post("/{email_id}/release", response_model=models.Changed, responses=told_as(404, 409, 422))
    async def release_email(email_id: str, asker: Asker = OPERATOR) -> Response:
        """Lets what is held, dead or unknown go on."""
        return await change(email_id, asker, "released")

    return routes


class RecentlyQueued:
    """The ids this process queued in the last minutes: known to us before the ledger knows them."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}

    def add(self, app: str, email_id: str) -> None:
        self._until.pop((app, email_id), None)  # so that the oldest always stands first
        self._until[app, email_id] = time.monotonic() + REMEMBERED_SECONDS
        while len(self._until) > REMEMBERED_IDS:
            del self._until[next(iter(self._until))]

    def has(self, app: str, email_id: str) -> bool:
        return self._until.get((app, email_id), 0.0) > time.monotonic()


async def _cancel(parts: ApiParts, email_id: str, by: str) -> int:
    return await parts.operator(by).cancel(email_id)


async def _hold(parts: ApiParts, email_id: str, by: str) -> int:
    return await parts.operator(by).hold(email_id)


async def _release(parts: ApiParts, email_id: str, by: str) -> int:
    return await parts.operator(by).release(email_id)


_VERBS = {"cancelled": _cancel, "held": _hold, "released": _release}


async def _filters(
    id: str | None = None,
    recipient: str | None = None,
    disposition: Disposition | None = None,
    template: str | None = None,
    stream: str | None = None,
    app: str | None = None,
    text: str | None = None,
) -> dict[str, str | None]:
    """What lines to list: `id` is the beginning of one, `text` words that must all stand in the line."""
    found = {"id": id, "recipient": recipient, "template": template, "stream": stream, "app": app, "text": text}
    return found | {"disposition": disposition}


def _checked(parts: ApiParts, body: bytes, key: str | None) -> SendEmail:
    email = read_with_key(body, key, parse_send_email)
    problems = parts.check(email)
    if problems:
        raise InvalidRequest(problems)
    return email


async def _visible(parts: ApiParts, asker: Asker, email_id: str) -> dict[str, Any] | None:
    """The story, if this asker may see it."""
    found = await parts.ledger.story(email_id)
    only = only_app_of(asker)
    return found if found is None or only in (None, found["app"]) else None


def _unknown() -> Response:
    return problem(404, "no such email in the ledger (yet)", headers={"Retry-After": "1"})


def _unconfirmed(fault: Exception, email_id: str) -> JSONResponse:
    """The queue may or may not have it: the same id makes trying again safe, so it is told."""
    title = f"not confirmed: {fault}; try again with the same id"
    return problem(503, title, headers={"Retry-After": RETRY_SECONDS}, id=email_id)
