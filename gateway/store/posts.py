"""Posts: what a mailbox made of a mail, with its attachments; mail and apps share this one write path.

The octets of an attachment are a blob, put before the post is recorded; its row names the digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.mail.ids import new_id
from gateway.mail.threads import SUBJECT_DAYS, ThreadClues
from gateway.store.blobs import digest_of
from gateway.store.ledger import Acceptance
from gateway.store.locks import hold_name
from gateway.store.schema import as_json, attachments, clean_text, posts, renditions

_COLUMNS = (
    "mailbox",
    "kind",
    "author",
    "author_address",
    "title",
    "text",
    "html",
    "created_at",
    "quoted",
    "address",
)
_HIDDEN = frozenset({"sequence", "content_hash", "subject_key", "author_key"})
_LONGEST_KEY_BYTES = 1000  # two of them in one entry: PostgreSQL's indexes take 2,704 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAttachment:
    """One attachment of a post to be; `content_type` is what the mail claims, `sniffed` what the octets look like.

    `photo` is its state (`store.photos`), `refusal` why it was refused.
    """

    position: int
    filename: str
    content_type: str
    sniffed: str
    size: int
    sha256: str
    content_id: str = ""
    inline: bool = False
    caption: str = ""
    photo: str = ""
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPost:
    """A post to be; `html` is sanitised or None, `quoted` what was cut off the text; with `thread` it joins or starts one."""

    mailbox: str
    kind: str
    author: str
    author_address: str
    title: str
    text: str
    html: str | None
    created_at: datetime
    attachments: tuple[NewAttachment, ...] = ()
    quoted: str = ""
    address: str = ""
    thread: ThreadClues | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a post came from: a mail, or an app's request with its own id and the digest of its content."""

    mail_id: str | None = None
    post_id: str = ""
    app: str = ""
    content_hash: str = ""


def insert_post(connection: sa.Connection, post: NewPost, origin: Origin) -> str:
    """Writes the rows of a post and returns its id."""
    post_id = origin.post_id or new_id()
    values = {name: getattr(post, name) for name in _COLUMNS} | _thread_values(connection, post, post_id)
    came = {"mail_id": origin.mail_id, "app": origin.app, "content_hash": origin.content_hash}
    connection.execute(sa.insert(posts), values | came | {"id": post_id})
    rows = [_attachment_values(item) | {"id": new_id(), "post_id": post_id} for item in post.attachments]
    if rows:
        connection.execute(sa.insert(attachments), rows)
    return post_id


def find_thread(connection: sa.Connection, address: str, clues: ThreadClues, *, at: datetime) -> str:
    """The thread at this address that the clues lead to, '' for none."""
    if clues.thread_id:
        return clues.thread_id
    known = sa.select(posts.c.thread_id).where(posts.c.address == address, posts.c.thread_id != "")
    newest_first = known.order_by(posts.c.created_at.desc(), posts.c.id.desc()).limit(1)
    for message_id in map(_indexed, clues.references):
        if found := connection.execute(newest_first.where(posts.c.message_id == message_id)).scalar():
            return str(found)
    if not clues.subject_key or not clues.author_key:
        return ""
    author, subject = _indexed(clues.author_key), _indexed(clues.subject_key)
    alike = newest_first.where(posts.c.author_key == author, posts.c.subject_key == subject)
    lately = alike.where(posts.c.created_at >= at - timedelta(days=SUBJECT_DAYS))
    return str(connection.execute(lately).scalar() or "")


def thread(connection: sa.Connection, thread_id: str) -> list[dict[str, Any]]:
    """The posts of a thread, oldest first, ready for JSON."""
    columns = (posts.c.id, posts.c.author, posts.c.title, posts.c.created_at)
    query = sa.select(*columns).where(posts.c.thread_id == thread_id).order_by(posts.c.created_at, posts.c.id)
    return [as_json(row) for row in connection.execute(query).mappings()]


def post(connection: sa.Connection, post_id: str) -> dict[str, Any] | None:
    """One post with its attachments, ready for JSON."""
    row = connection.execute(sa.select(posts).where(posts.c.id == post_id)).mappings().first()
    if row is None:
        return None
    query = sa.select(attachments).where(attachments.c.post_id == post_id).order_by(attachments.c.position)
    items = [dict(item) for item in connection.execute(query).mappings()]
    made = _renditions(connection, post_id)
    for item in items:
        del item["post_id"]
        item["renditions"] = made.get(item["id"], [])
    facts = {key: value for key, value in as_json(row).items() if key not in _HIDDEN}
    return facts | {"attachments": items}


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAttachment:
    """Where the octets of an attachment, or of a picture made of it, are, and what they are."""

    sha256: str
    filename: str
    content_type: str


def find_attachment(connection: sa.Connection, attachment_id: str, *, rendition: str) -> FoundAttachment | None:
    """The attachment itself, or with `rendition` the picture of that kind; None where there is none."""
    known = attachments.c.id == attachment_id
    if not rendition:
        query = sa.select(attachments.c.sha256, attachments.c.filename, attachments.c.sniffed.label("content_type"))
    else:
        query = sa.select(renditions.c.sha256, attachments.c.filename, renditions.c.content_type)
        query = query.join(attachments, attachments.c.id == renditions.c.attachment_id).where(
            renditions.c.kind == rendition
        )
    row = connection.execute(query.where(known)).mappings().first()
    return None if row is None else FoundAttachment(**row)


def known_or_conflict(connection: sa.Connection, origin: Origin) -> Acceptance | None:
    """What an app's request is that has come before; None for a new one."""
    query = sa.select(posts.c.app, posts.c.content_hash).where(posts.c.id == origin.post_id)
    row = connection.execute(query).first()
    if row is None:
        return None
    same = (row.app, row.content_hash) == (origin.app, origin.content_hash)
    return Acceptance.KNOWN if same else Acceptance.CONFLICT


def _renditions(connection: sa.Connection, post_id: str) -> dict[str, list[dict[str, Any]]]:
    """What was made of each attachment of a post, by its id."""
    query = sa.select(renditions).join(attachments, attachments.c.id == renditions.c.attachment_id)
    made: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(query.where(attachments.c.post_id == post_id).order_by(renditions.c.kind)).mappings():
        item = dict(row)
        made.setdefault(item.pop("attachment_id"), []).append(item)
    return made


def _thread_values(connection: sa.Connection, post: NewPost, post_id: str) -> dict[str, str]:
    """The columns of threading; looked up in the transaction, so that two mails at once do not start two threads."""
    clues = post.thread
    if clues is None:
        return {}
    hold_name(connection, "thread", post.address, clues.author_key, clues.subject_key)
    found = find_thread(connection, post.address, clues, at=post.created_at) or post_id
    keys = {name: _indexed(getattr(clues, name)) for name in ("message_id", "subject_key", "author_key")}
    return keys | {"thread_id": found}


def _indexed(text: str) -> str:
    """A stranger's words as an index can hold them: the digest of those that are too long for one."""
    octets = clean_text(text).encode()
    return text if len(octets) <= _LONGEST_KEY_BYTES else digest_of(octets)


def _attachment_values(item: NewAttachment) -> dict[str, Any]:
    return {name: getattr(item, name) for name in NewAttachment.__dataclass_fields__}
