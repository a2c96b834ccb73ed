"""The line of a session: who came, how long they may be silent, how replies are written, and when patience ends.

The lowest of three layers: `door_line` (connection and replies), `door_data` (DATA), `door_session` (the commands).
Promises: a reply has its enhanced status and nothing unprintable; a fault of ours is 451 without its text; who is silent,
reads nothing or makes too many errors is let go; what a refusal said is in the log once.
Also: a client that talks before it is greeted is let go; a command ends with CR LF, nothing else.
Limits: the client is whoever opened the connection, or whom a PROXY header names (`proxy_protocol`).  Home of aiosmtpd.
"""

from __future__ import annotations

import asyncio
import collections
import fcntl
import logging
import math
import re
import struct
import termios
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from aiosmtpd.smtp import SMTP

from gateway.inbound.door_checks import DoorChecks
from gateway.inbound.door_limits import client_key
from gateway.inbound.proxy_protocol import read_client
from gateway.reply import Reply

if TYPE_CHECKING:
    from gateway.inbound.door import Door

TRY_LATER = Reply(code=451, enhanced_status="4.3.0", text="a fault of ours, the mail is not kept; try again later")
_BARE_LINE_END = Reply(
    code=500,
    enhanced_status="5.5.2",
    text="a command ends with CR LF and has no other CR or LF (RFC 5321, section 2.3.8)",
)
_TOO_MUCH_JUNK = Reply(code=421, enhanced_status="4.7.0", text="too many commands without a mail, closing")
BUFFER_BYTES = 64 * 1024
COMMAND_BYTES = 2_048
_REPLY_LINE = re.compile(r"^(\d{3}) (?:(\d\.\d{1,3}\.\d{1,3}) )?(.*)$", re.DOTALL)
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

_SENDER_STATUS = "5.1.7"  # aiosmtpd calls a sender it cannot read a bad destination

logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # aiosmtpd's own words; ours are in the mail log


class BareLineEndError(Exception):
    """A command with a CR or LF that is not its end."""


class DoorLine(SMTP):
    """One connection; `ident` stands in its greeting, `replies_each` asks for one reply to the data for each recipient.

    `client_group` is whom it counts for among the connections ('' for a program of this machine), `counted_as` whom its mails,
    recipients and errors count for ('' for nobody), `tls` how it is secured, `auth` who has logged in.
    """

    ident: ClassVar[str]
    replies_each: ClassVar[bool] = False

    command_size_limit = COMMAND_BYTES
    line_length_limit = BUFFER_BYTES  # of aiosmtpd's reader, which sees commands only
    session: Any
    envelope: Any
    transport: Any
    _reader: Any
    _writer: Any
    _wire: Any  # what carries the octets: under TLS no longer `transport`

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        self.gone = asyncio.Event()
        self.client = self.client_group = self.counted_as = self.tls = self.auth = ""
        self._door = door
        self._limits = door.limits
        self._command = ("CONNECT", "")
        self._address_fault = ""
        self._errors = self._put_off = self._junk_commands = 0
        self._unsent = bytearray()
        self._mail_due = loop.time() + door.limits.session_seconds
        self.command_size_limits = collections.defaultdict(lambda: COMMAND_BYTES)
        super().__init__(
            DoorChecks(door),
            data_size_limit=door.limits.mail_bytes,
            enable_SMTPUTF8=True,
            hostname=door.hostname,
            ident=self.ident,
            timeout=door.limits.idle_seconds,
            loop=loop,
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = transport
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else "local"
        is_plain = transport.get_extra_info("ssl_object") is None
        self._hands_on_others = is_plain and self._door.expects_header_of(self.client)
        self._is_of_this_machine = not isinstance(peer, tuple) and not self._hands_on_others
        is_one_client = isinstance(peer, tuple) and not self._hands_on_others
        self.client_group = client_key(self.client) if is_one_client else ""
        self._turned_away = self._door.admit(self)
        super().connection_made(transport)

    @property
    def is_trusted_host(self) -> bool:
        """Whether a mail server of ours speaks: one of `trusted_hosts`, or who may open the UNIX socket.

        Behind a load balancer that is whom it names, never the balancer.
        """
        return self._is_of_this_machine or self.client in self._door.trusted_hosts

    def connection_lost(self, error: Exception | None) -> None:
        if self.gone.is_set():
            return
        self._door.dismiss(self)
        self.gone.set()
        super().connection_lost(error)

    def retire(self) -> None:
        """Ends the session."""
        self._hang_up(f"421 4.3.2 {self.hostname} is closing, try again later")

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    async def _handle_client(self) -> None:
        try:
            if self._hands_on_others and not await self._hear_whose_it_is():
                return
            if self._turned_away is not None:
                await self.push(str(self._turned_away))
                self._close()
                return
        except asyncio.CancelledError:
            self._writer.close()  # the client has gone
            raise
        # The one place where aiosmtpd reads a command.
        self._reader.readuntil = partial(self._read_command, self._reader.readuntil)
        await super()._handle_client()

    async def _read_command(self, readuntil: Callable[[], Awaitable[bytes]]) -> bytes:
        """A line as some see it and others do not is how commands are smuggled."""
        try:
            line = await readuntil()
        except asyncio.IncompleteReadError:  # the client had said all before he heard our last answer
            raise asyncio.CancelledError from None
        self.note_command("COMMAND")  # until somebody knows more of it
        if line.find(b"\r") != len(line) - 2:
            raise BareLineEndError
        return line

    async def _hear_whose_it_is(self) -> bool:
        """Reads the PROXY header and counts the session in anew, for its client; False when there was none."""
        try:
            async with asyncio.timeout(self._limits.proxy_seconds):
                client = await read_client(self._reader)
        except (TimeoutError, ValueError) as error:
            why = str(error) or "no PROXY header came in time"
            self._door.log.proxy_refused(door=self._door.name, proxy=self.client, why=why)
            self._close()
            return False
        self._door.dismiss(self)
        self.client, self.client_group = client, client_key(client)
        self._turned_away = self._door.admit(self)
        return True

    def bytes_waiting(self) -> bool:
        """Whether the client has sent more already, read by us or still in the kernel."""
        if self._reader._buffer:
            return True
        sock = self.transport.get_extra_info("socket")
        waiting = fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0")
        return bool(struct.unpack("i", waiting)[0])

    def hurry(self) -> None:
        """The door has become crowded: from now on there is less patience."""
        timer = self._timeout_handle
        if timer is not None and not timer.cancelled() and self.transport and not self.transport.is_closing():
            self._reset_timeout()

    def _reset_timeout(self, duration: float | None = None) -> None:
        """A new term: of the door's patience with the silent, and never beyond the time a session has for a mail."""
        seconds = duration or self._door.patience_seconds
        super()._reset_timeout(max(0.001, min(seconds, self._mail_due - self.loop.time())))

    def _timeout_cb(self) -> None:
        """Ends who is silent."""
        if self.transport is not None and self.transport.is_closing():
            self.abort()  # closed long ago, but a client that reads nothing would keep its place for ever
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
        """Closes as soon as the client has taken what was written; what he said after that nobody hears."""
        if self.transport is not None:
            self._reader._buffer.clear()
            self._mail_due = math.inf
            self.transport.close()
            self._reset_timeout(self._limits.linger_seconds)

    # Replies.

    async def push(self, status: Any, times: int = 1) -> None:
        """Sends a reply with its enhanced status and without anything unprintable; counts and logs a refusal once.

        After 421 the session is over (RFC 5321, section 3.8).
        """
        line = status if isinstance(status, str) else bytes(status).decode("utf-8", "replace")
        match = _REPLY_LINE.match(line)
        code, enhanced, text = match.groups() if match else ("451", "4.3.0", "try again later")
        if code == "553":
            enhanced = _SENDER_STATUS if self._command[0] == "MAIL" else enhanced
            text = f"the address {self._address_fault}"
        elif text.startswith("Error: command"):
            text = "that is no command here"  # aiosmtpd repeats it: a password, where AUTH had failed
        reply = (
            Reply.from_peer(int(code), f"{enhanced or _ENHANCED.get(code, '')} {text}") if code[0] in "245" else None
        )
        if reply is not None and reply.code == 421:
            self._hang_up(str(reply))
        else:
            await self._say([str(reply) if reply else f"{code} {text}"] * times)
        if reply is not None and not reply.is_positive:
            verb, address = self._command
            self._door.log.refused(door=self._door.name, client=self.client, verb=verb, reply=reply, address=address)
            self.count_error(reply)

    async def _say(self, lines: Sequence[str]) -> None:
        """Writes reply lines; while further commands wait, the 250s to pipelined ones go out together (RFC 2920)."""
        self._unsent += "".join(f"{line}\r\n" for line in lines).encode()
        is_waited_for = b"\n" not in self._reader._buffer or not lines[-1].startswith("250")
        if is_waited_for or len(self._unsent) > BUFFER_BYTES:
            self._send()
            await self._writer.drain()
        await asyncio.sleep(0)  # neither reading what is there already nor a drain gives others their turn

    def _send(self) -> None:
        self._writer.write(bytes(self._unsent))
        self._unsent.clear()

    def count_error(self, reply: Reply) -> None:
        """What is refused for good is the client's error; "try again later" is not, but must not be asked for without end."""
        if reply.is_permanent:
            self._errors += 1
            self._door.note_error(self)
        else:
            self._put_off += 1
        if self._errors > self._limits.hard_errors or self._put_off > self._limits.put_off:
            self._hang_up("421 4.7.0 too many errors, closing")

    async def handle_exception(self, error: Exception) -> str:
        """A fault of ours is 451 and says nothing of itself to the client."""
        if isinstance(error, BareLineEndError):
            return str(_BARE_LINE_END)
        # Broad: aiosmtpd tells the client the text of what is raised here, as a 500.
        with suppress(Exception):
            self._door.log.door_fault(door=self._door.name, client=self.client, error=error)
        return str(TRY_LATER)

    def count_junk(self) -> Reply | None:
        """Counts a command that brings no mail nearer; returns the last word when there were too many since the last mail."""
        self._junk_commands += 1
        return _TOO_MUCH_JUNK if self._junk_commands > self._limits.junk_commands else None

    def forgive(self) -> None:
        """A mail was kept: what went before it is forgotten."""
        self._errors = self._put_off = self._junk_commands = 0
        self._mail_due = self.loop.time() + self._limits.session_seconds

    def note_command(self, verb: str, arg: str | None = "") -> None:
        """Remembers what the next reply is about, for the log."""
        self._command = (verb, (arg or "")[:300])
