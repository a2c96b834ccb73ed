"""The LMTP door (RFC 2033): for the mail server of this machine, by a UNIX socket or TCP; never for the world.

As the SMTP door, with LHLO, and after the final dot one reply for each recipient accepted at RCPT, in that order, one named
twice included.  All recipients of a mail are kept together or not at all, so the replies agree; each names the mail id.
Who may open the UNIX socket is a mail server of ours, as the hosts of `trusted_hosts` are: it may say XFORWARD, and its word
about a mail counts (`authenticate.own_mta`).  Who else connects by TCP is trusted no more than at the SMTP door.
"""

from __future__ import annotations

from gateway.inbound.door import Door
from gateway.inbound.door_session import DoorSession
from gateway.reply import Reply


class LmtpSession(DoorSession):
    """LHLO; a reply to the data for each recipient."""

    ident = "LMTP gateway"
    hello = "LHLO"
    replies_each = True

    async def smtp_LHLO(self, hostname: str | None) -> None:
        await self.greet_extended("LHLO", hostname)

    async def smtp_HELO(self, hostname: str | None) -> None:
        await self._lhlo_instead("HELO")

    async def smtp_EHLO(self, hostname: str | None) -> None:
        await self._lhlo_instead("EHLO")

    async def _lhlo_instead(self, verb: str) -> None:
        self.note_command(verb)
        await self.push(f"500 5.5.1 this is LMTP: LHLO instead of {verb}")

    def count_error(self, reply: Reply) -> None:
        """A mail server names other people's recipients: an unknown one is not its error."""
        if reply.code < 550:
            super().count_error(reply)


class LmtpDoor(Door):
    name = "lmtp"
    session = LmtpSession
