"""A mailbox that fails until somebody has mended it: until the file that MOODY_MENDED names is there."""

from __future__ import annotations

import os
from pathlib import Path

from gateway.inbound.mailbox import Context, Outcome, Post, ReceivedMail


class MoodyBox:
    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        if not Path(os.environ["MOODY_MENDED"]).exists():
            raise RuntimeError("not today")
        return Post(title=mail.parsed.subject, author=mail.author, text=mail.parsed.text)
