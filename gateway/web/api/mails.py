"""`/v1/mails`: what came in, one line per recipient, and the story of each; releases what is held."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse

from gateway.mail.disposition import Disposition
from gateway.store.lists import Page
from gateway.web.api import models
from gateway.web.api.parts import OPERATOR, READER, ApiParts, known_id, listed, name_of, page_asked
from gateway.web.api.problems import problem, told_as
from gateway.web.asking import Asker


def mail_routes(parts: ApiParts) -> APIRouter:
    routes = APIRouter(prefix="/v1/mails", tags=["mails"])

    @routes.get("", response_model=models.MailList, responses=told_as(422), dependencies=[READER])
    async def list_mails(
        page: Annotated[Page, Depends(page_asked)], filters: Annotated[dict[str, str | None], Depends(_filters)]
    ) -> Response:
        """Lists mails, one line per recipient, the newest first."""
        return await listed(parts, "mails", filters, page)

    @routes.get("/{mail_id}", response_model=models.MailStory, responses=told_as(404, 422), dependencies=[READER])
    async def get_mail(mail_id: str) -> Response:
        """Tells the whole story of one mail."""
        found = await parts.mails.story(known_id(mail_id))
        return JSONResponse(found) if found is not None else problem(404, "no such mail")

    @routes.post("/{mail_id}/release", response_model=models.Changed, responses=told_as(404, 409, 422))
    async def release_mail(mail_id: str, asker: Asker = OPERATOR) -> Response:
        """Brings what is held of a mail before its mailbox again, with a person's word."""
        known = known_id(mail_id)
        if await parts.mails.story(known) is None:
            return problem(404, "no such mail")
        changed = await parts.operator(name_of(asker)).release(known)
        return (
            JSONResponse({"id": known, "changed": changed}) if changed else problem(409, "nothing of this mail is held")
        )

    return routes


async def _filters(
    id: str | None = None,
    mail_from: str | None = None,
    rcpt_to: str | None = None,
    mailbox: str | None = None,
    disposition: Disposition | None = None,
    text: str | None = None,
) -> dict[str, str | None]:
    """What lines to list: `id` is the beginning of one, `text` words that must all stand in the line."""
    found = {"id": id, "mail_from": mail_from, "rcpt_to": rcpt_to, "mailbox": mailbox, "text": text}
    return found | {"disposition": disposition}
