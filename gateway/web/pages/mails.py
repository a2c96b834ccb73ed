"""The mails: the list, one mail's story, what an operator may do about it, and the search over everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from gateway.inbound.authenticate.words import words_of
from gateway.inbound.replay import WAITS_FOR_A_PERSON
from gateway.mail.disposition import Disposition
from gateway.store.lists import Listing, Page
from gateway.web.pages.actions import Action, add_action
from gateway.web.pages.asked import asked
from gateway.web.pages.contents import Source, add_contents
from gateway.web.pages.desk import Desk
from gateway.web.pages.faults import NoSuchPage
from gateway.web.pages.story import steps

if TYPE_CHECKING:
    from gateway.watch.operator import Operator

_FILTERS = ("text", "disposition", "mailbox", "rcpt_to", "mail_from")
_DISPOSITIONS = ("pending", "held", "delivered", "duplicate", "discarded", "failed", "dead")
_BLANK = dict.fromkeys(("reason", "mailbox", "post_id", "duplicate_of", "next_attempt_at"), "")
_FOUND_LINES = 10
_MIN_PREFIX = 8


def add_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/mails")
    async def mails(request: Request) -> Response:
        question = asked(request, _FILTERS)
        listing = await desk.lists.page("mails", question.filters, question.page)
        values = {"listing": listing, "dispositions": _DISPOSITIONS, "mailboxes": desk.places.mailboxes}
        return await desk.show(request, "mails.html", values | question.values(), room="/mails")

    @router.get("/mails/{mail_id}")
    async def mail(request: Request, mail_id: str) -> Response:
        found = await _story(desk, mail_id)
        open_ = {row["disposition"] for row in found["recipients"]}
        values = {
            "mail": found | {"recipients": [_BLANK | row for row in found["recipients"]]},
            "steps": steps("mail", found["timeline"]),
            "sender": words_of(found["authentication"]),
            "base": f"/mails/{mail_id}",
            "tab": "story",
            "has_contents": True,
            "is_held": Disposition.HELD in open_,
            "is_replayable": bool(open_ & set(WAITS_FOR_A_PERSON)),
        }
        return await desk.show(request, "mail.html", values, room="/mails")

    @router.get("/find")
    async def find(request: Request) -> Response:
        words = request.query_params.get("q", "").strip()[:200]
        if len(words) >= _MIN_PREFIX and len(one := await desk.mails.find(words)) == 1:
            kind, subject = one[0]
            return RedirectResponse(f"/{kind}s/{subject}", status_code=303)
        nothing, page = Listing(rows=[]), Page(limit=_FOUND_LINES)
        values = {
            "asked": words,
            "mails": await desk.lists.page("mails", {"text": words}, page) if words else nothing,
            "emails": await desk.lists.page("emails", {"text": words}, page) if words else nothing,
        }
        return await desk.show(request, "find.html", values)

    for action in _ACTIONS:
        add_action(router, desk, action)
    add_contents(
        router,
        desk,
        Source(
            base="/mails", name="Mails", fetch=lambda item: desk.mails.octets(item), head=lambda item: _head(desk, item)
        ),
        page_path="/mails/{item}/contents",
    )


async def _replay(operator: Operator, mail_id: str) -> int:
    return sum(line["action"] == "replayed" for line in await operator.replay([mail_id]))


_ACTIONS = (
    Action(base="/mails", verb="release", said="released", act=lambda operator, item: operator.release(item)),
    Action(base="/mails", verb="discard", said="discarded", act=lambda operator, item: operator.discard(item)),
    Action(base="/mails", verb="replay", said="replayed", act=_replay),
)


async def _story(desk: Desk, mail_id: str) -> dict[str, Any]:
    found = await desk.mails.story(mail_id)
    if found is None:
        raise NoSuchPage("there is no such mail")
    return found


async def _head(desk: Desk, mail_id: str) -> dict[str, Any]:
    return {"title": (await _story(desk, mail_id))["subject"]}
