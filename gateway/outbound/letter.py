"""One email on its way to one recipient, as a relay is handed it; refuses what must never reach a wire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.errors import FaultOwner
from gateway.mail.addresses import needs_smtputf8, parse_mailbox, wire_mailbox
from gateway.outbound.verdict import Refused
from gateway.reply import Reply

BeforeDot = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """The envelope for one recipient and the octets; `mail_from` is '' for the null sender."""

    mail_from: str
    recipient: str
    octets: bytes
    stream: str

    @property
    def needs_smtputf8(self) -> bool:
        """Whether the envelope or a header (RFC 6532) has raw UTF-8: then the relay must offer SMTPUTF8 (RFC 6531)."""
        if needs_smtputf8(self.recipient) or (self.mail_from and needs_smtputf8(self.mail_from)):
            return True
        return not self.octets.partition(b"\r\n\r\n")[0].isascii()

    @property
    def sender_path(self) -> bytes:
        return f"<{wire_mailbox(self.mail_from) if self.mail_from else ''}>".encode()

    @property
    def recipient_path(self) -> bytes:
        return f"<{wire_mailbox(self.recipient)}>".encode()

    def stuffed_lines(self) -> bytes:
        """The octets as they stand between DATA and the final dot (RFC 5321, section 4.5.2)."""
        stuffed = self.octets.replace(b"\r\n.", b"\r\n..")
        if stuffed.startswith(b"."):
            stuffed = b"." + stuffed
        return stuffed if stuffed.endswith(b"\r\n") else stuffed + b"\r\n"

    def check(self) -> None:
        """Raises Refused for an address or octets that must not be sent."""
        for mailbox in (self.recipient, *filter(None, [self.mail_from])):
            try:
                parse_mailbox(mailbox)
            except ValueError as error:
                raise _refusal(553, "5.1.3", f"{mailbox!r} {error}", FaultOwner.RECIPIENT) from None
        lines = self.octets.count(b"\r\n")
        if not (lines == self.octets.count(b"\n") == self.octets.count(b"\r")) or b"\x00" in self.octets:
            raise _refusal(554, "5.6.0", "the mail holds a bare CR, a bare LF or a NUL", FaultOwner.OURS)


def _refusal(code: int, enhanced_status: str, text: str, owner: FaultOwner) -> Refused:
    return Refused(Reply(code=code, enhanced_status=enhanced_status, text=text), relay="", owner=owner)
