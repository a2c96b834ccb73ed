"""Hold and confirm: a registered person says whether held mails that claim to be from him are his.

Flow: `Asker` puts held mails into one open request a person and sends one email to the *registered* address; the person
answers by mail to the signed address in it, or on a page that POSTs what `ConfirmDesk` takes.  A yes publishes replay tickets
with a release; a no discards.  Looking changes nothing: scanners follow links.
Promises: a question asked twice after a crash is one email (same id); an answer given twice does nothing more; machines'
answers (auto-submitted, null sender, first line not a yes) are none; a question that cannot be sent keeps no other from it.
Limits: who reads the person's mail can confirm for him, as with every such link.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from gateway.errors import PermanentFailure
from gateway.inbound.replay import replay_tickets
from gateway.inbound.router import Router, own_address
from gateway.inbound.who import WhoMayWrite
from gateway.mail.envelope import Envelope
from gateway.mail.loop_guard import TRACE_HEADER, machine_mark, read_headers
from gateway.mail.tokens import Tokens
from gateway.maillog import MailLog
from gateway.queue.ticket import Ticket
from gateway.runtime import Stop
from gateway.store.confirmations import OPEN, Confirmations, Request
from gateway.store.mails import Mails

ASK_SECONDS = 5.0
TEMPLATE = "confirm_mails"
_PURPOSE = "confirm page"
_CLOSED = "this question was answered before, or has expired"
_YES = frozenset(("yes", "ja", "oui", "sì", "sí", "confirm"))
# Words that begin many a machine's answer (Danish "Tak for din mail", French "Si c'est urgent"): a yes where they stand alone.
_YES_ALONE = frozenset(("si", "tak", "ok"))
_WORD = re.compile(r"\w+")
Publish = Callable[[Sequence[Ticket]], Awaitable[None]]


class Submit(Protocol):
    """The gateway's own client."""

    async def send(self, email: str, /, *, to: str, **fields: Any) -> str: ...


class ConfirmDesk:
    """What a page or an answer may do with a request; a page names it by the token that `link_token` made."""

    def __init__(self, confirmations: Confirmations, mails: Mails, publish: Publish, tokens: Tokens) -> None:
        self._confirmations = confirmations
        self._mails = mails
        self._publish = publish
        self._tokens = tokens

    def link_token(self, request_id: str) -> str:
        return self._tokens.sign(_PURPOSE, request_id)

    async def look(self, token: str) -> Request | None:
        """The request behind a link, with the mails that wait; None for a link that is none of ours."""
        request_id = self._tokens.read(_PURPOSE, token)
        return None if request_id is None else await self._confirmations.request(request_id)

    async def confirm(self, request_id: str, mail_ids: Sequence[str] | None = None) -> str:
        """Lets mails (those asked about, or those named) go to their mailboxes; returns what was done, in words."""
        request = await self._confirmations.request(request_id)
        if request is None or request.state != OPEN:
            return _CLOSED
        chosen = _chosen(request, mail_ids)
        for item in chosen:
            mail = await self._mails.stored(item["id"])
            if mail is not None:
                await self._publish(replay_tickets(mail, [item["rcpt_to"]], is_release=True))
        await self._close(request, chosen)
        return f"confirmed: {len(chosen)} held mails go to their mailboxes"

    async def disown(self, request_id: str, mail_ids: Sequence[str] | None = None) -> str:
        """Discards mails (those asked about, or those named): the person did not write them."""
        request = await self._confirmations.request(request_id)
        if request is None or request.state != OPEN:
            return _CLOSED
        chosen = _chosen(request, mail_ids)
        for item in chosen:
            reason = "the person it claims to be from did not write it"
            await self._mails.record_discarded(item["id"], item["rcpt_to"], mailbox=item["mailbox"], reason=reason)
        await self._close(request, chosen)
        return f"disowned: {len(chosen)} held mails are discarded"

    async def _close(self, request: Request, chosen: Sequence[dict[str, Any]]) -> None:
        """Ends the request when nothing it asked about is left to be said."""
        if all(item in chosen for item in request.mails):
            await self._confirmations.close_answered(request.id)


class Asker:
    """Sends the questions and ends those that nobody answers; one loop in all is enough, several do no harm."""

    def __init__(
        self,
        confirmations: Confirmations,
        desk: ConfirmDesk,
        *,
        who: WhoMayWrite,
        router: Router,
        submit: Submit,
        log: MailLog,
        public_url: str = "",
    ) -> None:
        """`public_url` is where the page behind links is reached, '' where there is none: then people answer by mail."""
        self._confirmations = confirmations
        self._desk = desk
        self._who = who
        self._router = router
        self._submit = submit
        self._log = log
        self._public_url = public_url

    async def run(self, stop: Stop) -> None:
        """Asks every few seconds until `stop`; a round that fails is told and the next one comes."""
        while not await stop.wait(ASK_SECONDS):
            try:
                await self.ask_once()
            except Exception as error:  # noqa: BLE001  # broad: one request nobody foresaw must not end all asking
                self._log.service_failed("confirm", error=error)

    async def ask_once(self) -> int:
        """One round; returns how many questions were sent. Raises StoreUnavailable or QueueUnavailable."""
        await self._confirmations.expire()
        unsent = await self._confirmations.open_requests()
        for request_id in unsent:
            request = await self._confirmations.request(request_id)
            if request is not None and request.mails:
                await self._ask_or_say_why(request)
            await self._confirmations.record_asked(request_id)
        return len(unsent)

    async def _ask_or_say_why(self, request: Request) -> None:
        """What cannot be asked (its mailbox is gone, say) stays held, and expires like a question without an answer."""
        try:
            await self._ask(request)
        except PermanentFailure as error:
            self._log.service("confirm", "cannot-ask", request=request.id, error=str(error))

    async def _ask(self, request: Request) -> None:
        rcpt_to = request.mails[0]["rcpt_to"]
        answer = self._who.answer_address(own_address(self._router.route(rcpt_to), rcpt_to), request.id)
        params = {
            "name": request.name or request.address,
            "mails": [_listed(item) for item in request.mails],
            "more": request.more,
            "expires": request.expires_at.date().isoformat(),
            "link": f"{self._public_url}/confirm/{self._desk.link_token(request.id)}" if self._public_url else "",
        }
        headers = {TRACE_HEADER: "confirm"}
        identity = str(uuid.uuid5(uuid.UUID(request.id), "confirm"))
        await self._submit.send(
            TEMPLATE, to=request.address, params=params, id=identity, reply_to=[answer], headers=headers
        )


def _chosen(request: Request, mail_ids: Sequence[str] | None) -> list[dict[str, Any]]:
    if mail_ids is None:
        return list(request.mails)
    return [item for item in (*request.mails, *request.later) if item["id"] in mail_ids]


def doubt_of_answer(envelope: Envelope, octets: bytes, text: str) -> str:
    """Why a mail to a signed address is no person's yes, '' when it is one; `text` is its plain text."""
    if not envelope.mail_from:
        return "it has the null sender"
    headers = read_headers(octets)
    if headers is None or machine_mark(headers):
        return "a machine wrote it"
    words = _WORD.findall(text[:1000].strip().partition("\n")[0].lower())
    is_yes = words[:1] and (words[0] in _YES or (words[0] in _YES_ALONE and len(words) == 1))
    return "" if is_yes else "its first line is no yes"


def _listed(item: dict[str, Any]) -> dict[str, str]:
    return {
        "received_at": str(item["received_at"])[:16].replace("T", " "),
        "subject": item["subject"][:200] or "(no subject)",
        "mailbox": item["mailbox"],
        "client": item["client"],
        "reason": item["reason"],
    }
