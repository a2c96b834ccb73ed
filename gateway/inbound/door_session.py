"""A session at a door: its commands, in order, and what each is answered.

aiosmtpd reads commands and their parameters; ours are addresses, limits and replies (`door_line`) and DATA (`door_data`).
The SMTP and the LMTP door say what differs: the greeting, and how many replies a mail gets.
Promise: unknown recipients and foreign domains are refused at RCPT (`door_checks`); nothing is accepted to be bounced later.
Limits: the client is whoever opened the connection, or whom a trusted one names (`xforward`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway.inbound.door_data import NULL_SENDER, DoorData
from gateway.inbound.xforward import OFFER as XFORWARD_OFFER
from gateway.inbound.xforward import read_xforward
from gateway.mail.addresses import parse_mailbox, parse_sender

if TYPE_CHECKING:
    from gateway.inbound.door import Door

_JUNK_COMMANDS = frozenset({"NOOP", "HELP", "VRFY", "RSET", "HELO", "EHLO", "LHLO"})
# A web page that makes a browser speak to us hides a mail in its request: whoever says these words is shown out at the first.
_WEB_METHODS = ("GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "DELETE", "PATCH", "TRACE")
_PATH = re.compile(r"^\s*<(?:@[^<>:]*:)?[ \t]*([^<>]*?)[ \t]*>(?:[ \t]+(.*))?$|^\s*([^\s<>]+)(?:[ \t]+(.*))?$")
_SIZE = re.compile(r"[0-9]{1,20}")
# "Ann's PC", too: the name proves nothing, and who owns such a machine could not mend it.
_HELO = re.compile(r"[ -~\u00a1-\ud7ff\ue000-\U0010ffff]{1,255}")


class DoorSession(DoorData):
    """The commands of a connection; the doors' own sessions derive from it."""

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(door, loop)
        for verb in _JUNK_COMMANDS & self._smtp_methods.keys():
            self._smtp_methods[verb] = partial(self._do_junk, self._smtp_methods[verb])
        for verb in _WEB_METHODS:
            self._smtp_methods[verb] = partial(self._show_out, verb)

    async def _do_junk(self, command: Callable[[str | None], Awaitable[None]], arg: str | None) -> None:
        """Obeys a command that brings no mail nearer, unless there were too many of them since the last mail."""
        if last_word := self.count_junk():
            await self.push(str(last_word))
        else:
            await command(arg)

    async def _show_out(self, verb: str, arg: str | None) -> None:
        self.note_command(verb)
        await self.push("421 4.7.0 this is a mail server, and no web server, closing")

    async def greet(self, verb: str, hostname: str | None, *, extended: bool) -> bool:
        """Begins anew after HELO, EHLO or LHLO; False when the client's name is none."""
        self.note_command(verb)
        hostname = (hostname or "").encode("utf-8", "replace").decode()  # what is no UTF-8 reads `?`
        if not _HELO.fullmatch(hostname):
            await self.push(f"501 5.5.4 Syntax: {verb} hostname")
            return False
        self._set_rset_state()  # type: ignore[no-untyped-call]
        self.session.extended_smtp = extended
        self.session.host_name = hostname
        return True

    async def greet_extended(self, verb: str, hostname: str | None) -> None:
        """Greets and says what is offered."""
        if not await self.greet(verb, hostname, extended=True):
            return
        await self.welcome(self.hostname, *self.offers())

    def offers(self) -> Sequence[str]:
        """The extensions this client may use now."""
        size = f"SIZE {self._limits.mail_bytes}"
        more = [XFORWARD_OFFER] if self.is_trusted_host else []
        return ["PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", *more]

    async def welcome(self, *offers: str) -> None:
        """Answers a greeting: the one reply without an enhanced status (RFC 2034, section 3)."""
        await self._say([f"250-{offer}" for offer in offers[:-1]] + [f"250 {offers[-1]}"])

    async def check_helo_needed(self, helo: str = "") -> bool:
        """Tells who has not greeted yet; True when that was so."""
        if not self.session.host_name:
            await self.push(f"503 5.5.1 send {self.hello} first")
        return not self.session.host_name

    async def smtp_MAIL(self, arg: str | None) -> None:
        self.note_command("MAIL", arg)
        await super().smtp_MAIL(arg)

    async def smtp_RCPT(self, arg: str | None) -> None:
        self.note_command("RCPT", arg)
        await super().smtp_RCPT(arg)

    async def smtp_XFORWARD(self, arg: str | None) -> None:
        """Hears whose mail comes next; the facts live as long as the envelope, which is one mail."""
        self.note_command("XFORWARD", arg)
        if not self.is_trusted_host:
            await self.push("550 5.7.1 XFORWARD is for trusted hosts")
        elif self.envelope.mail_from:
            await self.push("503 5.5.1 XFORWARD comes before MAIL")
        elif not await self.check_helo_needed():
            known = getattr(self.envelope, "forwarded", None)
            self.envelope.forwarded, reply = read_xforward(arg or "", known)
            await self.push(str(reply))

    async def smtp_VRFY(self, arg: str | None) -> None:
        self.note_command("VRFY")
        await self.push("252 2.0.0 send some mail, I will try my best" if arg else "501 5.5.4 Syntax: VRFY address")

    async def smtp_HELP(self, arg: str | None) -> None:
        await self.push(f"214 2.0.0 {self.hello} MAIL RCPT DATA RSET NOOP VRFY QUIT")

    async def smtp_EXPN(self, arg: str | None) -> None:
        await self.not_offered("EXPN")

    async def smtp_AUTH(self, arg: str | None) -> None:
        await self.not_offered("AUTH")

    async def smtp_STARTTLS(self, arg: str | None) -> None:
        await self.not_offered("STARTTLS")

    async def not_offered(self, verb: str) -> None:
        self.note_command(verb)
        await self.push(f"502 5.5.1 {verb} is not offered here")

    def _getparams(self, params: Sequence[str]) -> Any:
        """Reads parameters as aiosmtpd does, a size by RFC 1870, section 3: other digits than ASCII's raise there."""
        sizes = [item[5:] for item in params if item.startswith("SIZE=")]
        return super()._getparams(params) if all(map(_SIZE.fullmatch, sizes)) else None

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        """Reads a path by our own grammar: the stdlib's turns `a@b@c` into the null sender."""
        self._address_fault = "does not stand in < and > by itself"
        match = _PATH.match(arg)
        if match is None:
            return None, None
        address = match[1] if match[1] is not None else match[3]
        rest = match[2] or match[4] or ""
        is_mail = self._command[0] == "MAIL"
        if address == "" and match[3] is None:
            return (NULL_SENDER, rest) if is_mail else (None, None)
        if not is_mail and address.lower() == "postmaster":
            return address, rest
        try:
            return (parse_sender if is_mail else parse_mailbox)(address), rest
        except ValueError as fault:
            self._address_fault = str(fault)
            return None, None
