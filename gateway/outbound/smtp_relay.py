"""A relay spoken to over SMTP: kept connections, TLS, AUTH, and a DATA step of our own.  Home of aiosmtplib.

One transaction per recipient: MAIL, RCPT, DATA, the body drained, `before_dot()` (the ledger records `dot_sent`), the dot,
the reply.  Up to the dot every failure is a StepFailed and nothing was handed over; from the dot on, silence and garbage
are OutcomeUnknown.  aiosmtplib writes body and dot in one call, so its `data()` is not used; nor are its `mail()` and
`rcpt()`, which re-parse addresses.
Limits: no pipelining yet; EHLO only, no HELO; an answer in two pieces of one line is read as aiosmtplib reads it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, cast

from aiosmtplib import SMTP, SMTPException, SMTPResponse, SMTPResponseException, SMTPTimeoutError
from aiosmtplib.protocol import SMTPProtocol

from gateway.errors import FaultOwner
from gateway.outbound.letter import BeforeDot, Letter
from gateway.outbound.relay_url import RelaySpec, Security
from gateway.outbound.verdict import OutcomeUnknown, Refused, Step, StepFailed
from gateway.reply import Reply
from gateway.runtime import failpoint

_BLOCK_BYTES = 256 * 1024
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """How long a relay may take (RFC 5321, section 4.5.3.2) and how long its connections are kept."""

    connect_seconds: float = 30
    command_seconds: float = 300
    block_seconds: float = 180
    reply_seconds: float = 600
    quit_seconds: float = 5
    connections: int = 20
    idle_seconds: float = 60
    unchecked_idle_seconds: float = 5
    max_age_seconds: float = 600
    mails_per_connection: int = 100
    first_pause_seconds: float = 5
    longest_pause_seconds: float = 300


class SmtpRelay:
    """The connections to one relay: at most `connections` at once, idle ones used again."""

    def __init__(self, spec: RelaySpec, *, hostname: str, limits: RelayLimits) -> None:
        self._spec = spec
        self._hostname = hostname
        self._limits = limits
        self._idle: list[_Session] = []
        self._slots = asyncio.Semaphore(limits.connections)
        self._goodbyes: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None

    async def transact(self, letter: Letter, before_dot: BeforeDot) -> Reply:
        """Hands over one letter; raises StepFailed, Refused, OutcomeUnknown, or what `before_dot` raised."""
        async with self._slots:
            session = await self._kept()
            if session is not None:
                try:
                    return await self._use(session, letter, before_dot)
                except StepFailed as failure:
                    if not (failure.step is Step.MAIL and failure.lost_connection):
                        raise
                    self._drop_idle()  # it went stale while idle, and so did its like: no fault of the relay
            return await self._use(await self._open(), letter, before_dot)

    async def close(self) -> None:
        """Says QUIT on every idle connection and waits for the goodbyes."""
        idle, self._idle = self._idle, []
        for session in idle:
            self._say_goodbye(session)
        if self._goodbyes:
            await asyncio.wait(self._goodbyes)

    async def _use(self, session: _Session, letter: Letter, before_dot: BeforeDot) -> Reply:
        keep = False
        try:
            reply = await session.transact(letter, before_dot)
            keep = True
        except StepFailed as failure:
            keep = not failure.lost_connection and failure.step is not Step.BODY
            raise
        except Refused:
            keep = True
            raise
        finally:
            if keep:
                self._keep(session)
            else:
                session.abort()
        return reply

    async def _kept(self) -> _Session | None:
        while self._idle:
            session = self._idle.pop()
            if await session.is_fit(self._limits):
                return session
            self._say_goodbye(session)
        return None

    def _keep(self, session: _Session) -> None:
        if session.mails >= self._limits.mails_per_connection:
            self._say_goodbye(session)
        else:
            session.idle_since = time.monotonic()
            self._idle.append(session)

    def _drop_idle(self) -> None:
        for session in self._idle:
            session.abort()
        self._idle.clear()

    def _say_goodbye(self, session: _Session) -> None:
        task = asyncio.create_task(session.quit(self._limits.quit_seconds))
        self._goodbyes.add(task)
        task.add_done_callback(self._goodbyes.discard)

    async def _open(self) -> _Session:
        if self._tls is None:
            self._tls = await asyncio.to_thread(_tls_context, self._spec.verify)
        client = SMTP(
            hostname=self._spec.host,
            port=self._spec.port,
            local_hostname=self._hostname,
            use_tls=self._spec.security is Security.TLS,
            start_tls=False,
            tls_context=self._tls,
            timeout=self._limits.command_seconds,
        )
        session = _Session(client, self._spec, self._limits)
        try:
            await session.open()
        except BaseException:
            session.abort()
            raise
        return session


class _Session:
    """One connection."""

    def __init__(self, client: SMTP, spec: RelaySpec, limits: RelayLimits) -> None:
        self._client = client
        self._spec = spec
        self._limits = limits
        self._needs_reset = False
        self.opened_at = self.idle_since = time.monotonic()
        self.mails = 0

    async def open(self) -> None:
        """Connects, secures and authenticates."""
        client, spec = self._client, self._spec
        await _step(Step.CONNECT, client.connect(timeout=self._limits.connect_seconds))
        await _step(Step.EHLO, client.ehlo())
        if spec.security is Security.STARTTLS and not client.supports_extension("starttls"):
            raise _failed(Step.STARTTLS, "4.7.4", "STARTTLS is required and the relay does not offer it")
        if spec.security is not Security.TLS and client.supports_extension("starttls"):
            await _step(Step.STARTTLS, client.starttls())
            await _step(Step.EHLO, client.ehlo())
        if spec.user:
            await self._authenticate()

    async def _authenticate(self) -> None:
        if self._client.get_transport_info("sslcontext") is None:
            raise _failed(Step.AUTH, "4.7.4", "the password is only sent over TLS and the relay does not offer it")
        await _step(Step.AUTH, self._client.login(self._spec.user, self._spec.password))

    async def transact(self, letter: Letter, before_dot: BeforeDot) -> Reply:
        mail, rcpt = self._envelope(letter)
        self.mails += 1
        await self._command(Step.MAIL, *mail)
        await self._command(Step.RCPT, *rcpt)
        await self._command(Step.DATA, b"DATA", wanted=3)
        return await self._hand_over(letter, before_dot)

    async def is_fit(self, limits: RelayLimits) -> bool:
        """Whether an idle connection can take another mail; asks the relay where that is in doubt."""
        now = time.monotonic()
        idle_seconds = now - self.idle_since
        if not self._client.is_connected or now - self.opened_at > limits.max_age_seconds:
            return False
        if idle_seconds > limits.idle_seconds:
            return False
        if not self._needs_reset and idle_seconds < limits.unchecked_idle_seconds:
            return True
        try:
            await self._command(Step.MAIL, b"RSET", seconds=limits.quit_seconds)
        except StepFailed:
            return False
        self._needs_reset = False
        return True

    async def quit(self, seconds: float) -> None:
        """Says goodbye; whatever comes back, everything was recorded before."""
        with suppress(SMTPException, OSError, ValueError):
            await self._client.quit(timeout=seconds)
        self.abort()

    def abort(self) -> None:
        """Drops the connection at once: nothing buffered goes out any more."""
        if self._client.transport is not None:
            cast(asyncio.WriteTransport, self._client.transport).abort()
        self._client.close()

    def _envelope(self, letter: Letter) -> tuple[list[bytes], list[bytes]]:
        offers = self._client.supports_extension
        mail = [b"MAIL", b"FROM:" + letter.sender_path]
        if offers("size"):
            self._check_size(len(letter.octets))
            mail.append(b"SIZE=%d" % len(letter.octets))
        if letter.needs_smtputf8:
            if not offers("smtputf8"):
                raise self._refusal(553, "5.6.7", "the relay takes no international addresses (SMTPUTF8)")
            mail.append(b"SMTPUTF8")
        if not letter.octets.isascii():
            if not offers("8bitmime"):
                raise self._refusal(554, "5.6.3", "the mail has 8-bit octets and the relay offers no 8BITMIME")
            mail.append(b"BODY=8BITMIME")
        return mail, [b"RCPT", b"TO:" + letter.recipient_path]

    def _check_size(self, size: int) -> None:
        announced = self._client.esmtp_extensions["size"].strip()
        if announced.isascii() and announced.isdigit() and 0 < int(announced) < size:
            raise self._refusal(552, "5.3.4", f"the mail has {size} octets, the relay takes {announced}")

    def _refusal(self, code: int, enhanced_status: str, text: str) -> Refused:
        reply = Reply(code=code, enhanced_status=enhanced_status, text=text)
        return Refused(reply, relay=self._spec.name, owner=FaultOwner.CONTENT)

    async def _command(self, step: Step, *words: bytes, wanted: int = 2, seconds: float | None = None) -> None:
        self._refuse_leftovers(step)
        timeout = self._limits.command_seconds if seconds is None else seconds
        self._needs_reset = True
        response = await _step(step, self._client.execute_command(*words, timeout=timeout))
        _expect(step, response, wanted)

    def _refuse_leftovers(self, step: Step) -> None:
        """An answer nobody asked for would be taken for the next one's, at worst for the dot's."""
        protocol = self._client.protocol
        if protocol is None or not protocol.is_connected:
            raise _failed(step, "4.4.2", f"connection lost at {step}")
        if protocol._buffer:
            raise _failed(step, "4.5.0", f"the relay answered more than it was asked before {step}")

    async def _hand_over(self, letter: Letter, before_dot: BeforeDot) -> Reply:
        self._refuse_leftovers(Step.BODY)
        protocol = self._client.protocol
        assert protocol is not None
        # Reading starts before the body: an answer that comes before the dot is no answer to the dot.
        answer = asyncio.create_task(protocol.read_response())
        try:
            await self._write_body(letter.stuffed_lines(), answer)
            failpoint("relay.body_sent")
            await before_dot()
            self._refuse_early(answer)
            _write_dot(protocol)
            failpoint("relay.dot_sent")
            return await self._await_answer(answer)
        finally:
            if not answer.done():
                answer.cancel()

    async def _write_body(self, lines: bytes, answer: asyncio.Task[SMTPResponse]) -> None:
        protocol = self._client.protocol
        assert protocol is not None
        transport = cast(asyncio.WriteTransport, self._client.transport)  # uvloop's is one without saying so
        transport.set_write_buffer_limits(high=0)
        for start in range(0, len(lines), _BLOCK_BYTES):
            self._refuse_early(answer)
            try:
                async with asyncio.timeout(self._limits.block_seconds):
                    protocol.write(lines[start : start + _BLOCK_BYTES])
                    await protocol._drain_helper()
            except (SMTPException, OSError) as error:  # TimeoutError is an OSError
                await asyncio.sleep(0)
                self._refuse_early(answer)
                raise _failed(Step.BODY, "4.4.2", _told(Step.BODY, error)) from error
        await asyncio.sleep(0)  # lets an answer that is already here be read
        self._refuse_early(answer)

    def _refuse_early(self, answer: asyncio.Task[SMTPResponse]) -> None:
        if not answer.done():
            return
        try:
            response = answer.result()
        except (SMTPException, OSError) as error:
            raise _failed(Step.BODY, "4.4.2", _told(Step.BODY, error)) from error
        _expect(Step.BODY, response, wanted=0)

    async def _await_answer(self, answer: asyncio.Task[SMTPResponse]) -> Reply:
        name = self._spec.name
        try:
            async with asyncio.timeout(self._limits.reply_seconds):
                response = await answer
        except TimeoutError:
            text = f"no reply to the final dot within {self._limits.reply_seconds:g} s"
            raise OutcomeUnknown(text, relay=name) from None
        except (SMTPException, OSError) as error:
            raise OutcomeUnknown(
                f"the reply to the final dot never came: {_told(Step.DOT, error)}", relay=name
            ) from error
        if not (200 <= response.code <= 299 or 400 <= response.code <= 599):
            raise OutcomeUnknown(f"no intelligible reply to the final dot: {_reply_of(response)}", relay=name)
        self._needs_reset = False
        _expect(Step.DOT, response, wanted=2)
        failpoint("relay.replied")
        return _reply_of(response)


async def _step(step: Step, action: Awaitable[_Result]) -> _Result:
    """Awaits one exchange; whatever goes wrong becomes a StepFailed."""
    try:
        return await action
    except SMTPResponseException as error:
        reply = Reply.from_peer(error.code, error.message)
        raise StepFailed(step, reply, spoken=400 <= error.code <= 599) from error
    except (SMTPException, OSError, ValueError, RuntimeError) as error:
        raise _failed(step, "4.4.1" if step is Step.CONNECT else "4.4.2", _told(step, error)) from error


def _write_dot(protocol: SMTPProtocol) -> None:
    try:
        protocol.write(b".\r\n")
    except SMTPException as error:
        raise _failed(Step.BODY, "4.4.2", _told(Step.BODY, error)) from error


def _expect(step: Step, response: SMTPResponse, wanted: int) -> None:
    """Raises StepFailed unless the reply's first digit is `wanted`."""
    if response.code // 100 == wanted:
        return
    if 400 <= response.code <= 599:
        raise StepFailed(step, _reply_of(response), spoken=True)
    raise _failed(step, "4.5.0", f"unexpected reply to {step}: {_reply_of(response)}")


def _failed(step: Step, enhanced_status: str, text: str) -> StepFailed:
    return StepFailed(step, Reply.from_peer(451, f"{enhanced_status} {text}"), spoken=False)


def _reply_of(response: SMTPResponse) -> Reply:
    return Reply.from_peer(response.code, response.message)


def _told(step: Step, error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError) or isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return f"the relay's certificate cannot be verified: {error}"
    if isinstance(error, TimeoutError | SMTPTimeoutError):
        return f"no answer in time at {step}"
    return f"{step}: {error or type(error).__name__}"


def _tls_context(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
