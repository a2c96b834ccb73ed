"""What MAIL and RCPT are asked after their syntax: room, the recipient, how many there are, whose share it is; aiosmtpd's hooks."""

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
        if put_off := self._door.take_mail(server, "" if address == "<>" else address):
            return str(put_off)
        envelope.mail_from = address
        envelope.declared_size = size
        envelope.rcpt_keys = set()
        envelope.accepted = 0
        return "250 2.1.0 Ok"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        try:
            self._door.intake.check_recipient(address, by_trusted_host=server.is_trusted_host)
        except (TransientFailure, PermanentFailure) as failure:
            return str(failure.reply)
        key = recipient_key(address)
        is_new = key not in envelope.rcpt_keys
        # Where each gets its own reply, one named again counts again: so the replies are bounded, too.
        taken = envelope.accepted if server.replies_each else len(envelope.rcpt_tos)
        if taken >= self._door.limits.recipients and (is_new or server.replies_each):
            return f"452 4.5.3 at most {self._door.limits.recipients} recipients, send the rest in another mail"
        sender = envelope.mail_from
        if put_off := self._door.take_recipient(server, "" if sender == "<>" else sender):
            return str(put_off)
        if is_new:
            envelope.rcpt_keys.add(key)
            envelope.rcpt_tos.append(address)
        elif not server.replies_each and (last_word := server.count_junk()):
            return str(last_word)
        envelope.accepted += 1
        return "250 2.1.5 Ok"
