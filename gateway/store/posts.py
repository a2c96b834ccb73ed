"""Posts: what a mailbox made of a mail, with its attachments; mail and apps share this one write path.

The octets of an attachment are a blob, put before the post is recorded; its row names the digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from gateway.mail.ids import new_id
from gateway.store.ledger import Acceptance
from gateway.store.schema import as_json, attachments, posts


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAttachment:
    """One attachment of a post to be; `content_type` is what the mail claims, `sniffed` what the octets look like."""

    position: int
    filename: str
    content_type: str
    sniffed: str
    size: int
    sha256: str
    content_id: str = ""
    inline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPost:
    """A post to be; `html` is sanitised or None."""

    mailbox: str
    kind: str
    author: str
    author_address: str
    title: str
    text: str
    html: str | None
    created_at: datetime
    attachments: tuple[NewAttachment, ...] = ()


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
    columns = ("mailbox", "kind", "author", "author_address", "title", "text", "html", "created_at")
    values = {name: getattr(post, name) for name in columns}
    came = {"mail_id": origin.mail_id, "app": origin.app, "content_hash": origin.content_hash}
    connection.execute(sa.insert(posts), values | came | {"id": post_id})
    rows = [_attachment_values(item) | {"id": new_id(), "post_id": post_id} for item in post.attachments]
    if rows:
        connection.execute(sa.insert(attachments), rows)
    return post_id


def list_posts(
    connection: sa.Connection, *, id: str | None = None, mailbox: str | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """The newest `limit` posts (all where None), oldest first, ready for JSON."""
    counted = sa.select(sa.func.count()).where(attachments.c.post_id == posts.c.id).correlate(posts).scalar_subquery()
    query = sa.select(
        posts.c.id, posts.c.mailbox, posts.c.author, posts.c.title, posts.c.created_at, counted.label("attachments")
    ).order_by(posts.c.created_at.desc(), posts.c.id.desc())
    if id is not None:
        query = query.where(posts.c.id.startswith(id, autoescape=True))
    if mailbox is not None:
        query = query.where(posts.c.mailbox == mailbox)
    rows = connection.execute(query.limit(limit)).mappings().all()
    return [as_json(row) for row in reversed(rows)]


def post(connection: sa.Connection, post_id: str) -> dict[str, Any] | None:
    """One post with its attachments, ready for JSON."""
    row = connection.execute(sa.select(posts).where(posts.c.id == post_id)).mappings().first()
    if row is None:
        return None
    query = sa.select(attachments).where(attachments.c.post_id == post_id).order_by(attachments.c.position)
    items = [dict(item) for item in connection.execute(query).mappings()]
    for item in items:
        del item["post_id"]
    facts = {key: value for key, value in as_json(row).items() if key not in {"sequence", "content_hash"}}
    return facts | {"attachments": items}


def known_or_conflict(connection: sa.Connection, origin: Origin) -> Acceptance | None:
    """What an app's request is that has come before; None for a new one."""
    query = sa.select(posts.c.app, posts.c.content_hash).where(posts.c.id == origin.post_id)
    row = connection.execute(query).first()
    if row is None:
        return None
    same = (row.app, row.content_hash) == (origin.app, origin.content_hash)
    return Acceptance.KNOWN if same else Acceptance.CONFLICT


def _attachment_values(item: NewAttachment) -> dict[str, Any]:
    return {name: getattr(item, name) for name in NewAttachment.__dataclass_fields__}
