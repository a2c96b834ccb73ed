"""The SMTP door: ESMTP (RFC 5321) with SIZE, 8BITMIME, SMTPUTF8, PIPELINING, ENHANCEDSTATUSCODES, STARTTLS and AUTH.

Anyone may knock; what is promised and what is limited stands in the layers of a session: `door_line`, `door_data`,
`door_session`, `door_tls`, `door_auth`.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from gateway.inbound.door import Door, spoken
from gateway.inbound.door_auth import AuthSession
from gateway.inbound.listen import TcpAddress, open_tcp, parse_listen
from gateway.inbound.tls_listener import TlsListener


class SmtpSession(AuthSession):
    """HELO or EHLO; one reply to the data."""

    ident = "ESMTP gateway"
    hello = "EHLO"

    async def smtp_HELO(self, hostname: str | None) -> None:
        if await self.greet("HELO", hostname, extended=False):
            await self.welcome(self.hostname)

    async def smtp_EHLO(self, hostname: str | None) -> None:
        await self.greet_extended("EHLO", hostname)


class SmtpDoor(Door):
    """`tls_address` is where it listens for clients who speak TLS from the first octet on (RFC 8314), '' for nowhere."""

    name = "smtp"
    session = SmtpSession
    tls_address = ""

    async def start_tls(self, listen: str, inherited: Sequence[socket.socket] = ()) -> None:
        """Listens for them, too, beside `start`; raises OSError when the address cannot be had."""
        if self.certificates is None:
            raise ValueError("TLS needs a certificate")
        address = parse_listen(listen) if not inherited else None
        sockets = open_tcp(address) if isinstance(address, TcpAddress) else inherited
        self.tls_address = " ".join(spoken(listener) for listener in sockets)
        self._servers.append(TlsListener(self, self.certificates, sockets))
        self.log.service("smtps-door", "listening", at=self.tls_address)
