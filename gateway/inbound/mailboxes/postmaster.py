"""The mailbox behind postmaster@ and abuse@: kept as a post of kind `postmaster`, so that a person sees it."""

from __future__ import annotations

from gateway.inbound.mailbox import Context, Outcome, ReceivedMail
from gateway.inbound.mailboxes.posts import post_of


class Postmaster:
    """Takes every mail (RFC 5321, section 4.5.1; RFC 2142)."""

    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        return post_of(mail, kind="postmaster")
