"""The emails: the list, one email's story, its contents as they are sent, and what an operator may do about it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.mail.disposition import Disposition
from gateway.web.pages.actions import Action, add_action
from gateway.web.pages.asked import asked
from gateway.web.pages.contents import Source, add_contents
from gateway.web.pages.desk import Desk
from gateway.web.pages.faults import NoSuchPage
from gateway.web.pages.story import steps

_FILTERS = ("text", "disposition", "stream", "recipient", "template")
_DISPOSITIONS = (
    *("pending", "sending", "delayed", "unknown", "held", "relayed", "bounced", "complained", "suppressed"),
    *("expired", "cancelled", "failed", "dead", "rejected"),
)
_BLANK = dict.fromkeys(("reason", "relay", "reply", "next_attempt_at"), "")
_RELEASABLE = frozenset({Disposition.HELD, Disposition.DEAD, Disposition.UNKNOWN})
_ACTIONS = (
    Action(base="/emails", verb="release", said="released", act=lambda operator, item: operator.release(item)),
    Action(base="/emails", verb="discard", said="cancelled", act=lambda operator, item: operator.discard(item)),
    Action(base="/emails", verb="cancel", said="cancelled", act=lambda operator, item: operator.cancel(item)),
)
_CANCELLABLE = _RELEASABLE | {Disposition.PENDING, Disposition.DELAYED}


def add_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/emails")
    async def emails(request: Request) -> Response:
        question = asked(request, _FILTERS)
        listing = await desk.lists.page("emails", question.filters, question.page)
        values = {"listing": listing, "dispositions": _DISPOSITIONS} | question.values()
        return await desk.show(request, "emails.html", values, room="/emails")

    @router.get("/emails/{email_id}")
    async def email(request: Request, email_id: str) -> Response:
        found = await _story(desk, email_id)
        now = {row["disposition"] for row in found.get("recipients", [])}
        values = {
            "email": found | {"recipients": [_BLANK | row for row in found.get("recipients", [])]},
            "steps": steps("email", found["timeline"]),
            "base": f"/emails/{email_id}",
            "tab": "story",
            "has_contents": "recipients" in found,
            "is_rejected": "recipients" not in found,
            "is_releasable": bool(now & _RELEASABLE),
            "is_cancellable": bool(now & _CANCELLABLE),
        }
        return await desk.show(request, "email.html", values, room="/emails")

    for action in _ACTIONS:
        add_action(router, desk, action)
    add_contents(
        router,
        desk,
        Source(
            base="/emails",
            name="Emails",
            fetch=lambda item: _octets(desk, item),
            head=lambda item: _head(desk, item),
            missing="it is not written yet: its template is rendered when its turn comes",
        ),
        page_path="/emails/{item}/contents",
    )


async def _story(desk: Desk, email_id: str) -> dict[str, Any]:
    found = await desk.ledger.story(email_id)
    if found is None:
        raise NoSuchPage("there is no such email")
    return found


async def _octets(desk: Desk, email_id: str) -> bytes | None:
    email = await desk.ledger.email(email_id)
    return email.octets if email else None


async def _head(desk: Desk, email_id: str) -> dict[str, Any]:
    return {"title": (await _story(desk, email_id))["subject"]}
