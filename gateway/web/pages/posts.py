"""Posts, photo albums and support conversations, as people see them; the photos by their renditions, never the original."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.store.lists import Page
from gateway.web.pages.asked import asked
from gateway.web.pages.desk import Desk
from gateway.web.pages.faults import NoSuchPage
from gateway.web.pages.story import steps
from gateway.web.pages.view import file_response

_ALBUMS_A_PAGE = 24
_RENDITIONS = ("thumb", "web")
_MAX_TEASER = 400


def add_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/posts")
    async def posts(request: Request) -> Response:
        question = asked(request, ("text", "mailbox"), limit=_ALBUMS_A_PAGE)
        return await _list(request, desk, question.filters, question.page, question.values())

    @router.get("/support")
    async def support(request: Request) -> Response:
        question = asked(request, ("text",))
        filters = question.filters | {"kind": "support"}
        return await _list(request, desk, filters, question.page, question.values(), is_support=True)

    @router.get("/posts/{post_id}")
    async def post(request: Request, post_id: str) -> Response:
        found = await _post(desk, post_id)
        photos = _photos(found)
        values = {
            "post": found,
            "steps": steps("post", found["timeline"]),
            "photos": photos,
            "files": [item for item in found["attachments"] if not item["photo"]],
            "reply_to": _reply_to(desk, found),
        }
        room = "/support" if found["thread_id"] else "/posts"
        return await desk.show(request, "post.html", values, room=room)

    @router.get("/posts/{post_id}/photos/{position}")
    async def photo(request: Request, post_id: str, position: int) -> Response:
        found = await _post(desk, post_id)
        shown = [item for item in _photos(found) if item["web"]]
        numbers = [item["position"] for item in shown]
        if position not in numbers:
            raise NoSuchPage("the album has no such photo")
        at = numbers.index(position)
        values = {
            "post": found,
            "photo": shown[at],
            "number": at + 1,
            "count": len(shown),
            "before": numbers[at - 1] if at else None,
            "after": numbers[at + 1] if at + 1 < len(numbers) else None,
        }
        return await desk.show(request, "photo.html", values, room="/posts")

    @router.get("/posts/{post_id}/files/{position}")
    async def original(request: Request, post_id: str, position: int) -> Response:
        item = await _attachment(desk, post_id, position)
        octets = await desk.blobs.get(f"sha256:{item['sha256']}")
        return file_response(request, octets, filename=item["filename"])

    @router.get("/posts/{post_id}/files/{position}/{kind}")
    async def rendition(request: Request, post_id: str, position: int, kind: str) -> Response:
        item = await _attachment(desk, post_id, position)
        made = _rendition(item, kind)
        if made is None:
            raise NoSuchPage("there is no such picture (yet)")
        octets = await desk.blobs.get(f"sha256:{made['sha256']}")
        kind_of = made["content_type"]
        return file_response(request, octets, filename=item["filename"], content_type=kind_of, inline=True)


async def _list(
    request: Request,
    desk: Desk,
    filters: dict[str, str | None],
    page: Page,
    values: dict[str, Any],
    *,
    is_support: bool = False,
) -> Response:
    listing = await desk.lists.page("posts", filters, page)
    covers = {} if is_support else {row["id"]: await _cover(desk, row["id"]) for row in listing.rows}
    here = "/support" if is_support else "/posts"
    shown = {"listing": listing, "covers": covers, "is_support": is_support, "here": here}
    choices = {"mailboxes": desk.places.mailboxes}
    return await desk.show(request, "posts.html", shown | choices | values, room=here)


async def _cover(desk: Desk, post_id: str) -> dict[str, Any] | None:
    """The first photo that can be shown, else the beginning of the text."""
    found = await desk.mails.post(post_id)
    if found is None:
        return None
    first = next((item["position"] for item in _photos(found) if item["thumb"]), None)
    return {"position": first, "text": found["text"][:_MAX_TEASER]}


async def _post(desk: Desk, post_id: str) -> dict[str, Any]:
    found = await desk.mails.post_story(post_id)
    if found is None:
        raise NoSuchPage("there is no such post")
    return found


async def _attachment(desk: Desk, post_id: str, position: int) -> dict[str, Any]:
    found = await desk.mails.post(post_id)
    items: Sequence[dict[str, Any]] = found["attachments"] if found else ()
    for item in items:
        if item["position"] == position:
            return item
    raise NoSuchPage("the post has no such attachment")


def _photos(post: dict[str, Any]) -> list[dict[str, Any]]:
    """The photos of a post with their renditions by name, None for one that is not made (yet)."""
    photos = [item for item in post["attachments"] if item["photo"]]
    return [item | {kind: _rendition(item, kind) for kind in _RENDITIONS} for item in photos]


def _rendition(item: dict[str, Any], kind: str) -> dict[str, Any] | None:
    return next((made for made in item["renditions"] if made["kind"] == kind), None)


def _reply_to(desk: Desk, post: dict[str, Any]) -> str:
    if not post["thread_id"] or not post["address"]:
        return ""
    return desk.reply_address(post["address"], post["thread_id"])
