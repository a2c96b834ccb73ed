"""The inbox of captured mail: what the relay `capture:` kept, so that a development machine needs no mail program."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.outbound.captured import MAX_READ_BYTES
from gateway.web.pages.asked import PAGE_LINES, asked
from gateway.web.pages.contents import Source, add_contents
from gateway.web.pages.desk import Desk
from gateway.web.pages.faults import NoSuchPage
from gateway.web.pages.view import size


def add_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/captured")
    async def captured(request: Request) -> Response:
        question = asked(request, ("text",))
        found, more = await desk.captured.page(
            limit=PAGE_LINES, before=question.wanted["after"], matching=question.wanted["text"]
        )
        values = {"listing": {"rows": found, "next": more}, "captures": desk.places.captures} | question.values()
        return await desk.show(request, "captured.html", values, room="/captured")

    source = Source(
        base="/captured",
        name="Captured mail",
        fetch=desk.captured.read,
        head=lambda item: _head(desk, item),
        has_story=False,
        missing=f"its file is larger than the {size(MAX_READ_BYTES)} that are read here, or cannot be read",
    )
    add_contents(router, desk, source, page_path="/captured/{item}")


async def _head(desk: Desk, name: str) -> dict[str, Any]:
    found = await desk.captured.find(name)
    if found is None:
        raise NoSuchPage("there is no such captured mail")
    facts = {
        "to (envelope)": found.recipient,
        "from (envelope)": found.mail_from or "<>",
        "captured": desk.view.when(found.captured_at),
        "size": size(found.size),
        "file": f"{name}.eml",
    }
    return {"title": found.subject, "facts": [item for item in facts.items() if item[1]], "fault": found.fault}
