"""AUTH at the SMTP door (RFC 4954): PLAIN and LOGIN, over TLS only.

Flow: what the client shows of itself is read here and proven by `Door.logins`; `auth` of the session, and with it of every
mail, is who that is.  A login opens no relay: it says who wrote, not where mail may go.
Promises: neither offered nor taken in the clear; a wrong name and a wrong password are answered alike, after a pause; what
cannot be checked now is 454, never 535; nothing a client shows is logged.
Limits: nobody may act for somebody else (an authorization identity must be the name itself).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.errors import TransientFailure
from gateway.inbound.door_tls import TlsSession

MAX_LINE_BYTES = 12_288  # RFC 4954, section 4
_USER_NAME, _PASSWORD = (base64.b64encode(word).decode() for word in (b"Username:", b"Password:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a client shows of itself."""

    name: str
    password: str = field(repr=False)


class Logins(Protocol):
    """Knows who may log in."""

    async def prove(self, shown: Shown, *, client: str) -> str:
        """Who that is, in the form of `Envelope.auth`; '' for nobody. Raises TransientFailure, its reply 454."""


class AuthSession(TlsSession):
    """A session whose client may say who it is."""

    def offers(self) -> Sequence[str]:
        is_possible = self._door.logins is not None and self.tls
        return [*super().offers(), *(["AUTH PLAIN LOGIN"] if is_possible else [])]

    async def smtp_AUTH(self, arg: str | None) -> None:
        self.note_command("AUTH")
        if self._door.logins is None or self._door.certificates is None:
            await self.not_offered("AUTH")
        elif not self.tls:
            await self.push("538 5.7.11 AUTH takes TLS: STARTTLS first")
        elif not await self.check_helo_needed():
            if refusal := self._auth_refusal():
                await self.push(refusal)
            else:
                await self._log_in(self._door.logins, arg or "")

    def _auth_refusal(self) -> str:
        if not self.session.extended_smtp:
            return "503 5.5.1 send EHLO first"
        if self.auth:
            return "503 5.5.1 you have logged in already"
        return "503 5.5.1 AUTH comes before MAIL" if self.envelope.mail_from else ""

    async def _log_in(self, logins: Logins, arg: str) -> None:
        mechanism, _, initial = arg.partition(" ")
        try:
            if mechanism.upper() == "PLAIN":
                shown = _read_plain(_decoded(initial) if initial else await self._challenge(""))
            elif mechanism.upper() == "LOGIN":
                name = _decoded(initial) if initial else await self._challenge(_USER_NAME)
                shown = Shown(name=_text(name), password=_text(await self._challenge(_PASSWORD)))
            else:
                await self.push(
                    "504 5.5.4 there are PLAIN and LOGIN" if mechanism else "501 5.5.4 Syntax: AUTH mechanism"
                )
                return
        except _Unreadable as why:
            await self.push(str(why))
        else:
            await self._prove(logins, shown)

    async def _prove(self, logins: Logins, shown: Shown) -> None:
        try:
            self.auth = await logins.prove(shown, client=self.client)
        except TransientFailure as failure:
            await self.push(str(failure.reply))
            return
        if self.auth:
            await self.push("235 2.7.0 welcome")
            return
        await asyncio.sleep(self._limits.failed_login_seconds)
        await self.push("535 5.7.8 name or password is wrong")

    async def _challenge(self, text: str) -> bytes:
        """Asks the client for a line and returns what it says; raises _Unreadable."""
        await self._say([f"334 {text}"])
        self._reset_timeout()
        try:
            line: bytes = await self._reader.readuntil()
        except asyncio.LimitOverrunError:
            self._hang_up("421 4.7.0 a line without an end, closing")
            raise _Unreadable("500 5.5.6 the line is too long") from None
        self.note_command("AUTH")
        if len(line) > MAX_LINE_BYTES:
            raise _Unreadable("500 5.5.6 the line is too long")
        answer = line.rstrip(b"\r\n")
        if answer == b"*":
            raise _Unreadable("501 5.7.0 AUTH given up")
        return _decoded(answer.decode("latin-1"))

    def _getparams(self, params: Sequence[str]) -> Any:
        """Reads past AUTH= of MAIL (RFC 4954, section 5): a client's word about others, which we do not go by."""
        is_offered = self._door.logins is not None and self.tls and self._command[0] == "MAIL"
        return super()._getparams([item for item in params if not (is_offered and item.startswith("AUTH="))])


class _Unreadable(Exception):
    """A client's line is no answer; carries the reply."""


def _read_plain(octets: bytes) -> Shown:
    """RFC 4616: authorization identity, name, password, with NUL between them."""
    parts = octets.split(b"\0")
    if len(parts) != 3:
        raise _Unreadable("501 5.5.2 PLAIN is three texts with NUL between them")
    acting_for, name, password = (_text(part) for part in parts)
    if acting_for not in ("", name):
        raise _Unreadable("535 5.7.8 nobody may act for somebody else here")
    return Shown(name=name, password=password)


def _decoded(text: str) -> bytes:
    try:
        return b"" if text.strip() == "=" else base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise _Unreadable("501 5.5.2 that is no base64") from None


def _text(octets: bytes) -> str:
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise _Unreadable("501 5.5.2 that is no UTF-8") from None
