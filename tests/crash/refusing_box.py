"""A mailbox that takes nothing: what comes to it fails, and whoever may be told is told."""

from __future__ import annotations

from gateway.inbound.mailbox import Context, Outcome, ReceivedMail, Refuse


class RefusingBox:
    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        return Refuse(reason="this address takes no mail any more")
