"""A door: listens, counts who comes in, and closes politely.  What is spoken inside is the session's (`door_session`).

`serve` is the service, `start` and `close` its halves.  `close` answers 421 to who is idle, lets data under way be answered
and cuts the rest.  The SMTP and the LMTP door are this with another session.
"""

from __future__ import annotations

import asyncio
import collections
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from gateway.inbound.door_limits import Shares, Spent, Throttle, is_loopback, sender_key
from gateway.inbound.intake import Intake
from gateway.inbound.listen import BACKLOG, TcpAddress, UnixAddress, open_unix, parse_listen, remove_unix
from gateway.inbound.xforward import TrustedHosts
from gateway.maillog import MailLog
from gateway.reply import Reply
from gateway.runtime import Stop

if TYPE_CHECKING:
    from gateway.inbound.certificate import Certificates
    from gateway.inbound.door_auth import Logins
    from gateway.inbound.door_line import DoorLine
    from gateway.inbound.door_session import DoorSession
    from gateway.inbound.tls_listener import TlsListener

_CROWDED, _CROWDED_NO_MORE = 0.8, 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits:
    """What one client may ask of the door (Postfix's values, but for the size).

    `put_off` is how often a session may be told to try again later, `session_seconds` how long it may go on without a mail;
    `crowded_idle_seconds` is all the patience there is with the silent while four fifths of the connections are taken;
    `linger_seconds` is how long the door waits for a client to take the last reply of a session that is over;
    `failed_login_seconds` passes before a wrong password is called wrong.
    """

    mail_bytes: int = 35 * 1024 * 1024
    recipients: int = 1_000
    hard_errors: int = 20
    put_off: int = 10_000
    junk_commands: int = 100
    connections: int = 1_000
    connections_per_client: int = 50
    idle_seconds: float = 300.0
    data_bytes_per_second: float = 500.0
    proxy_seconds: float = 10.0
    session_seconds: float = 1_800.0
    crowded_idle_seconds: float = 10.0
    linger_seconds: float = 30.0
    drain_seconds: float = 15.0
    handshake_seconds: float = 30.0
    failed_login_seconds: float = 1.0
    shares: Shares = field(default_factory=Shares)


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
        self._expects_proxy = self._is_crowded = False
        self._throttle = Throttle(self.limits.shares)
        self._servers: list[asyncio.Server | TlsListener] = []
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
        self._expects_proxy = isinstance(address, TcpAddress) and address.expects_proxy
        if inherited:
            await self._listen_on(inherited)
            self.address = " ".join(spoken(listener) for listener in inherited)
        elif isinstance(address, UnixAddress):
            await self._listen_unix(address)
        else:
            self.address = await self._listen_tcp(address)
        self.log.service(f"{self.name}-door", "listening", at=self.address)

    async def _listen_on(self, inherited: Sequence[socket.socket]) -> None:
        """Listens on sockets that are open already."""
        loop = asyncio.get_running_loop()
        for listener in inherited:
            create = loop.create_unix_server if listener.family == socket.AF_UNIX else loop.create_server
            self._servers.append(await create(self.enter, sock=listener, backlog=BACKLOG))

    async def _listen_tcp(self, address: TcpAddress) -> str:
        """Listens at an address; returns it with the port that it has."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self.enter, address.host, address.port, backlog=BACKLOG)
        self._servers.append(server)
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{host}:{server.sockets[0].getsockname()[1]}"

    async def _listen_unix(self, address: UnixAddress) -> None:
        listener = open_unix(address)
        self._socket_file = (address.path, address.path.lstat().st_ino)
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_unix_server(self.enter, sock=listener, backlog=BACKLOG))

    def enter(self) -> DoorSession:
        """A session for who comes in."""
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

    def expects_header_of(self, peer: str) -> bool:
        """Whether who connected from there begins with a PROXY header: asked for here, and believed of that host only."""
        return self._expects_proxy and peer in self.trusted_hosts

    @property
    def patience_seconds(self) -> float:
        """How long a session may be silent just now."""
        limits = self.limits
        return min(limits.idle_seconds, limits.crowded_idle_seconds) if self._is_crowded else limits.idle_seconds

    def _look_round(self) -> None:
        """Notices that it has become crowded, and much later that it is so no more: so this is not told all the time."""
        share = len(self._sessions) / self.limits.connections
        if share > _CROWDED and not self._is_crowded:
            self._is_crowded = True
            self.log.service(f"{self.name}-door", "crowded", sessions=len(self._sessions))
            for session in self._sessions:
                session.hurry()
        elif share < _CROWDED_NO_MORE:
            self._is_crowded = False

    def admit(self, session: DoorLine) -> Reply | None:
        """Counts a session in; returns the reply that turns it away when there are too many.

        Who speaks for many (by a UNIX socket, or a trusted host) counts in the total only.
        """
        self._sessions.add(session)
        self._look_round()
        group = session.client_group
        is_one_client = bool(group) and session.client not in self.trusted_hosts
        session.counted_as = group if is_one_client and not is_loopback(session.client) else ""
        self._clients[group] += 1
        if self.is_closing:
            return Reply(code=421, enhanced_status="4.3.2", text=f"{self.hostname} is closing, try again later")
        if reply := self.too_many(session.client, group):
            return reply
        if spent := self._throttle.too_many_errors(session.counted_as):
            return self._put_off(session, spent, code=421)
        return None

    def too_many(self, client: str, group: str, coming: Mapping[str, int] = MappingProxyType({})) -> Reply | None:
        """The reply to who is one too many, together with those who are `coming` in (each counted for his group)."""
        is_one_client = bool(group) and client not in self.trusted_hosts
        if is_one_client and self._clients[group] + coming.get(group, 0) > self.limits.connections_per_client:
            return Reply(code=421, enhanced_status="4.7.0", text="too many connections from your address")
        if len(self._sessions) + sum(coming.values()) > self.limits.connections:
            return Reply(code=421, enhanced_status="4.3.2", text="too many connections, try again later")
        return None

    def take_mail(self, session: DoorLine, mail_from: str) -> Reply | None:
        """Counts a mail; returns the reply that puts it off when its client or sender has had his share."""
        spent = self._throttle.mail(session.counted_as, self._sender(session, mail_from))
        return self._put_off(session, spent, sender=mail_from) if spent else None

    def take_recipient(self, session: DoorLine, mail_from: str) -> Reply | None:
        spent = self._throttle.recipient(session.counted_as, self._sender(session, mail_from))
        return self._put_off(session, spent, sender=mail_from) if spent else None

    def note_error(self, session: DoorLine) -> None:
        self._throttle.error(session.counted_as)

    def _sender(self, session: DoorLine, mail_from: str) -> str:
        """'' also for what is handed on for others: its senders are the business of who hands it on."""
        is_counted = session.auth or session.counted_as
        return sender_key(session.auth, mail_from, session.client) if is_counted else ""

    def _put_off(self, session: DoorLine, spent: Spent, *, code: int = 450, sender: str = "") -> Reply:
        self.log.throttled(
            door=self.name, client=session.client, limit=spent.name, seconds=spent.wait_seconds, sender=sender
        )
        whose = "this sender" if spent.name.endswith("sender") else "your address"
        what = spent.name.partition("_")[0]
        text = f"too many {what} from {whose} lately, try again later"
        return Reply(code=code, enhanced_status="4.7.0" if code == 421 else "4.7.1", text=text)

    def dismiss(self, session: DoorLine) -> None:
        """Counts a session out."""
        self._sessions.discard(session)
        self._look_round()
        self._clients[session.client_group] -= 1
        if self._clients[session.client_group] <= 0:
            del self._clients[session.client_group]


def spoken(listener: socket.socket) -> str:
    """A socket's address as the settings write it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
