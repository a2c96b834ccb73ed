"""DATA at a door: the octets between our 354 and the final dot, and the answer to them.

The middle layer of a session, above its line.  Data is taken from the socket itself, past aiosmtpd's reader of lines.
Promises:
  * 250 after the final dot means kept, and names the mail id; any fault of ours is 451 without its text;
  * only CR LF . CR LF ends the data, a byte that came before our 354 is never data, a bare CR, LF or NUL refuses the mail;
  * data slower than the limit ends the session, an answer of ours that takes long does not.
Limits: a mail is held in memory.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, ClassVar

from gateway.errors import PermanentFailure, QueueUnavailable, StorageFault, StoreUnavailable, TransientFailure
from gateway.inbound.door_line import BUFFER_BYTES, TRY_LATER, DoorLine
from gateway.inbound.incoming import NO_ROOM, Incoming
from gateway.mail.envelope import Envelope
from gateway.reply import Reply
from gateway.runtime import failpoint, utc_now

if TYPE_CHECKING:
    from gateway.inbound.door import Door

NULL_SENDER = "<>"


class DoorData(DoorLine):
    """A line that takes mail; `hello` is the word that must come first."""

    hello: ClassVar[str]

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        self._in_data = False
        self._incoming: Incoming | None = None
        self._ended: asyncio.Future[None] = loop.create_future()
        self._data_began = self._last_heard = loop.time()
        super().__init__(door, loop)

    def data_received(self, data: bytes) -> None:
        self._last_heard = self.loop.time()
        if self._incoming is None:
            super().data_received(data)
        elif not self._ended.done():
            self._take_data(self._incoming, data)

    def eof_received(self) -> bool | None:
        """The client will say no more: that ends the session, but an answer under way he still may hear (not so under TLS)."""
        is_answering = self._in_data and self._ended.done()
        if is_answering and self.session.ssl is None:
            self._reader.feed_eof()
            return True
        return super().eof_received()

    def retire(self) -> None:
        """Ends the session now, or right after the answer to the data that is coming in."""
        if not self._in_data:
            super().retire()

    def _timeout_cb(self) -> None:
        """Ends who is silent, or sends data slower than the limit; everyone else gets a new term."""
        if self._in_data and not self.transport.is_closing():
            read = self._incoming.wire_bytes if self._incoming is not None else 0
            earned = read / self._limits.data_bytes_per_second
            allowed = min(self._last_heard, self._data_began + earned) + self._door.patience_seconds
            if allowed > self.loop.time():
                self._reset_timeout(allowed - self.loop.time())
                return
        super()._timeout_cb()

    async def smtp_DATA(self, arg: str | None) -> None:
        self.note_command("DATA")
        if refusal := self._data_refusal(arg):
            await self.push(refusal)
            return
        if self.bytes_waiting():
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
        self._mail_due = self.loop.time() + self._limits.session_seconds
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

    def _begin_data(self) -> Incoming:
        """From here on what comes is data; nothing may be awaited since `bytes_waiting` was asked."""
        self._incoming = Incoming(mail_bytes=self._limits.mail_bytes, room=self._door.intake.room)
        self._ended = self.loop.create_future()
        self._in_data = True
        self._data_began = self._last_heard = self.loop.time()
        self._mail_due = math.inf
        self._reset_timeout()
        return self._incoming

    def _take_data(self, incoming: Incoming, data: bytes) -> None:
        """Takes data from the socket itself, past aiosmtpd's reader; what stands behind its end are commands again."""
        if incoming.wire_bytes == 0 and (self.transport.get_write_buffer_size() or self._wire.get_write_buffer_size()):
            # Our 354 has not left the house yet.
            self._ended.set_exception(PermanentFailure("data sent before 354"))
            return
        rest = incoming.feed(data)
        if rest is not None:
            self._incoming = None
            self._ended.set_result(None)
            if rest:
                super().data_received(rest)
        elif incoming.wire_bytes > 2 * self._limits.mail_bytes + BUFFER_BYTES:
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
            by_trusted_host=self.is_trusted_host,
            tls=self.tls,
            auth=self.auth,
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
        self.forgive()
        return Reply(code=250, enhanced_status="2.0.0", text=f"Ok: kept as {mail_id}")
