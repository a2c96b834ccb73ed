"""The contents of a mail, wherever its octets lie: text, html in its frame, attachments, header and the octets themselves.

Mails, emails and captured mail each say where their octets are (`Source`); the four routes are the same for all.
Promises: html is shown in a sandboxed frame that loads nothing; an attachment is never shown in place, only saved.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.web.pages.desk import Desk
from gateway.web.pages.faults import NoSuchPage
from gateway.web.pages.reading import Reading, framed_html
from gateway.web.pages.view import file_response


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One kind of item with octets: where its pages are, and how to fetch them (None: there is no such item)."""

    base: str  # "/mails"
    name: str  # "Mails", the list it stands in
    fetch: Callable[[str], Awaitable[bytes | None]]
    head: Callable[[str], Awaitable[dict[str, Any]]]  # title, facts, fault; raises NoSuchPage
    has_story: bool = True
    missing: str = "there are no octets of it here (yet)"


def add_contents(router: APIRouter, desk: Desk, source: Source, *, page_path: str) -> None:
    """The routes below one item; `page_path` is where its contents are shown."""
    base = source.base + "/{item}"

    async def reading_of(item: str) -> Reading | None:
        return await desk.reader.read(f"{source.base}/{item}", lambda: source.fetch(item))

    async def known_reading(item: str) -> Reading:
        reading = await reading_of(item)
        if reading is None:
            raise NoSuchPage(source.missing)
        return reading

    @router.get(page_path)
    async def contents(request: Request, item: str) -> Response:
        head = await source.head(item)
        reading = await reading_of(item)
        fault = (reading.fault if reading else source.missing) or head.get("fault", "")
        page = {"list_href": source.base, "list_name": source.name, "base": f"{source.base}/{item}", "reading": reading}
        tabs = {"has_story": source.has_story, "has_contents": True, "tab": "contents"}
        values = {"facts": [], **head, **page, **tabs, "fault": fault}
        return await desk.show(request, "contents.html", values, room=source.base)

    @router.get(base + "/html")
    async def html(item: str) -> Response:
        return desk.view.frame(framed_html((await known_reading(item)).mail))

    @router.get(base + "/files/{number}")
    async def attachment(request: Request, item: str, number: int) -> Response:
        found = (await known_reading(item)).attachment(number)
        if found is None:
            raise NoSuchPage("the mail has no such attachment")
        return file_response(request, found.octets, filename=found.filename)

    @router.get(base + "/raw")
    async def raw(request: Request, item: str) -> Response:
        octets = await source.fetch(item)
        if octets is None:
            raise NoSuchPage(source.missing)
        return file_response(request, octets, filename=f"{item}.eml")
