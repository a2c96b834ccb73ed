"""A mailbox whose process does not survive a certain mail."""

from __future__ import annotations

import os
import signal

from gateway.inbound.mailbox import Context, Outcome, Post, ReceivedMail


class KillerBox:
    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        if mail.parsed.subject == "killer":
            os.kill(os.getpid(), signal.SIGKILL)
        return Post(title=mail.parsed.subject, author=mail.author, text=mail.parsed.text)
