"""The page behind a question to a registered person: are these held mails yours?  For whoever holds its link; no login.

Looking changes nothing, because scanners follow links; the buttons are POSTs to the same address, whose token is the right to
press them.  It tells what the person needs to know his own mail by: time, subject, mailbox and where it came from.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.web.login import read_form
from gateway.web.pages.desk import Desk, done
from gateway.web.pages.faults import NoSuchPage

_SAID = {
    "confirmed": "Thank you. What you confirmed goes its way.",
    "disowned": "Thank you. What is not yours is discarded.",
}


def add_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/confirm/{token}")
    async def look(request: Request, token: str) -> Response:
        found = await desk.confirming.look(token)
        if found is None:
            raise NoSuchPage("there is no such question")
        is_open = found.state == "open"
        said = _SAID.get(request.query_params.get("said", ""), "")
        return desk.view.page(request, "confirm.html", token=token, said=said, asked=found if is_open else None)

    @router.post("/confirm/{token}/{verb}")
    async def answer(request: Request, token: str, verb: str) -> Response:
        found = await desk.confirming.look(token)
        if found is None or verb not in ("yes", "no"):
            raise NoSuchPage("there is no such question")
        fields = await read_form(request)
        chosen = [fields["mail"]] if fields.get("mail") else None
        act = desk.confirming.confirm if verb == "yes" else desk.confirming.disown
        await act(found.id, chosen)
        return done(f"/confirm/{token}", "confirmed" if verb == "yes" else "disowned")
