"""A door: listens, counts who comes in, and closes politely.  What is spoken inside is the session's (`door_session`).

`serve` is the service, `start` and `close` its halves.  `close` answers 421 to who is idle, lets data under way be answered
and cuts the rest.  The SMTP and the LMTP door are this with another session.
"""

from __future__ import annotations

import asyncio
import collections
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gateway.inbound.intake import Intake
from gateway.inbound.listen import TcpAddress, UnixAddress, open_unix, parse_listen, remove_unix
from gateway.inbound.xforward import TrustedHosts
from gateway.maillog import MailLog
from gateway.reply import Reply
from gateway.runtime import Stop

if TYPE_CHECKING:
    from gateway.inbound.certificate import Certificates
    from gateway.inbound.door_auth import Logins
    from gateway.inbound.door_line import DoorLine
    from gateway.inbound.door_session import DoorSession

_BACKLOG = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits:
    """What one client may ask of the door (Postfix's values, but for the size).

    `linger_seconds` is how long the door waits for a client to take the last reply of a session that is over;
    `failed_login_seconds` passes before a wrong password is called wrong.
    """

    mail_bytes: int = 35 * 1024 * 1024
    recipients: int = 1_000
    hard_errors: int = 20
    junk_commands: int = 100
    connections: int = 1_000
    connections_per_client: int = 50
    idle_seconds: float = 300.0
    data_bytes_per_second: float = 500.0
    linger_seconds: float = 30.0
    drain_seconds: float = 15.0
    handshake_seconds: float = 30.0
    failed_login_seconds: float = 1.0


class Door:
    """Listens at `listen` (`host:port` or `unix:PATH`), or on sockets that are open already.

    `address` is where it listens: after `start` with the port the system chose where 0 was asked for.
    """

    name: ClassVar[str]
    session: ClassVar[type[DoorSession]]

    def __init__(
        self,
        intake: Intake,
        *,
        listen: str,
        hostname: str,
        limits: DoorLimits | None = None,
        trusted_hosts: TrustedHosts | None = None,
        certificates: Certificates | None = None,
        logins: Logins | None = None,
        log: MailLog,
    ) -> None:
        self.intake = intake
        self.trusted_hosts = trusted_hosts or TrustedHosts()
        self.certificates = certificates
        self.logins = logins
        self.hostname = hostname
        self.limits = limits or DoorLimits()
        self.log = log
        self.is_closing = False
        self.address = listen
        self._servers: list[asyncio.Server] = []
        self._socket_file: tuple[Path, int] | None = None
        self._sessions: set[DoorLine] = set()
        self._clients: collections.Counter[str] = collections.Counter()

    async def serve(self, stop: Stop) -> None:
        """Takes mail until the wish to stop, then drains."""
        if not self._servers:
            await self.start()
        await stop.wait()
        await self.close()

    async def start(self, inherited: Sequence[socket.socket] = ()) -> None:
        """Listens, on the inherited sockets where there are any; raises OSError when the address cannot be had."""
        address = parse_listen(self.address)
        if inherited:
            await self.listen_on(inherited)
            self.address = " ".join(spoken(listener) for listener in inherited)
        elif isinstance(address, UnixAddress):
            await self._listen_unix(address)
        else:
            self.address = await self.listen_tcp(address)
        self.log.service(f"{self.name}-door", "listening", at=self.address)

    async def listen_on(self, inherited: Sequence[socket.socket], **tls: Any) -> None:
        """Listens on sockets that are open already; `tls` is what asyncio's servers are told of TLS."""
        loop = asyncio.get_running_loop()
        for listener in inherited:
            create = loop.create_unix_server if listener.family == socket.AF_UNIX else loop.create_server
            self._servers.append(await create(self._enter, sock=listener, backlog=_BACKLOG, **tls))

    async def listen_tcp(self, address: TcpAddress, **tls: Any) -> str:
        """Listens at an address; returns it with the port that it has."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._enter, address.host, address.port, backlog=_BACKLOG, **tls)
        self._servers.append(server)
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{host}:{server.sockets[0].getsockname()[1]}"

    async def _listen_unix(self, address: UnixAddress) -> None:
        listener = open_unix(address)
        self._socket_file = (address.path, address.path.lstat().st_ino)
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_unix_server(self._enter, sock=listener, backlog=_BACKLOG))

    def _enter(self) -> DoorSession:
        return self.session(self, asyncio.get_running_loop())

    async def close(self) -> None:
        """Stops listening, says 421 to idle sessions, waits for data under way, then cuts what is left. Idempotent."""
        self.is_closing = True
        for server in self._servers:
            server.close()
        if self._socket_file is not None:
            remove_unix(*self._socket_file)
            self._socket_file = None
        for session in tuple(self._sessions):
            session.retire()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.limits.drain_seconds):
                while self._sessions:
                    await next(iter(self._sessions)).gone.wait()
        for session in tuple(self._sessions):
            session.abort()

    def admit(self, session: DoorLine) -> Reply | None:
        """Counts a session in; returns the reply that turns it away when there are too many.

        Who comes by a UNIX socket is a program of this machine that speaks for many: only the total counts for it.
        """
        self._sessions.add(session)
        group = session.client_group
        self._clients[group] += 1
        if self.is_closing:
            return Reply(code=421, enhanced_status="4.3.2", text=f"{self.hostname} is closing, try again later")
        if group and self._clients[group] > self.limits.connections_per_client:
            return Reply(code=421, enhanced_status="4.7.0", text="too many connections from your address")
        if len(self._sessions) > self.limits.connections:
            return Reply(code=421, enhanced_status="4.3.2", text="too many connections, try again later")
        return None

    def dismiss(self, session: DoorLine) -> None:
        """Counts a session out."""
        self._sessions.discard(session)
        self._clients[session.client_group] -= 1
        if self._clients[session.client_group] <= 0:
            del self._clients[session.client_group]


def spoken(listener: socket.socket) -> str:
    """A socket's address as the settings write it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
