"""`/v1/posts`: what mailboxes and apps made; an app's own post is queued as `post.create`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from gateway.contract.post_create import CreatePost, parse_create_post
from gateway.errors import TransientFailure
from gateway.runtime import aside
from gateway.store.lists import Page
from gateway.web.api import models
from gateway.web.api.emails import IdempotencyKey
from gateway.web.api.parts import READER, SENDER, ApiParts, app_of, body_of, known_id, listed, page_asked, read_with_key
from gateway.web.api.problems import RETRY_SECONDS, problem, told_as
from gateway.web.asking import Asker

_STORY = models.PostStory | models.PendingPost | models.FailedPost
_EXAMPLE = {"author": "Ann", "title": "Hello", "text": "from the app"}


def post_routes(parts: ApiParts) -> APIRouter:
    routes = APIRouter(prefix="/v1/posts", tags=["posts"])

    @routes.post(
        "",
        status_code=202,
        response_model=models.Queued,
        responses=told_as(422),
        openapi_extra=body_of(CreatePost, _EXAMPLE),
    )
    async def create_post(request: Request, idempotency_key: IdempotencyKey = None, asker: Asker = SENDER) -> Response:
        """Queues a post of the app's own; it is at its Location when it is recorded."""
        body = await request.body()
        post = await aside(len(body), lambda: read_with_key(body, idempotency_key, parse_create_post))
        try:
            post_id = await parts.submit(app_of(asker)).create_post(post)
        except TransientFailure as fault:
            title = f"not confirmed: {fault}; try again with the same id"
            return problem(503, title, headers={"Retry-After": RETRY_SECONDS}, id=post.id)
        answer = {"id": post_id, "status": "queued"}
        return JSONResponse(answer, status_code=202, headers={"Location": f"/v1/posts/{post_id}"})

    @routes.get("", response_model=models.PostList, responses=told_as(422), dependencies=[READER])
    async def list_posts(
        page: Annotated[Page, Depends(page_asked)], filters: Annotated[dict[str, str | None], Depends(_filters)]
    ) -> Response:
        """Lists posts, the newest first."""
        return await listed(parts, "posts", filters, page)

    @routes.get("/{post_id}", response_model=_STORY, responses=told_as(404, 422), dependencies=[READER])
    async def get_post(post_id: str) -> Response:
        """Tells one post with its attachments, thread and timeline; one on its way, or why its request failed."""
        known = known_id(post_id)
        found = await parts.mails.post_story(known) or await parts.mails.post_refusal(known)
        found = found or await parts.pending.recall(known)
        if found is None:
            return problem(404, "no such post (yet)", headers={"Retry-After": "1"})
        return JSONResponse(found)

    return routes


async def _filters(
    id: str | None = None,
    mailbox: str | None = None,
    kind: str | None = None,
    mail_id: str | None = None,
    thread_id: str | None = None,
    app: str | None = None,
    text: str | None = None,
) -> dict[str, str | None]:
    """What posts to list: `id` is the beginning of one, `text` words that must all stand in title, author or text."""
    found = {"id": id, "mailbox": mailbox, "kind": kind, "mail_id": mail_id, "thread_id": thread_id}
    return found | {"app": app, "text": text}
