"""The status page for senders: what became of one mail, for whoever holds the signed link of its notice; no login.

It says only what the sender may know: his own subject, the time, our number, and for each address he wrote to where it
stands in plain words.  Reasons of ours, mailboxes, posts and clients are not told; the refusal of a mailbox is, because the
sender was told the same by mail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.mail.disposition import Disposition
from gateway.web.pages.desk import Desk
from gateway.web.pages.status_words import WORDS, language

_STANDINGS = {
    Disposition.DELIVERED: ("good", "arrived", ""),
    Disposition.DUPLICATE: ("good", "twice", ""),
    Disposition.HELD: ("warn", "waiting", "do_waiting"),
    Disposition.DEAD: ("warn", "waiting", "do_waiting"),
    Disposition.FAILED: ("bad", "refused", "do_refused"),
    Disposition.DISCARDED: ("plain", "ended", ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a mail stands for one address, in words."""

    recipient: str
    tone: str
    what: str
    answer: str
    next: str


def add_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/status/{token}")
    async def status(request: Request, token: str) -> Response:
        lang = language(request.headers.get("accept-language", ""))
        page: dict[str, Any] = {"lang": lang, "words": WORDS[lang]}
        mail_id = desk.links.mail_id(token)
        mail = await desk.mails.story(mail_id) if mail_id else None
        if mail is None:
            return desk.view.page(request, "status_unknown.html", status=404, **page)
        standings = [standing(row, WORDS[lang]) for row in mail["recipients"]]
        shown = {name: mail[name] for name in ("id", "subject", "received_at")}
        return desk.view.page(request, "status.html", mail=shown, standings=standings, **page)


def standing(row: Mapping[str, Any], words: Mapping[str, str]) -> Standing:
    """What a sender may know of one recipient."""
    disposition = Disposition(row["disposition"])
    tone, what, next_ = _STANDINGS.get(disposition, ("plain", "later" if row.get("attempts") else "kept", ""))
    if disposition is Disposition.DELIVERED and row.get("reason") == "partial":
        tone, what = "warn", "partly"
    answer = str(row.get("reply_text", "")) if disposition is Disposition.FAILED else ""
    next_words = words[next_] if next_ else ""
    return Standing(recipient=row["rcpt_to"], tone=tone, what=words[what], answer=answer, next=next_words)
