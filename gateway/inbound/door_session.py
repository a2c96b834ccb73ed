"""A session at a door: one connection, its commands, its DATA, its replies.  Home of aiosmtpd.

aiosmtpd reads commands and their parameters; ours are addresses, limits, replies and DATA.  The SMTP and the LMTP door say
what differs: the greeting, and how many replies a mail gets.
Promises:
  * 250 after the final dot means kept, and names the mail id; any fault of ours is 451 without its text;
  * only CR LF . CR LF ends the data, a byte that came before our 354 is never data, a bare CR, LF or NUL refuses the mail;
  * unknown recipients and foreign domains are refused at RCPT; nothing is accepted to be bounced later.
Limits: no TLS, AUTH or PROXY yet: the client is whoever opened the connection, or whom a trusted one names (`xforward`).
A mail is held in memory.
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
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from aiosmtpd.smtp import SMTP

from gateway.errors import PermanentFailure, QueueUnavailable, StorageFault, StoreUnavailable, TransientFailure
from gateway.inbound.incoming import NO_ROOM, Incoming
from gateway.inbound.router import recipient_key
from gateway.inbound.xforward import OFFER as XFORWARD_OFFER
from gateway.inbound.xforward import read_xforward
from gateway.mail.addresses import parse_mailbox
from gateway.mail.envelope import Envelope
from gateway.reply import Reply
from gateway.runtime import failpoint, utc_now

if TYPE_CHECKING:
    from gateway.inbound.door import Door

NULL_SENDER = "<>"
TRY_LATER = Reply(code=451, enhanced_status="4.3.0", text="a fault of ours, the mail is not kept; try again later")
_BUFFER_BYTES = 64 * 1024
_COMMAND_BYTES = 2_048
_JUNK_COMMANDS = frozenset({"NOOP", "HELP", "VRFY", "RSET", "HELO", "EHLO", "LHLO"})
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


logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # aiosmtpd's own words; ours are in the mail log


class DoorSession(SMTP):
    """One connection; the doors' own sessions derive from it.

    `ident` stands in the greeting, `hello` is the word that must come first, `replies_each` asks for one reply to the data
    for each recipient.
    """

    ident: ClassVar[str]
    hello: ClassVar[str]
    replies_each: ClassVar[bool] = False

    command_size_limit = _COMMAND_BYTES
    line_length_limit = _BUFFER_BYTES  # of aiosmtpd's reader, which sees commands only
    session: Any
    envelope: Any
    transport: Any
    _reader: Any

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        self.gone = asyncio.Event()
        self.client = self.client_group = ""
        self._door = door
        self._limits = door.limits
        self._command = ("CONNECT", "")
        self._errors = 0
        self._unsent = bytearray()
        self._junk_commands = 0
        self._in_data = False
        self._incoming: Incoming | None = None
        self._ended: asyncio.Future[None] = loop.create_future()
        self._data_began = self._last_heard = loop.time()
        self.command_size_limits = collections.defaultdict(lambda: _COMMAND_BYTES)
        super().__init__(
            _Checks(door),
            data_size_limit=door.limits.mail_bytes,
            enable_SMTPUTF8=True,
            hostname=door.hostname,
            ident=self.ident,
            timeout=door.limits.idle_seconds,
            loop=loop,
        )
        for verb in _JUNK_COMMANDS & self._smtp_methods.keys():
            self._smtp_methods[verb] = partial(self._do_junk, self._smtp_methods[verb])

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else "local"
        self.client_group = _group(self.client) if isinstance(peer, tuple) else ""
        self._turned_away = self._door.admit(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._door.dismiss(self)
        self.gone.set()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self._last_heard = self.loop.time()
        if self._incoming is None:
            super().data_received(data)
        elif not self._ended.done():
            self._take_data(self._incoming, data)

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
        if self.transport is not None and self.transport.is_closing():
            self.abort()  # closed long ago, but a client that reads nothing would keep its place for ever
            return
        allowed = self._last_heard + self._limits.idle_seconds
        if self._in_data:
            read = self._incoming.wire_bytes if self._incoming is not None else 0
            earned = read / self._limits.data_bytes_per_second
            allowed = min(allowed, self._data_began + self._limits.idle_seconds + earned)
            if allowed > self.loop.time():
                self._reset_timeout(allowed - self.loop.time())
                return
        self._hang_up(f"421 4.4.2 {self.hostname} timeout, closing")

    def _hang_up(self, line: str) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        with suppress(ConnectionError, RuntimeError, AttributeError):
            self._unsent += line.encode() + b"\r\n"
            self._send()
        self._close()

    def _close(self) -> None:
        """Closes as soon as the client has taken what was written."""
        if self.transport is not None:
            self.transport.close()
            self._reset_timeout(self._limits.linger_seconds)

    # Replies.

    async def push(self, status: Any, times: int = 1) -> None:
        """Sends a reply with its enhanced status and without anything unprintable; counts and logs a refusal once."""
        line = status if isinstance(status, str) else bytes(status).decode("utf-8", "replace")
        match = _REPLY_LINE.match(line)
        code, enhanced, text = match.groups() if match else ("451", "4.3.0", "try again later")
        reply = (
            Reply.from_peer(int(code), f"{enhanced or _ENHANCED.get(code, '')} {text}") if code[0] in "245" else None
        )
        await self._say([str(reply) if reply else f"{code} {text}"] * times)
        if reply is not None and not reply.is_positive:
            verb, address = self._command
            self._door.log.refused(door=self._door.name, client=self.client, verb=verb, reply=reply, address=address)
            self.count_error(reply)

    async def _say(self, lines: Sequence[str]) -> None:
        """Writes reply lines; while further commands wait, the 250s to pipelined ones go out together (RFC 2920)."""
        self._unsent += "".join(f"{line}\r\n" for line in lines).encode()
        is_waited_for = b"\n" not in self._reader._buffer or not lines[-1].startswith("250")
        if is_waited_for or len(self._unsent) > _BUFFER_BYTES:
            self._send()
            await self._writer.drain()
        await asyncio.sleep(0)  # neither reading what is there already nor a drain gives others their turn

    def _send(self) -> None:
        self._writer.write(bytes(self._unsent))
        self._unsent.clear()

    def count_error(self, reply: Reply) -> None:
        """What is refused for good is the client's error; "try again later" is not, however often it is said."""
        self._errors += reply.is_permanent
        if self._errors > self._limits.hard_errors:
            self._hang_up("421 4.7.0 too many errors, closing")

    async def handle_exception(self, error: Exception) -> str:
        """A fault of ours is 451 and says nothing of itself to the client."""
        # Broad: aiosmtpd tells the client the text of what is raised here, as a 500.
        with suppress(Exception):
            self._door.log.door_fault(door=self._door.name, client=self.client, error=error)
        return str(TRY_LATER)

    # Commands.

    async def _do_junk(self, command: Callable[[str | None], Awaitable[None]], arg: str | None) -> None:
        """Obeys a command that brings no mail nearer, unless there were too many of them since the last mail."""
        self._junk_commands += 1
        if self._junk_commands > self._limits.junk_commands:
            self._hang_up("421 4.7.0 too many commands without a mail, closing")
            await asyncio.sleep(0)  # the connection's end is noticed before the next command
        else:
            await command(arg)

    def note_command(self, verb: str, arg: str | None = "") -> None:
        """Remembers what the next reply is about, for the log."""
        self._command = (verb, (arg or "")[:300])

    async def greet(self, verb: str, hostname: str | None, *, extended: bool) -> bool:
        """Begins anew after HELO, EHLO or LHLO; False when the client's name is none."""
        self.note_command(verb)
        if not hostname or not _HELO.fullmatch(hostname):
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
        size = f"SIZE {self._limits.mail_bytes}"
        more = [XFORWARD_OFFER] if self._may_forward() else []
        await self.welcome(self.hostname, "PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", *more)

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
        if not self._may_forward():
            await self.push("550 5.7.1 XFORWARD is for trusted hosts")
        elif self.envelope.mail_from:
            await self.push("503 5.5.1 XFORWARD comes before MAIL")
        elif not await self.check_helo_needed():
            known = getattr(self.envelope, "forwarded", None)
            self.envelope.forwarded, reply = read_xforward(arg or "", known)
            await self.push(str(reply))

    def _may_forward(self) -> bool:
        return not self.client_group or self.client in self._door.trusted_hosts

    async def smtp_VRFY(self, arg: str | None) -> None:
        self.note_command("VRFY")
        await self.push("252 2.1.5 send some mail, I will try my best" if arg else "501 5.5.4 Syntax: VRFY address")

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
        self.note_command("DATA")
        if refusal := self._data_refusal(arg):
            await self.push(refusal)
            return
        if self._bytes_waiting():
            # They came before our 354, so they are no data; as commands they would be somebody's smuggled mail.
            await self.push("554 5.5.0 data sent before 354, closing")
            self._close()
            return
        incoming = self._begin_data()
        try:
            await self._answer_data(incoming)
        finally:
            incoming.close()
        if self._door.is_closing:
            self.retire()

    async def _answer_data(self, incoming: Incoming) -> None:
        """Reads the data and tells what became of the mail: the reply is the whole truth about it."""
        try:
            await self._say(["354 end data with <CR><LF>.<CR><LF>"])
            await self._ended
        except Exception as error:  # noqa: BLE001 - the rest of the data must never be read as commands
            self._door.log.door_fault(door=self._door.name, client=self.client, error=error)
            self._hang_up("421 4.3.0 the data cannot be taken, the mail is not kept")
            return
        # The answer is our turn: no limit of the client's applies until it is given.
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        reply = incoming.refusal or await self._accept(incoming)
        times = self.envelope.accepted if self.replies_each else 1
        self._set_post_data_state()  # type: ignore[no-untyped-call]
        failpoint("door.replied.before")
        self._reset_timeout()  # from here on it is the client's turn again: to take the reply
        await self.push(str(reply), times)
        self._in_data = False

    def _data_refusal(self, arg: str | None) -> str:
        if not self.session.host_name:
            return f"503 5.5.1 send {self.hello} first"
        if not self.envelope.mail_from:
            return "503 5.5.1 need MAIL command"
        if not self.envelope.rcpt_tos:
            # RFC 2033, section 4.2, wants 503; RFC 5321, section 4.1.1.4, allows both and older clients know 554.
            return f"{503 if self.replies_each else 554} 5.5.1 no valid recipients"
        if arg:
            return "501 5.5.4 Syntax: DATA"
        return "" if self._door.intake.room.has(self.envelope.declared_size) else str(NO_ROOM)

    def _bytes_waiting(self) -> bool:
        """Whether the client has sent more already, read by us or still in the kernel."""
        if self._reader._buffer:
            return True
        sock = self.transport.get_extra_info("socket")
        waiting = fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0")
        return bool(struct.unpack("i", waiting)[0])

    def _begin_data(self) -> Incoming:
        """From here on what comes is data; nothing may be awaited since `_bytes_waiting` was asked."""
        self._incoming = Incoming(mail_bytes=self._limits.mail_bytes, room=self._door.intake.room)
        self._ended = self.loop.create_future()
        self._in_data = True
        self._data_began = self._last_heard = self.loop.time()
        self._reset_timeout()
        return self._incoming

    def _take_data(self, incoming: Incoming, data: bytes) -> None:
        """Takes data from the socket itself, past aiosmtpd's reader; what stands behind its end are commands again."""
        if incoming.wire_bytes == 0 and self.transport.get_write_buffer_size():
            # Our 354 has not left the house yet.
            self._ended.set_exception(PermanentFailure("data sent before 354"))
            return
        rest = incoming.feed(data)
        if rest is not None:
            self._incoming = None
            self._ended.set_result(None)
            if rest:
                super().data_received(rest)
        elif incoming.wire_bytes > 2 * self._limits.mail_bytes + _BUFFER_BYTES:
            self._ended.set_exception(PermanentFailure(f"{incoming.wire_bytes} bytes of data without an end"))

    async def _accept(self, incoming: Incoming) -> Reply:
        """Offers the mail to the intake."""
        sender = self.envelope.mail_from
        forwarded = getattr(self.envelope, "forwarded", None)
        envelope = Envelope(
            mail_id="",
            mail_from="" if sender == NULL_SENDER else sender,
            rcpt_to=tuple(self.envelope.rcpt_tos),
            received_at=utc_now(),
            door=self._door.name,
            client=forwarded.client if forwarded else self.client,
            helo=forwarded.helo if forwarded else self.session.host_name,
        )
        try:
            mail_id = await self._door.intake.accept(envelope, await incoming.octets())
        except (QueueUnavailable, StoreUnavailable, StorageFault) as fault:
            self._door.log.door_fault(door=self._door.name, client=self.client, error=fault)
            return TRY_LATER
        except (TransientFailure, PermanentFailure) as failure:
            return failure.reply
        except Exception as error:  # noqa: BLE001 - whatever it is, it is ours, and the client keeps the mail
            self._door.log.door_fault(door=self._door.name, client=self.client, error=error)
            return TRY_LATER
        self._errors = self._junk_commands = 0
        return Reply(code=250, enhanced_status="2.0.0", text=f"Ok: kept as {mail_id}")


class _Checks:
    """What MAIL and RCPT are asked after their syntax; aiosmtpd calls these hooks."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        size = max((int(option[5:]) for option in options if option.startswith("SIZE=")), default=0)
        try:
            self._door.intake.check_room(size)
        except TransientFailure as failure:
            return str(failure.reply)
        envelope.mail_from = address
        envelope.declared_size = size
        envelope.rcpt_keys = set()
        envelope.accepted = 0
        return "250 2.1.0 Ok"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        try:
            self._door.intake.check_recipient(address)
        except (TransientFailure, PermanentFailure) as failure:
            return str(failure.reply)
        key = recipient_key(address)
        is_new = key not in envelope.rcpt_keys
        # Where each gets its own reply, one named again counts again: so the replies are bounded, too.
        taken = envelope.accepted if server.replies_each else len(envelope.rcpt_tos)
        if taken >= self._door.limits.recipients and (is_new or server.replies_each):
            return f"452 4.5.3 at most {self._door.limits.recipients} recipients, send the rest in another mail"
        if is_new:
            envelope.rcpt_keys.add(key)
            envelope.rcpt_tos.append(address)
        envelope.accepted += 1
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
