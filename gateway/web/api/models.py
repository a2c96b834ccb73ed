"""What the API answers, as OpenAPI tells it.  A test proves that the stories of the store hold nothing these do not name.

Stories leave out what is empty, so most of their fields may be missing.  Times are RFC 3339 with an offset.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from gateway.mail.disposition import Disposition


class Queued(BaseModel):
    """The queue has it; `status` of the id becomes more when the ledger has it, too."""

    id: str
    status: Literal["queued"]


class Pending(BaseModel):
    """Queued a moment ago, not in the ledger yet."""

    id: str
    status: Literal["pending"]


class Step(BaseModel):
    """One line of a timeline."""

    at: datetime
    step: str
    recipient: str
    data: dict[str, Any]


class EmailRecipient(BaseModel):
    """What became of one recipient of an email."""

    recipient: str
    disposition: Disposition
    reason: str = ""
    attempts: int = 0
    copies: int = 0
    relay: str = ""
    reply: str = ""
    next_attempt_at: datetime | None = None
    dot_sent_at: datetime | None = None


class EmailStory(BaseModel):
    """Everything about one email."""

    id: str
    app: str
    template: str
    subject: str
    stream: str
    on_unknown: str
    serial_key: str | None
    serial_position: int | None
    message_id: str
    return_path: str
    reply_to: str
    notify: list[str] | None = Field(default=None, description="who is told by mail what becomes of it")
    accepted_at: datetime
    send_at: datetime | None
    expires_at: datetime
    recipients: list[EmailRecipient]
    timeline: list[Step]


class EmailLine(BaseModel):
    """One (email, recipient); for a request that was rejected the recipient is empty."""

    id: str
    recipient: str
    disposition: Disposition
    reason: str
    template: str
    stream: str
    attempts: int
    copies: int
    relay: str
    reply: str
    enhanced_status: str
    message_id: str
    next_attempt_at: datetime | None
    accepted_at: datetime
    subject: str
    app: str
    serial_key: str | None
    serial_position: int | None


class RejectedStory(EmailLine):
    """A request that never became an email."""

    timeline: list[Step]


class EmailList(BaseModel):
    """One page; `next` is the cursor behind it, empty where nothing follows."""

    rows: list[EmailLine]
    next: str


class Changed(BaseModel):
    """How many recipients were changed."""

    id: str
    changed: int


class MailRecipient(BaseModel):
    """What became of one recipient of a mail."""

    rcpt_to: str
    disposition: Disposition
    reason: str = ""
    mailbox: str = ""
    post_id: str | None = None
    duplicate_of: str | None = None
    attempts: int = 0
    next_attempt_at: datetime | None = None
    reply_code: int | None = None
    reply_enhanced: str = ""
    reply_text: str = ""
    updated_at: datetime | None = None


class MailStory(BaseModel):
    """Everything about one mail."""

    id: str
    received_at: datetime
    recorded_at: datetime
    mail_from: str
    door: str
    client: str
    helo: str
    tls: str
    auth: str
    by_trusted_host: bool = Field(False, description="a mail server of ours handed it over")
    size: int
    sha256: str
    subject: str
    language: str = Field(description="of its text, as far as it was recognised")
    message_id: str
    authentication: dict[str, Any] = Field(default_factory=dict, description="how far its sender is proven")
    untold: str = Field(description="why its sender is not told by mail what becomes of it; empty: he is")
    recipients: list[MailRecipient]
    timeline: list[Step]


class MailLine(BaseModel):
    """One (mail, recipient)."""

    id: str
    received_at: datetime
    mail_from: str
    rcpt_to: str
    mailbox: str
    disposition: Disposition
    reason: str
    sha256: str
    size: int
    subject: str
    post_id: str | None
    duplicate_of: str | None
    attempts: int
    next_attempt_at: datetime | None


class MailList(BaseModel):
    """One page; `next` is the cursor behind it, empty where nothing follows."""

    rows: list[MailLine]
    next: str


class Rendition(BaseModel):
    """A smaller picture made of a photo."""

    kind: str
    sha256: str
    content_type: str
    size: int
    width: int
    height: int


class AttachmentStory(BaseModel):
    """One attachment; its octets are at `/v1/attachments/{id}`."""

    id: str
    position: int
    filename: str
    content_type: str
    sniffed: str
    size: int
    sha256: str
    content_id: str
    inline: bool
    caption: str
    photo: str
    refusal: str
    renditions: list[Rendition]


class ThreadPost(BaseModel):
    """One post of a thread."""

    id: str
    author: str
    title: str
    created_at: datetime


class PostStory(BaseModel):
    """One post with its attachments, its thread and its timeline; `html` is sanitised."""

    id: str
    mailbox: str
    kind: str
    mail_id: str | None
    author: str
    author_address: str
    title: str
    created_at: datetime
    text: str
    html: str | None
    app: str
    quoted: str
    address: str
    thread_id: str
    message_id: str
    attachments: list[AttachmentStory]
    thread: list[ThreadPost]
    timeline: list[Step]


class PendingAttachment(BaseModel):
    """An attachment of a post on its way."""

    filename: str
    content_type: str
    inline: bool


class PendingPost(BaseModel):
    """A post that was queued a moment ago and is not recorded yet, in the app's own words."""

    id: str
    status: Literal["pending"]
    mailbox: str
    author: str
    title: str
    text: str
    created_at: datetime | None
    attachments: list[PendingAttachment]


class FailedPost(BaseModel):
    """A request that will never be a post, and why."""

    id: str
    status: Literal["failed"]
    reason: str


class PostLine(BaseModel):
    """One post."""

    id: str
    mailbox: str
    kind: str
    author: str
    author_address: str
    title: str
    created_at: datetime
    mail_id: str | None
    thread_id: str
    app: str
    attachments: int = Field(description="how many")


class PostList(BaseModel):
    """One page; `next` is the cursor behind it, empty where nothing follows."""

    rows: list[PostLine]
    next: str


class Blob(BaseModel):
    """Octets that are kept; name them in an attachment's `blob`."""

    digest: str
    size: int


class Health(BaseModel):
    """The process is alive."""

    status: Literal["alive"]


class Readiness(BaseModel):
    """Whether queue and store answer."""

    status: Literal["ready", "not ready"]
    troubles: list[str]
