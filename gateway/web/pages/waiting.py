"""What needs a person: held mails and emails, and the dead letters."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.store.lists import Page
from gateway.web.pages.desk import Desk, NoSuchPage, checked_form, done

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

    @router.post("/dead/{number}/retry")
    async def retry(request: Request, number: str) -> Response:
        await checked_form(request)
        return done("/dead", "retried" if await desk.operator_for(request).retry_dead(number) else "nothing")

    @router.post("/dead/{number}/drop")
    async def drop(request: Request, number: str) -> Response:
        await checked_form(request)
        return done("/dead", "dropped" if await desk.operator_for(request).drop_dead(number) else "nothing")
