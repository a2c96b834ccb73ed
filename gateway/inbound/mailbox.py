"""The mailbox contract: what becomes of one accepted mail for one recipient.

A mailbox is pure: it reads values and returns a value; ingest alone writes, in one transaction.  It may be asked again for
the same mail.  What it raises is a retry by the ladder, told to nobody outside; `Refuse` and `Hold` are decisions.

    class Guestbook:
        async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
            return Post(title=mail.parsed.subject, author=mail.author, text=mail.parsed.text)

What a mailbox needs to know beside the mail it awaits from the context; those questions change nothing either.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gateway.inbound.attachments import TypedAttachment
from gateway.inbound.authenticate import NOT_JUDGED, Authentication
from gateway.inbound.router import plus_of
from gateway.mail.envelope import Envelope
from gateway.mail.parse.tree import ParsedMail
from gateway.mail.threads import ThreadClues


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedMail:
    """A mail as a mailbox sees it: the envelope is fact, what was parsed is hearsay, `authentication` is how far it is proven."""

    envelope: Envelope
    rcpt_to: str
    parsed: ParsedMail
    attachments: tuple[TypedAttachment, ...] = ()
    authentication: Authentication = NOT_JUDGED

    @property
    def author(self) -> str:
        """Who the mail says wrote it: the name shown, else the address, else the envelope's sender."""
        sender = self.parsed.from_
        return sender.name or sender.address or self.envelope.mail_from or "unknown"

    @property
    def plus(self) -> str:
        """What stands behind the + of the address it was sent to."""
        return plus_of(self.rcpt_to)


async def _nothing(asked: object) -> str:
    return ""


async def _whole(text: str) -> tuple[str, str]:
    return text, ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a mailbox may know besides the mail; `address` is the mailbox's own, without what stands behind a +.

    `inspect_photo(octets)` answers why a picture is refused, '' for a sound one; `strip_reply(text)` the new words and what
    they quote; `find_thread(clues)` the id of the thread a mail belongs to, '' for none; `reply_address_of(message_ids)`
    where the first of them that we sent ourselves asked answers to go, '' for none.  `is_released`: a person let a mail
    go on that was held.
    """

    mailbox: str
    address: str
    now: datetime
    is_released: bool = False
    inspect_photo: Callable[[bytes], Awaitable[str]] = _nothing
    strip_reply: Callable[[str], Awaitable[tuple[str, str]]] = _whole
    find_thread: Callable[[ThreadClues], Awaitable[str]] = _nothing
    reply_address_of: Callable[[Sequence[str]], Awaitable[str]] = _nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """Keep this; `reason` (`partial`) says when a part of the mail was left out. html must be sanitised, as parsed.html is.

    `quoted` is what was cut off the text; a post with `thread` joins the thread its clues lead to, or starts one.
    """

    title: str
    author: str
    author_address: str = ""
    text: str = ""
    html: str = ""
    kind: str = "post"
    attachments: tuple[TypedAttachment, ...] = ()
    reason: str = ""
    quoted: str = ""
    thread: ThreadClues | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Send the mail on to another address."""

    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Keep the mail for a person to decide."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The mail failed for this recipient."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """The mail is accounted for and of no further use."""

    reason: str = ""


Outcome = Post | Forward | Hold | Refuse | Discard


class Mailbox(Protocol):
    """A handler of accepted mail."""

    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome: ...
