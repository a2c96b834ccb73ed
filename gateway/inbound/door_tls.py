"""TLS at a door: STARTTLS (RFC 3207), or from the first octet on (RFC 8314).

A session of `DoorSession` that can be secured; its certificate is `Door.certificates`, asked at each handshake.
Promises:
  * nothing that came in the clear survives: octets behind STARTTLS end the session (CVE-2011-0411), the client greets anew,
    and what it has said and sent is forgotten, but its errors are not;
  * a handshake has its own deadline, and one that fails leaves nothing behind.
Where TLS begins at once, the handshake is over before the session begins (`tls_listener`).
Limits: octets that the client sent before our 354 and that are still a part of a TLS record are not noticed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.inbound.door_session import DoorSession

if TYPE_CHECKING:
    from gateway.inbound.door import Door


class TlsSession(DoorSession):
    """A session that may become a secured one, or is from the start."""

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        self._is_shaking_hands = False
        super().__init__(door, loop)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if transport.get_extra_info("ssl_object") is not None:
            self._note_tls()

    def _note_tls(self) -> None:
        ssl_object = self.transport.get_extra_info("ssl_object")
        self.session.ssl = ssl_object  # not None: aiosmtpd then knows how to end it
        self.tls = f"{ssl_object.version()} {ssl_object.cipher()[0]}"

    def _hang_up(self, line: str) -> None:
        if self._is_shaking_hands:
            self.abort()
        else:
            super()._hang_up(line)

    def offers(self) -> Sequence[str]:
        is_possible = self._door.certificates is not None and not self.tls
        return [*super().offers(), *(["STARTTLS"] if is_possible else [])]

    async def smtp_STARTTLS(self, arg: str | None) -> None:
        self.note_command("STARTTLS")
        if self._door.certificates is None:
            await self.not_offered("STARTTLS")
        elif self.tls:
            await self.push("503 5.5.1 TLS is on already")
        elif arg:
            await self.push("501 5.5.4 Syntax: STARTTLS")
        elif not await self.check_helo_needed():
            await self._start_tls(self._door.certificates.context())

    async def _start_tls(self, context: ssl.SSLContext) -> None:
        if self.bytes_waiting():
            # They came in the clear, perhaps from somebody between us and the client.
            await self.push("554 5.5.0 data sent behind STARTTLS, closing")
            self._close()
            return
        # Written without a turn for anybody between: the client's next octets belong to the handshake.
        self._unsent += b"220 2.0.0 ready to start TLS\r\n"
        self._send()
        await self._secure(context)

    async def _secure(self, context: ssl.SSLContext) -> None:
        """Shakes hands and begins anew; a client that cannot is let go."""
        self._is_shaking_hands = True
        plain, seconds = self.transport, self._limits.handshake_seconds
        try:
            secured = await self.loop.start_tls(plain, self, context, server_side=True, ssl_handshake_timeout=seconds)
            if secured is None or plain.is_closing():
                raise ConnectionResetError("the client left during the handshake")
        except OSError as error:  # ssl.SSLError and every way to lose a connection
            self._door.log.handshake_failed(door=self._door.name, client=self.client, error=error)
            self.abort()
            self.connection_lost(error)  # the layer of TLS does not say so by itself; it ends this task, too
            await asyncio.sleep(0)
            return
        finally:
            self._is_shaking_hands = False
        self._begin_secured(secured)

    def _begin_secured(self, secured: asyncio.Transport) -> None:
        """RFC 3207, section 4.2: as if the client had just connected."""
        self.transport = self._transport = self._reader._transport = self._writer._transport = secured
        self.session = self._create_session()
        self.session.peer = secured.get_extra_info("peername")
        self._set_rset_state()  # type: ignore[no-untyped-call]
        self._note_tls()
        self._reset_timeout()
