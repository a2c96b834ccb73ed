"""The SMTP door: ESMTP (RFC 5321) with SIZE, 8BITMIME, SMTPUTF8, PIPELINING, ENHANCEDSTATUSCODES.

Anyone may knock; what is promised and what is limited stands in `door_session`.
"""

from __future__ import annotations

from gateway.inbound.door import Door
from gateway.inbound.door_session import DoorSession


class SmtpSession(DoorSession):
    """HELO or EHLO; one reply to the data."""

    ident = "ESMTP gateway"
    hello = "EHLO"

    async def smtp_HELO(self, hostname: str | None) -> None:
        if await self.greet("HELO", hostname, extended=False):
            await self.welcome(self.hostname)

    async def smtp_EHLO(self, hostname: str | None) -> None:
        await self.greet_extended("EHLO", hostname)


class SmtpDoor(Door):
    name = "smtp"
    session = SmtpSession
