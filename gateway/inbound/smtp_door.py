"""The SMTP door: ESMTP with SIZE, 8BITMIME, SMTPUTF8, PIPELINING, ENHANCEDSTATUSCODES.  Home of aiosmtpd.

aiosmtpd reads commands and their parameters; ours are addresses, limits, replies and DATA.
Promises:
  * 250 after the final dot means kept, and names the mail id; any fault of ours is 451 without its text;
  * only CR LF . CR LF ends the data, a byte that came before our 354 is never data, a bare CR, LF or NUL refuses the mail;
  * unknown recipients and foreign domains are refused at RCPT; nothing is accepted to be bounced later;
  * `close` answers 421 to who is idle and lets data under way be answered.
Limits: no TLS, AUTH, XFORWARD or PROXY yet: the client is whoever opened the TCP connection.  A mail is held in memory.
"""

from __future__ import annotations

import asyncio
import collections
import fcntl
import ipaddress
import logging
import re
import struct
import termios
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiosmtpd.smtp import SMTP

from gateway.errors import PermanentFailure, QueueUnavailable, StorageFault, StoreUnavailable, TransientFailure
from gateway.inbound.intake import Intake
from gateway.mail.addresses import Address, parse_mailbox
from gateway.mail.envelope import Envelope
from gateway.maillog import MailLog
from gateway.reply import Reply
from gateway.runtime import Stop, failpoint, utc_now

NULL_SENDER = "<>"
END_OF_DATA = b"\r\n.\r\n"
TRY_LATER = Reply(code=451, enhanced_status="4.3.0", text="a fault of ours, the mail is not kept; try again later")
_STREAM_LIMIT = 128 * 1024
_COMMAND_BYTES = 2_048
_REPLY_LINE = re.compile(r"^(\d{3}) (?:(\d\.\d{1,3}\.\d{1,3}) )?(.*)$", re.DOTALL)
_PATH = re.compile(r"^\s*<(?:@[^<>:]*:)?([^<>]*)>(?: +(.*))?$|^\s*([^\s<>]+)(?: +(.*))?$")
_HELO = re.compile(r"[!-~\u00a1-\U0010ffff]{1,255}")
# The enhanced statuses of the replies that aiosmtpd words itself.
_ENHANCED = {
    "221": "2.0.0",
    "250": "2.0.0",
    "451": "4.3.0",
    "500": "5.5.2",
    "501": "5.5.4",
    "502": "5.5.1",
    "503": "5.5.1",
    "552": "5.3.4",
    "553": "5.1.3",
    "554": "5.5.0",
    "555": "5.5.4",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits:
    """What one client may ask of the door (Postfix's values, but for the size)."""

    mail_bytes: int = 35 * 1024 * 1024
    recipients: int = 1_000
    hard_errors: int = 20
    connections: int = 1_000
    connections_per_client: int = 50
    idle_seconds: float = 300.0
    data_bytes_per_second: float = 500.0
    drain_seconds: float = 15.0


class SmtpDoor:
    """Listens at `listen` (host:port); `serve` is the service, `start` and `close` its halves.

    `address` is where it listens: after `start` with the port the system chose where 0 was asked for.
    """

    def __init__(
        self, intake: Intake, *, listen: str, hostname: str, limits: DoorLimits | None = None, log: MailLog
    ) -> None:
        self.intake = intake
        self.hostname = hostname
        self.limits = limits or DoorLimits()
        self.log = log
        self.is_closing = False
        self.address = listen
        self._server: asyncio.Server | None = None
        self._sessions: set[_Session] = set()
        self._clients: collections.Counter[str] = collections.Counter()
        logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # aiosmtpd's own words; ours are in the mail log

    async def serve(self, stop: Stop) -> None:
        """Takes mail until the wish to stop, then drains."""
        if self._server is None:
            await self.start()
        await stop.wait()
        await self.close()

    async def start(self) -> None:
        """Listens; raises OSError when the address cannot be had."""
        host, _, port = self.address.rpartition(":")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Session(self, loop), host.strip("[]"), int(port), backlog=512)
        name = self._server.sockets[0].getsockname()
        self.address = f"{host}:{name[1]}"
        self.log.service("smtp-door", "listening", at=self.address)

    async def close(self) -> None:
        """Stops listening, says 421 to idle sessions, waits for data under way, then cuts what is left. Idempotent."""
        self.is_closing = True
        if self._server is not None:
            self._server.close()
        for session in tuple(self._sessions):
            session.retire()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.limits.drain_seconds):
                while self._sessions:
                    await next(iter(self._sessions)).gone.wait()
        for session in tuple(self._sessions):
            session.abort()

    def admit(self, session: _Session) -> Reply | None:
        """Counts a session in; returns the reply that turns it away when there are too many."""
        self._sessions.add(session)
        self._clients[session.client_group] += 1
        if self.is_closing:
            return Reply(code=421, enhanced_status="4.3.2", text=f"{self.hostname} is closing, try again later")
        if self._clients[session.client_group] > self.limits.connections_per_client:
            return Reply(code=421, enhanced_status="4.7.0", text="too many connections from your address")
        if len(self._sessions) > self.limits.connections:
            return Reply(code=421, enhanced_status="4.3.2", text="too many connections, try again later")
        return None

    def dismiss(self, session: _Session) -> None:
        """Counts a session out."""
        self._sessions.discard(session)
        self._clients[session.client_group] -= 1
        if self._clients[session.client_group] <= 0:
            del self._clients[session.client_group]


class _Session(SMTP):
    """One connection."""

    command_size_limit = _COMMAND_BYTES
    line_length_limit = _STREAM_LIMIT  # the reader's buffer; the length of a line of data is not limited
    session: Any
    envelope: Any
    transport: Any
    _reader: Any

    def __init__(self, door: SmtpDoor, loop: asyncio.AbstractEventLoop) -> None:
        self.gone = asyncio.Event()
        self.client = self.client_group = ""
        self._door = door
        self._limits = door.limits
        self._command = ("CONNECT", "")
        self._errors = 0
        self._in_data = False
        self._data_began = self._last_heard = loop.time()
        self._data_bytes = 0
        self.command_size_limits = collections.defaultdict(lambda: _COMMAND_BYTES)
        super().__init__(
            _Checks(door),
            data_size_limit=door.limits.mail_bytes,
            enable_SMTPUTF8=True,
            hostname=door.hostname,
            ident="ESMTP gateway",
            timeout=door.limits.idle_seconds,
            loop=loop,
        )

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else "local"
        self.client_group = _group(self.client)
        self._turned_away = self._door.admit(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._door.dismiss(self)
        self.gone.set()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self._last_heard = self.loop.time()
        self._data_bytes += len(data)
        super().data_received(data)

    def retire(self) -> None:
        """Ends the session now, or right after the answer to the data that is coming in."""
        if not self._in_data:
            self._hang_up(f"421 4.3.2 {self.hostname} is closing, try again later")

    def abort(self) -> None:
        if isinstance(self.transport, asyncio.WriteTransport):
            self.transport.abort()

    async def _handle_client(self) -> None:
        if self._turned_away is not None:
            await self.push(str(self._turned_away))
            self._close()
            return
        await super()._handle_client()

    def _timeout_cb(self) -> None:
        """Ends who is silent, or sends data slower than the limit; everyone else gets a new term."""
        allowed = self._last_heard + self._limits.idle_seconds
        if self._in_data:
            earned = self._data_bytes / self._limits.data_bytes_per_second
            allowed = min(allowed, self._data_began + self._limits.idle_seconds + earned)
            if allowed > self.loop.time():
                self._reset_timeout(allowed - self.loop.time())
                return
        self._hang_up(f"421 4.4.2 {self.hostname} timeout, closing")

    def _hang_up(self, line: str) -> None:
        with suppress(ConnectionError, RuntimeError, AttributeError):
            self._writer.write(line.encode() + b"\r\n")
        self._close()

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    # Replies.

    async def push(self, status: Any) -> None:
        """Sends one reply with its enhanced status and without anything unprintable; counts and logs refusals."""
        line = status if isinstance(status, str) else bytes(status).decode("utf-8", "replace")
        match = _REPLY_LINE.match(line)
        code, enhanced, text = match.groups() if match else ("451", "4.3.0", "try again later")
        reply = (
            Reply.from_peer(int(code), f"{enhanced or _ENHANCED.get(code, '')} {text}") if code[0] in "245" else None
        )
        await super().push(str(reply) if reply else f"{code} {text}")
        if reply is not None and not reply.is_positive:
            verb, address = self._command
            self._door.log.refused(door="smtp", client=self.client, verb=verb, reply=reply, address=address)
            self._errors += 1
            if self._errors > self._limits.hard_errors:
                self._hang_up("421 4.7.0 too many errors, closing")

    async def handle_exception(self, error: Exception) -> str:
        """A fault of ours is 451 and says nothing of itself to the client."""
        self._door.log.door_fault(door="smtp", client=self.client, error=error)
        return str(TRY_LATER)

    # Commands.

    async def smtp_HELO(self, hostname: str | None) -> None:
        if await self._greet("HELO", hostname, extended=False):
            await super().push(f"250 {self.hostname}")

    async def smtp_EHLO(self, hostname: str | None) -> None:
        if await self._greet("EHLO", hostname, extended=True):
            offers = (
                self.hostname,
                "PIPELINING",
                f"SIZE {self._limits.mail_bytes}",
                "8BITMIME",
                "SMTPUTF8",
                "ENHANCEDSTATUSCODES",
            )
            lines = [f"250-{offer}" for offer in offers]
            lines[-1] = f"250 {offers[-1]}"
            await super().push("\r\n".join(lines))

    async def _greet(self, verb: str, hostname: str | None, *, extended: bool) -> bool:
        self._command = (verb, "")
        if not hostname or not _HELO.fullmatch(hostname):
            await self.push(f"501 5.5.4 Syntax: {verb} hostname")
            return False
        self._set_rset_state()  # type: ignore[no-untyped-call]
        self.session.extended_smtp = extended
        self.session.host_name = hostname
        return True

    async def smtp_MAIL(self, arg: str | None) -> None:
        self._command = ("MAIL", (arg or "")[:300])
        await super().smtp_MAIL(arg)

    async def smtp_RCPT(self, arg: str | None) -> None:
        self._command = ("RCPT", (arg or "")[:300])
        await super().smtp_RCPT(arg)

    async def smtp_VRFY(self, arg: str | None) -> None:
        self._command = ("VRFY", "")
        await self.push("252 2.1.5 send some mail, I will try my best" if arg else "501 5.5.4 Syntax: VRFY address")

    async def smtp_HELP(self, arg: str | None) -> None:
        await self.push("214 2.0.0 RFC 5321: EHLO HELO MAIL RCPT DATA RSET NOOP VRFY QUIT")

    async def smtp_EXPN(self, arg: str | None) -> None:
        await self._not_offered("EXPN")

    async def smtp_AUTH(self, arg: str | None) -> None:
        await self._not_offered("AUTH")

    async def smtp_STARTTLS(self, arg: str | None) -> None:
        await self._not_offered("STARTTLS")

    async def _not_offered(self, verb: str) -> None:
        self._command = (verb, "")
        await self.push(f"502 5.5.1 {verb} is not offered here")

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        """Reads a path by our own grammar: the stdlib's turns `a@b@c` into the null sender."""
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
            return parse_mailbox(address), rest
        except ValueError:
            return None, None

    # DATA.

    async def smtp_DATA(self, arg: str | None) -> None:
        self._command = ("DATA", "")
        if refusal := self._data_refusal(arg):
            await self.push(refusal)
            return
        if self._bytes_waiting():
            # They came before our 354, so they are no data; as commands they would be somebody's smuggled mail.
            await self.push("554 5.5.0 data sent before 354, closing")
            self._close()
            return
        self._begin_data()
        try:
            await super().push("354 end data with <CR><LF>.<CR><LF>")
            octets = await self._read_data()
        except Exception as error:  # noqa: BLE001 - the rest of the data must never be read as commands
            self._door.log.door_fault(door="smtp", client=self.client, error=error)
            self._hang_up("421 4.3.0 a fault of ours, the mail is not kept; try again later")
            return
        # The answer is our turn: no limit of the client's applies until it is given.
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        reply = await self._accept(octets)
        self._set_post_data_state()  # type: ignore[no-untyped-call]
        failpoint("door.replied.before")
        await self.push(str(reply))
        self._in_data = False
        self._reset_timeout()
        if self._door.is_closing:
            self.retire()

    def _data_refusal(self, arg: str | None) -> str:
        if not self.session.host_name:
            return "503 5.5.1 send EHLO or HELO first"
        if not self.envelope.mail_from:
            return "503 5.5.1 need MAIL command"
        if not self.envelope.rcpt_tos:
            return "554 5.5.1 no valid recipients"
        return "501 5.5.4 Syntax: DATA" if arg else ""

    def _bytes_waiting(self) -> bool:
        """Whether the client has sent more already, read by us or still in the kernel."""
        if self._reader._buffer:
            return True
        sock = self.transport.get_extra_info("socket")
        waiting = fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0")
        return bool(struct.unpack("i", waiting)[0])

    def _begin_data(self) -> None:
        # The line end of the DATA command is the one before the first line: put back, it makes `.` right after 354 an
        # ordinary end of data.
        self._reader.feed_data(b"\r\n")
        self._in_data = True
        self._data_began = self._last_heard = self.loop.time()
        self._data_bytes = 0
        self._reset_timeout()

    async def _read_data(self) -> bytes | None:
        """Reads up to the end of data and takes the extra dots out; None when the mail is too large.

        What is too large is read on and thrown away, so that the client hears 552; twice the limit ends the connection.
        """
        chunks: list[bytes] = []
        size = 0
        ended = False
        while not ended:
            try:
                chunk = await self._reader.readuntil(END_OF_DATA)
                ended = True
            except asyncio.LimitOverrunError as overrun:
                chunk = await self._reader.read(overrun.consumed)  # cannot hold the beginning of an end
            size += len(chunk)
            if size > self._limits.mail_bytes + len(END_OF_DATA):
                chunks.clear()
            else:
                chunks.append(chunk)
            if size > 2 * self._limits.mail_bytes + _STREAM_LIMIT:
                raise ValueError(f"more than {size} bytes of data without an end")
        if not chunks:
            return None
        return b"".join(chunks).replace(b"\r\n.", b"\r\n")[2:-2]

    async def _accept(self, octets: bytes | None) -> Reply:
        """Offers the mail to the intake; the reply is the whole truth about it."""
        if octets is None:
            return Reply(
                code=552, enhanced_status="5.3.4", text=f"the mail is larger than {self._limits.mail_bytes} bytes"
            )
        sender = self.envelope.mail_from
        envelope = Envelope(
            mail_id="",
            mail_from="" if sender == NULL_SENDER else sender,
            rcpt_to=tuple(self.envelope.rcpt_tos),
            received_at=utc_now(),
            door="smtp",
            client=self.client,
            helo=self.session.host_name,
        )
        try:
            mail_id = await self._door.intake.accept(envelope, octets)
        except (QueueUnavailable, StoreUnavailable, StorageFault) as fault:
            self._door.log.door_fault(door="smtp", client=self.client, error=fault)
            return TRY_LATER
        except (TransientFailure, PermanentFailure) as failure:
            return failure.reply
        except Exception as error:  # noqa: BLE001 - whatever it is, it is ours, and the client keeps the mail
            self._door.log.door_fault(door="smtp", client=self.client, error=error)
            return TRY_LATER
        self._errors = 0
        return Reply(code=250, enhanced_status="2.0.0", text=f"Ok: kept as {mail_id}")


class _Checks:
    """What MAIL and RCPT are asked after their syntax; aiosmtpd calls these hooks."""

    def __init__(self, door: SmtpDoor) -> None:
        self._door = door

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        sizes = [int(option[5:]) for option in options if option.startswith("SIZE=")]
        try:
            self._door.intake.check_room(max(sizes, default=0))
        except TransientFailure as failure:
            return str(failure.reply)
        envelope.mail_from = address
        envelope.rcpt_keys = set()
        return "250 2.1.0 Ok"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        try:
            self._door.intake.check_recipient(address)
        except (TransientFailure, PermanentFailure) as failure:
            return str(failure.reply)
        key = Address(mailbox=address).key
        if key in envelope.rcpt_keys:
            return "250 2.1.5 Ok"
        if len(envelope.rcpt_tos) >= self._door.limits.recipients:
            return f"452 4.5.3 at most {self._door.limits.recipients} recipients, send the rest in another mail"
        envelope.rcpt_keys.add(key)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"


def _group(client: str) -> str:
    """Whom a connection counts for: an IPv4 address, or an IPv6 network of 64 bits (one host owns it all)."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
