"""`post.create`, version 1: an app's own post, in the form a mailbox would write it, so that web and mail share one path.

Published by `client`, recorded by `inbound.post_create`.  `id` is the app's own UUID and becomes the post's: the same id
with the same content is recorded once, with other content it is a conflict.  html may be a stranger's: it is sanitised.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from gateway.contract.canonical_json import canonical_json
from gateway.contract.email_send import (
    MAX_INLINE_BYTES,
    AddressText,
    Attachment,
    BodyText,
    HeaderText,
)
from gateway.contract.request import parse
from gateway.mail.ids import canonical_uuid, new_id

VERSION = 1

_MAILBOX = r"^[A-Za-z0-9_.:@+-]{1,200}$"


class CreatePost(BaseModel):
    """One `post.create` request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    id: Annotated[str, AfterValidator(canonical_uuid)] = Field(default_factory=new_id)
    mailbox: Annotated[str, Field(pattern=_MAILBOX)] = "posts"
    author: Annotated[HeaderText, Field(min_length=1)]
    author_address: AddressText | None = None
    title: Annotated[HeaderText, Field(min_length=1)]
    text: BodyText = ""
    html: BodyText | None = None
    created_at: AwareDatetime | None = None
    attachments: Annotated[tuple[Attachment, ...], Field(max_length=100)] = ()

    @model_validator(mode="after")
    def _is_not_too_large(self) -> CreatePost:
        inline = sum(len(item.data or "") * 3 // 4 for item in self.attachments)
        if inline > MAX_INLINE_BYTES:
            raise ValueError(f"{inline} bytes of attachments inline, at most {MAX_INLINE_BYTES}; upload a blob instead")
        return self

    def to_json(self) -> bytes:
        """The JSON an app would publish: only the keys given."""
        data = self.model_dump(mode="json", exclude_defaults=True) | {"version": self.version, "id": self.id}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()

    def content_hash(self) -> str:
        """The digest that tells the same post from another: RFC 8785 form of the keys given, attachments by digest."""
        data = self.model_dump(mode="json", exclude_defaults=True, exclude={"id", "attachments"})
        if self.attachments:
            data["attachments"] = [
                item.model_dump(mode="json", exclude={"data", "blob"}) | {"digest": item.digest()}
                for item in self.attachments
            ]
        return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def parse_create_post(body: bytes | Mapping[str, Any]) -> CreatePost:
    """Reads a request; raises InvalidRequest naming every problem with its path."""
    return parse(CreatePost, body)
