"""The mailbox `posts`: a mail becomes a post with title, author, text, sanitised html and the attachments in order.

Pictures that the html shows inline (`cid:`, RFC 2392) become `attachment:N`, N being the attachment's position.
A mail without a subject is titled by its first words, one without words by its photos.  No text and a photo is a valid post.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from urllib.parse import unquote

from gateway.inbound.attachments import TypedAttachment
from gateway.inbound.mailbox import Context, Outcome, Post, ReceivedMail

_TITLE_CHARACTERS = 80
# Attributes as the sanitiser writes them: names bare, values in double quotes without one inside.
_CID = re.compile(r"""(<(?:img|a)(?: [a-z]+="[^"]*")*? (?:src|href)=")cid:([^"]*)""", re.I)


class Posts:
    """Takes every mail."""

    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        return post_of(mail)


def post_of(mail: ReceivedMail, *, kind: str = "post") -> Post:
    """The post a mail makes."""
    return Post(
        title=mail.parsed.subject or _first_words(mail.parsed.text) or _by_attachments(mail),
        author=mail.author,
        author_address=mail.parsed.from_.address or mail.envelope.mail_from,
        text=mail.parsed.text,
        html=with_positions(mail.parsed.html, mail.attachments),
        kind=kind,
        attachments=mail.attachments,
    )


def with_positions(safe_html: str, attachments: Sequence[TypedAttachment]) -> str:
    """Sanitised html with every `cid:` that names an attachment replaced by `attachment:` and its position."""
    positions = {item.content_id: number for number, item in reversed(list(enumerate(attachments))) if item.content_id}

    def placed(match: re.Match[str]) -> str:
        position = positions.get(unquote(html.unescape(match[2])).strip("<> "))
        return match[0] if position is None else f"{match[1]}attachment:{position}"

    return _CID.sub(placed, safe_html) if positions else safe_html


def _first_words(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if len(line) <= _TITLE_CHARACTERS:
        return line
    words = line[:_TITLE_CHARACTERS].rpartition(" ")[0] or line[:_TITLE_CHARACTERS]
    return f"{words.rstrip(' ,;:.')} …"


def _by_attachments(mail: ReceivedMail) -> str:
    photos = sum(attachment.is_photo for attachment in mail.attachments)
    if photos:
        return f"{'Photo' if photos == 1 else f'{photos} photos'} from {mail.author}"
    return f"{'Files' if mail.attachments else 'Mail'} from {mail.author}"
