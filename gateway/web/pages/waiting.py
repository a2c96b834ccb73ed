"""What needs a person: held mails and emails, and the dead letters."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.store.lists import Page
from gateway.web.pages.actions import Action, add_action
from gateway.web.pages.desk import Desk
from gateway.web.pages.faults import NoSuchPage

_LINES = 50
_LETTERS = 200
_HELD = {"disposition": "held"}


def add_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/held")
    async def held(request: Request) -> Response:
        page = Page(limit=_LINES)
        listings = {
            "mails": await desk.lists.page("mails", _HELD, page),
            "emails": await desk.lists.page("emails", _HELD, page),
        }
        return await desk.show(request, "held.html", listings, room="/held")

    @router.get("/dead")
    async def dead(request: Request) -> Response:
        letters = await desk.broker.dead(limit=_LETTERS)
        values = {"letters": letters, "is_cut": len(letters) == _LETTERS}
        return await desk.show(request, "dead.html", values, room="/dead")

    @router.get("/dead/{number}")
    async def letter(request: Request, number: str) -> Response:
        found = await desk.broker.dead_one(number)
        if found is None:
            raise NoSuchPage("there is no such dead letter (any more)")
        subjects = await desk.mails.find(found.ticket.id)
        kind, href = (subjects[0][0], f"/{subjects[0][0]}s/{subjects[0][1]}") if len(subjects) == 1 else ("", "")
        values = {"letter": found, "subject_kind": kind, "subject_href": href}
        return await desk.show(request, "dead_letter.html", values, room="/dead")

    for action in _ACTIONS:
        add_action(router, desk, action)


_ACTIONS = (
    Action(
        base="/dead",
        verb="retry",
        said="retried",
        act=lambda operator, number: operator.retry_dead(number),
        leads_back_to_the_list=True,
    ),
    Action(
        base="/dead",
        verb="drop",
        said="dropped",
        act=lambda operator, number: operator.drop_dead(number),
        leads_back_to_the_list=True,
    ),
)
