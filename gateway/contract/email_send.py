"""`email.send`, version 1: what an app asks of us.  Unknown keys are refused; all problems are told at once with paths.

Published by `client`, accepted by `outbound.deliver`; the JSON Schema is generated from this model.
`content_hash` is what makes the id an idempotency key: RFC 8785 form of the keys given, attachments by digest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gateway.errors import InvalidRequest, Problem
from gateway.mail.addresses import Address, parse_address, parse_mailbox
from gateway.mail.ids import canonical_uuid, new_id

VERSION = 1
MAX_INLINE_BYTES = 8 * 1024 * 1024
MAX_RECIPIENTS = 100
_TEXT = 1024 * 1024
_RESERVED_HEADERS = frozenset(
    "from sender to cc bcc subject date message-id reply-to return-path received mime-version auto-submitted "
    "dkim-signature authentication-results list-unsubscribe list-unsubscribe-post delivered-to errors-to".split()
)
_HEADER_NAME_CHARACTERS = frozenset(map(chr, range(33, 127))) - {":"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Attachment(_Strict):
    """A file to attach: inline base64 `data`, or the `blob` digest of one uploaded before."""

    filename: Annotated[str, Field(min_length=1, max_length=255)]
    content_type: Annotated[str, Field(pattern=r"^[a-zA-Z0-9!#$&^_.+-]{1,100}/[a-zA-Z0-9!#$&^_.+-]{1,100}$")] = (
        "application/octet-stream"
    )
    data: str | None = None
    blob: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    inline: bool = False

    @field_validator("filename")
    @classmethod
    def _filename_is_one_name(cls, value: str) -> str:
        if any(ord(c) < 32 or ord(c) == 127 for c in value) or value in {".", ".."} or "/" in value or "\\" in value:
            raise ValueError("must be a plain file name without path or control characters")
        return value

    @model_validator(mode="after")
    def _has_one_source(self) -> Attachment:
        if (self.data is None) == (self.blob is None):
            raise ValueError("needs either data or blob")
        if self.data is not None:
            self.octets()
        return self

    @classmethod
    def of(cls, filename: str, octets: bytes, content_type: str = "application/octet-stream", *, inline: bool = False) -> Attachment:
        """Builds an attachment from bytes."""
        return cls(filename=filename, content_type=content_type, data=base64.b64encode(octets).decode(), inline=inline)

    def octets(self) -> bytes:
        """The decoded inline data; raises ValueError when it is not base64."""
        try:
            return base64.b64decode(self.data or "", validate=True)
        except binascii.Error as error:
            raise ValueError(f"data is not base64: {error}") from None

    def digest(self) -> str:
        return self.blob or "sha256:" + hashlib.sha256(self.octets()).hexdigest()


def _address(value: str) -> str:
    parse_address(value)
    return value


def _mailbox(value: str) -> str:
    parse_mailbox(value)
    return value


AddressText = Annotated[str, Field(max_length=1000)]


class SendEmail(_Strict):
    """One `email.send` request (see the README for an example)."""

    version: Literal[1] = 1
    id: str = Field(default_factory=new_id)
    template: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")] | None = None
    to: tuple[AddressText, ...] = ()
    cc: tuple[AddressText, ...] = ()
    bcc: tuple[AddressText, ...] = ()
    from_: AddressText | None = Field(default=None, alias="from")
    reply_to: tuple[AddressText, ...] = ()
    params: dict[str, Any] = Field(default_factory=dict)
    subject: Annotated[str, Field(max_length=2000)] | None = None
    text: Annotated[str, Field(max_length=_TEXT)] | None = None
    html: Annotated[str, Field(max_length=_TEXT)] | None = None
    locale: Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}([_-][A-Za-z0-9]{2,8})*$")] | None = None
    attachments: Annotated[tuple[Attachment, ...], Field(max_length=100)] = ()
    headers: Annotated[dict[str, str], Field(max_length=50)] = Field(default_factory=dict)
    stream: Literal["urgent", "normal", "bulk"] | None = None
    serial_key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    send_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    on_unknown: Literal["resend", "hold"] = "resend"
    list_: Annotated[str, Field(max_length=200)] | None = Field(default=None, alias="list")
    notify: Annotated[tuple[AddressText, ...], Field(max_length=10)] = ()
    tags: Annotated[tuple[Annotated[str, Field(max_length=100)], ...], Field(max_length=20)] = ()
    metadata: Annotated[dict[str, str], Field(max_length=50)] = Field(default_factory=dict)

    @field_validator("id")
    @classmethod
    def _id_is_a_uuid(cls, value: str) -> str:
        return canonical_uuid(value)

    @field_validator("to", "cc", "bcc", "reply_to", "notify")
    @classmethod
    def _addresses_are_strict(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for index, value in enumerate(values):
            try:
                parse_address(value)
            except ValueError as error:
                raise ValueError(f"[{index}] {error}") from None
        return values

    @field_validator("from_")
    @classmethod
    def _from_is_strict(cls, value: str | None) -> str | None:
        return value if value is None else _address(value)

    @field_validator("headers")
    @classmethod
    def _headers_are_safe(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not name or len(name) > 76 or not set(name) <= _HEADER_NAME_CHARACTERS:
                raise ValueError(f"{name!r} is not a header name")
            if name.lower() in _RESERVED_HEADERS or name.lower().startswith(("content-", "resent-")):
                raise ValueError(f"{name} is set by the gateway")
            if len(text) > 2000 or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
                raise ValueError(f"{name}: control characters or more than 2000 characters")
        return value

    @model_validator(mode="after")
    def _hangs_together(self) -> SendEmail:
        recipients = self.recipients()
        if not recipients:
            raise ValueError("to: at least one recipient is needed in to, cc or bcc")
        if len(recipients) > MAX_RECIPIENTS:
            raise ValueError(f"to: {len(recipients)} recipients, at most {MAX_RECIPIENTS} an email")
        if (self.template is None) == (self.subject is None):
            raise ValueError("template: give either template and params, or subject and text")
        if self.template is None and self.text is None:
            raise ValueError("text: needed when there is no template")
        if self.template is not None and (self.text is not None or self.html is not None):
            raise ValueError("text: not together with template")
        inline = sum(len(item.data or "") for item in self.attachments) * 3 // 4
        if inline > MAX_INLINE_BYTES:
            raise ValueError(f"attachments: {inline} bytes inline, at most {MAX_INLINE_BYTES}; upload a blob instead")
        return self

    def recipients(self) -> list[str]:
        """The envelope's recipients, to, cc and bcc in this order, each once (compared with the domain in lower case)."""
        found: dict[str, str] = {}
        for text in (*self.to, *self.cc, *self.bcc):
            address = parse_address(text)
            found.setdefault(address.key, address.mailbox)
        return list(found.values())

    def addresses(self, field: Literal["to", "cc", "bcc", "reply_to"]) -> list[Address]:
        return [parse_address(text) for text in getattr(self, field)]

    def to_json(self) -> bytes:
        """The JSON an app would publish: only the keys given."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"version": self.version, "id": self.id}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()

    def content_hash(self) -> str:
        """The digest that tells the same request from another: RFC 8785 form of the keys given, without the id."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"id"})
        if self.attachments:
            data["attachments"] = [
                item.model_dump(mode="json", exclude={"data", "blob"}) | {"digest": item.digest()} for item in self.attachments
            ]
        canonical = json.dumps(data, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def parse_send_email(body: bytes | str | dict[str, Any]) -> SendEmail:
    """Reads a request; raises InvalidRequest naming every problem with its path."""
    try:
        if isinstance(body, dict):
            return SendEmail.model_validate(body)
        return SendEmail.model_validate_json(body)
    except ValidationError as error:
        raise InvalidRequest([_problem(item) for item in error.errors(include_url=False, include_input=False)]) from None


def _problem(item: Any) -> Problem:
    path = ".".join(str(part) for part in item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ")
    head, _, rest = message.partition(": ")
    if not path and rest and head.isidentifier():
        path, message = head, rest
    return Problem(path or "(request)", message)
