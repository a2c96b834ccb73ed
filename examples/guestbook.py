"""A guestbook: people mail a greeting, it appears as a post.  An example of a mailbox of your own.

    [[mailboxes]]
    address = "guests@example.org"
    kind = "guestbook:Guestbook"        # this file's folder is on PYTHONPATH

Kept: the text, cut at `MAX_CHARACTERS`, and photos.  Held for a person: greetings with links, until one lets them go on
(`gateway release ID`).  Discarded: automatic replies.  Refused: mails that say nothing.
"""

from __future__ import annotations

import re

from gateway.inbound.mailbox import Context, Discard, Hold, Outcome, Post, ReceivedMail, Refuse

MAX_CHARACTERS = 500
_LINK = re.compile(r"https?://|www\.", re.IGNORECASE)


class Guestbook:
    """Pure: it reads values and returns a value, so it may be asked again for the same mail."""

    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        if not mail.envelope.mail_from:
            return Discard(reason="an automatic reply")
        text = mail.parsed.text.strip()
        photos = tuple(item for item in mail.attachments if item.is_photo)
        if not text and not photos:
            return Refuse(reason="a greeting needs words or a photo")
        if _LINK.search(text) and not context.is_released:
            return Hold(reason="a link in a greeting")
        others = len(mail.attachments) - len(photos)
        return Post(
            title=mail.parsed.subject or f"Greetings from {mail.author}",
            author=mail.author,
            text=text[:MAX_CHARACTERS],
            kind="greeting",
            attachments=photos,
            reason="partial" if others or len(text) > MAX_CHARACTERS else "",
        )
