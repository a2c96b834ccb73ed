"""Posts of apps: the handler of `post.create`, on the same record path as a mail's post.

Order: checked, html sanitised and attachments typed in the cage, blobs put, recorded in one transaction, answered.
Promises: idempotent by the post's id; a bad request is noted and answered with every problem, and one that nobody waits for an
answer to is a dead letter with its reason, never silently gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gateway.contract.email_send import Attachment
from gateway.contract.post_create import VERSION, CreatePost, parse_create_post
from gateway.contract.request import Status, answer_json, claimed_id, with_id
from gateway.errors import InvalidRequest, OverBudget, PermanentFailure, Problem
from gateway.inbound.attachments import TypedAttachment, typed
from gateway.inbound.ingest import new_attachment
from gateway.inbound.intake import Blobs
from gateway.mail.parse import Cage, ParsedAttachment
from gateway.maillog import MailLog
from gateway.queue.broker import Done
from gateway.queue.ticket import Ticket
from gateway.runtime import Clock, aside, failpoint
from gateway.store.blobs import octets_of
from gateway.store.ledger import Acceptance
from gateway.store.mails import Mails
from gateway.store.posts import NewPost

Answer = Callable[[Ticket, bytes], Awaitable[None]]


class PostDesk:
    """Records the posts that apps make."""

    def __init__(self, *, mails: Mails, blobs: Blobs, cage: Cage, answer: Answer, log: MailLog, clock: Clock) -> None:
        self._mails = mails
        self._blobs = blobs
        self._cage = cage
        self._answer = answer
        self._log = log
        self._clock = clock

    async def handle(self, ticket: Ticket) -> Done:
        """Works one ticket; raises PermanentFailure for a bad one nobody waits for, and what store, queue and cage raise."""
        try:
            request = await aside(len(ticket.body), lambda: read_request(ticket))
            post = await self._post(request)
        except InvalidRequest as invalid:
            return await self._refuse(ticket, "rejected", invalid.problems)
        recorded = await self._mails.record_posted(
            post, post_id=request.id, app=ticket.app, content_hash=await aside(len(ticket.body), request.content_hash)
        )
        failpoint("post_create.recorded")
        if recorded is Acceptance.CONFLICT:
            return await self._refuse(ticket, "conflict", [Problem("id", "is taken by a post with other content")])
        if recorded is Acceptance.ACCEPTED:
            self._log.post_created(request.id, mailbox=post.mailbox, app=ticket.app)
        await self._respond(ticket, request.id, "accepted", [])
        return Done()

    async def _post(self, request: CreatePost) -> NewPost:
        attachments = await self._attachments(request.attachments)
        text, html = await self._words(request)
        return NewPost(
            mailbox=request.mailbox,
            kind="post",
            author=request.author,
            author_address=request.author_address or "",
            title=request.title,
            text=text,
            html=html or None,
            created_at=request.created_at or self._clock(),
            attachments=tuple(new_attachment(number, item) for number, item in enumerate(attachments)),
        )

    async def _words(self, request: CreatePost) -> tuple[str, str]:
        """Text and safe html; html alone makes the text, too."""
        if not request.html:
            return request.text, ""
        try:
            answer, _ = await self._cage.run("gateway.inbound.post_create:clean_job", {}, request.html.encode())
        except OverBudget as fault:
            if fault.kind == "wall":
                raise  # it says more of a busy machine than of the html
            raise InvalidRequest([Problem("html", f"costs too much to clean ({fault})")]) from None
        return request.text or answer["text"], answer["html"]

    async def _attachments(self, given: Sequence[Attachment]) -> tuple[TypedAttachment, ...]:
        octets = [await self._octets(item, f"attachments[{number}].blob") for number, item in enumerate(given)]
        parsed = [
            ParsedAttachment(
                filename=item.filename,
                content_type=item.content_type,
                octets=content,
                content_id=item.filename if item.inline else "",
                inline=item.inline,
            )
            for item, content in zip(given, octets, strict=True)
        ]
        found = await typed(parsed, self._cage)
        await asyncio.gather(*(self._blobs.put(item.octets) for item in found))
        return found

    async def _octets(self, item: Attachment, path: str) -> bytes:
        if item.blob is None:
            return item.octets()
        octets = await octets_of(self._blobs, item.blob)
        if octets is None:
            raise InvalidRequest([Problem(path, f"{item.blob} is not in the store")])
        return octets

    async def _refuse(self, ticket: Ticket, status: Status, problems: Sequence[Problem]) -> Done:
        text, post_id = "; ".join(map(str, problems)), claimed_id(ticket.body, ticket.id)
        self._log.post_rejected(post_id, problems=text)
        await self._mails.record_post_rejected(post_id, app=ticket.app, problems=problems)
        if not ticket.reply_to:
            raise PermanentFailure(f"{status}: {text}")
        await self._respond(ticket, post_id, status, problems)
        return Done()

    async def _respond(self, ticket: Ticket, post_id: str, status: Status, problems: Sequence[Problem]) -> None:
        if ticket.reply_to:
            await self._answer(ticket, answer_json(post_id, status, problems))


def clean_job(request: dict[str, Any], octets: bytes) -> tuple[dict[str, Any], bytes]:
    """The cage's entry: html of an app (which may be a stranger's) to safe html and its text."""
    from gateway.mail.parse.html import sanitise, to_text

    html = sanitise(octets.decode())
    return {"html": html, "text": to_text(html)}, b""


def read_request(ticket: Ticket) -> CreatePost:
    """The ticket's request; raises InvalidRequest, or NewerVersion. Without an `id` of its own it has the ticket's."""
    return parse_create_post(with_id(ticket.body, ticket.id, known=VERSION, contract="post.create"))
