"""What MAIL and RCPT are asked after their syntax: room, the recipient, how many there are.  aiosmtpd calls these hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.errors import PermanentFailure, TransientFailure
from gateway.inbound.router import recipient_key

if TYPE_CHECKING:
    from gateway.inbound.door import Door


class DoorChecks:
    """The answers to MAIL and RCPT of one session."""

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
