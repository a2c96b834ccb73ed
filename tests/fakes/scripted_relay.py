"""An SMTP server on loopback that does at each step what the test says.

`script` maps a step to an action: a reply line ("451 4.3.0 later"), CLOSE, HANG, GARBAGE, WAIT (as usual, once `go` is
set), or a list of actions for one visit each (None = as usual); after the list, and for steps not named, it behaves.
"rcpt ann@example.org" or "dot ann@example.org" is what it does for that recipient only.
Steps: banner, ehlo, starttls, auth, mail, rcpt, data, body (at its first octet), dot, rset, quit.  A refused connect is
`refusing_port()`, one that hangs a DeafPort.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

CLOSE = "<close>"
HANG = "<hang>"
GARBAGE = "<garbage>"
WAIT = "<wait>"
GARBAGE_OCTETS = b"\x00\xff\xfe what is this\r\n"
Action = str | None


@dataclass(frozen=True)
class Taken:
    """One mail the relay said 250 to."""

    mail_from: str
    recipient: str
    octets: bytes
    connection: int


class ScriptedRelay:
    """Start it with `async with`; read `taken`, `seen` and `connections` afterwards."""

    def __init__(
        self,
        script: dict[str, Action | Sequence[Action]] | None = None,
        *,
        extensions: Sequence[str] = ("SIZE 1000000000", "8BITMIME"),
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        user: str = "",
        password: str = "",
    ) -> None:
        self.script = dict(script or {})
        self.extensions = list(extensions)
        self.port = 0
        self.connections = 0
        self.taken: list[Taken] = []
        self.lines: list[str] = []
        self.seen: Counter[str] = Counter()
        self.acted = asyncio.Event()
        self.go = asyncio.Event()
        self._tls = tls
        self._implicit_tls = implicit_tls
        self._user = user
        self._password = password
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ScriptedRelay:
        listener = socket.create_server(("127.0.0.1", self.port))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)  # a hang is felt after little
        tls = self._tls if self._implicit_tls else None
        self._server = await asyncio.start_server(self._serve, sock=listener, ssl=tls)
        self.port = listener.getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Ends the server and every connection; start it again on the same port with `async with`."""
        if self._server is not None:
            self._server.close()
        for task in list(self._sessions):
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        self.connections += 1
        session = _Session(self, reader, writer, self.connections)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError, _Over):
                await session.run()
        finally:
            self._sessions.discard(task)
            writer.transport.abort()

    def action(self, step: str, recipient: str = "") -> Action:
        """What the script says for this visit of a step."""
        self.seen[step] += 1
        planned, counted = self.script.get(step), step
        if (own := f"{step} {recipient}") in self.script:
            planned, counted = self.script[own], own
            self.seen[own] += 1
        if planned is None or isinstance(planned, str):
            return planned
        visit = self.seen[counted] - 1
        return planned[visit] if visit < len(planned) else None

    def is_password(self, user: str, password: str) -> bool:
        return (user, password) == (self._user, self._password)

    @property
    def tls(self) -> ssl.SSLContext | None:
        return self._tls

    @property
    def offers_auth(self) -> bool:
        return bool(self._user)


class _Over(Exception):
    """The session ends here."""


class _Session:
    def __init__(
        self, relay: ScriptedRelay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self.relay, self.reader, self.writer, self.number = relay, reader, writer, number
        self.secure = writer.get_extra_info("sslcontext") is not None
        self.mail_from = self.recipient = ""

    async def run(self) -> None:
        await self.act("banner", "220 scripted ESMTP")
        while line := await self.reader.readline():
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            self.relay.lines.append(text)
            verb = text.partition(" ")[0].lower()
            await getattr(self, f"on_{verb}", self.on_other)(text)

    async def act(self, step: str, usual: str) -> bool:
        """Does what the script says at this step; True when that was the usual."""
        action = self.relay.action(step, self.recipient)
        if action == WAIT:
            self.relay.acted.set()
            await self.relay.go.wait()
            action = None
        if action == CLOSE:
            self.writer.transport.abort()
            self.relay.acted.set()
            raise _Over
        if action == HANG:
            await asyncio.Event().wait()
        if action is None and not usual:
            return True
        self.writer.write(GARBAGE_OCTETS if action == GARBAGE else f"{action or usual}\r\n".encode())
        await self.writer.drain()
        if action is not None:
            self.relay.acted.set()
        return action is None

    async def on_ehlo(self, _: str) -> None:
        offers = list(self.relay.extensions)
        if self.relay.tls is not None and not self.secure:
            offers.append("STARTTLS")
        if self.relay.offers_auth:
            offers.append("AUTH PLAIN")
        lines = ["scripted", *offers]
        await self.act("ehlo", "\r\n".join(f"250{'-' if i + 1 < len(lines) else ' '}{x}" for i, x in enumerate(lines)))

    async def on_starttls(self, _: str) -> None:
        if await self.act("starttls", "220 go ahead"):
            assert self.relay.tls is not None
            await self.writer.start_tls(self.relay.tls)
            self.secure = True

    async def on_auth(self, text: str) -> None:
        user, password = base64.b64decode(text.split()[2]).decode().split("\0")[1:]
        right = self.relay.is_password(user, password)
        await self.act("auth", "235 2.7.0 welcome" if right else "535 5.7.8 wrong password")

    async def on_mail(self, text: str) -> None:
        self.mail_from, self.recipient = text.partition("<")[2].partition(">")[0], ""
        await self.act("mail", "250 2.1.0 sender ok")

    async def on_rcpt(self, text: str) -> None:
        self.recipient = text.partition("<")[2].partition(">")[0]
        await self.act("rcpt", "250 2.1.5 recipient ok")

    async def on_data(self, _: str) -> None:
        if not await self.act("data", "354 go on"):
            return
        stuffed = bytearray(await self.reader.readexactly(1))
        if self.relay.script.get("body"):
            await self.act("body", "")
        while not stuffed.endswith(b"\r\n.\r\n"):
            stuffed += await self.reader.readline() or self._end()
        self.relay.seen["full body"] += 1
        octets = bytes(stuffed[:-3]).replace(b"\r\n..", b"\r\n.")
        octets = octets[1:] if octets.startswith(b"..") else octets
        if await self.act("dot", "250 2.0.0 taken"):
            self.relay.taken.append(Taken(self.mail_from, self.recipient, octets, self.number))

    def _end(self) -> bytes:
        raise _Over

    async def on_rset(self, _: str) -> None:
        await self.act("rset", "250 2.0.0 reset")

    async def on_quit(self, _: str) -> None:
        await self.act("quit", "221 2.0.0 bye")
        raise _Over

    async def on_other(self, _: str) -> None:
        self.writer.write(b"500 5.5.2 what\r\n")


def refusing_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DeafPort:
    """A port whose connects hang: its backlog is full and nobody accepts."""

    def __enter__(self) -> int:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self._waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect(self._listener.getsockname())
            self._waiting.append(client)
        return int(self._listener.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        for one in (*self._waiting, self._listener):
            one.close()
