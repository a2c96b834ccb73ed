"""`email.send`, version 1: what an app asks of us.  Unknown keys are refused; all problems are told at once with paths.

Published by `client`, accepted by `outbound.deliver`; the JSON Schema is generated from this model.
`content_hash` is what makes the id an idempotency key: RFC 8785 form of the keys given, attachments by digest.
Promise: what is too large is told before anything costly is done with it.  Limit: the model knows no clock, a request must
read the same on the day it is tried again; so times are bound by the calendar, not by today.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from gateway.contract.canonical_json import canonical_json, json_problems, measure
from gateway.errors import InvalidRequest, Problem
from gateway.mail.addresses import Address, parse_address
from gateway.mail.ids import canonical_uuid, new_id

VERSION = 1
MAX_REQUEST_BYTES = 16 * 1024 * 1024  # RabbitMQ 4 refuses larger messages
MAX_INLINE_BYTES = 8 * 1024 * 1024
MAX_RECIPIENTS = 100
MAX_PARAMS_BYTES = 1024 * 1024
MAX_PARAMS_VALUES = 20_000
MAX_OTHER_VALUES = 5_000
YEARS = range(2000, 2101)
_TEXT = 1024 * 1024
_MAX_PROBLEMS = 100
_MAX_KEY_SHOWN = 100
_LISTS = {"to": 100, "cc": 100, "bcc": 100, "reply_to": 100, "notify": 10, "tags": 20, "attachments": 100}
_TABLES = {"headers": 50, "metadata": 50}
_SET_BY_US = """from sender to cc bcc subject date message-id reply-to return-path received mime-version auto-submitted
    dkim-signature authentication-results list-unsubscribe list-unsubscribe-post delivered-to errors-to apparently-to
    precedence"""
_RESERVED_HEADERS = frozenset(_SET_BY_US.split())
_HEADER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,75}")
_DECEIVING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _address_text(value: str) -> str:
    parse_address(value)
    return value


def _one_line(value: str) -> str:
    if any(unicodedata.category(character) in {"Cc", "Zl", "Zp", "Cs"} for character in value):
        raise ValueError("contains a control character or line break")
    return value


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("contains a NUL character")
    return value


def _file_name(value: str) -> str:
    _one_line(value)
    if value != value.strip():
        raise ValueError("begins or ends with a space")
    if value in {".", ".."} or "/" in value or "\\" in value or _DECEIVING & set(value):
        raise ValueError("must be a plain file name without path or direction characters")
    return value


def _header_name(value: str) -> str:
    if not _HEADER_NAME.fullmatch(value):
        raise ValueError("is not a header name of letters, digits and hyphens")
    if value.lower() in _RESERVED_HEADERS or value.lower().startswith(("content-", "resent-")):
        raise ValueError("is set by the gateway")
    return value


def _within_the_calendar(value: datetime) -> datetime:
    if value.year not in YEARS:
        raise ValueError(f"is not between the years {YEARS[0]} and {YEARS[-1]}")
    return value


AddressText = Annotated[str, Field(max_length=1000), AfterValidator(_address_text)]
OneLine = Annotated[str, AfterValidator(_one_line)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderText = Annotated[str, Field(max_length=2000), AfterValidator(_one_line)]
BodyText = Annotated[str, Field(max_length=_TEXT), AfterValidator(_without_nul)]
Moment = Annotated[AwareDatetime, AfterValidator(_within_the_calendar)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Attachment(_Strict):
    """A file to attach: inline base64 `data`, or the `blob` digest of one uploaded before."""

    filename: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_file_name)]
    content_type: Annotated[str, Field(pattern=r"^[a-zA-Z0-9!#$&^_.+-]{1,100}/[a-zA-Z0-9!#$&^_.+-]{1,100}$")] = (
        "application/octet-stream"
    )
    data: str | None = None
    blob: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    inline: bool = False

    @model_validator(mode="after")
    def _has_one_source(self) -> Attachment:
        if (self.data is None) == (self.blob is None):
            raise ValueError("needs either data or blob")
        if self.data is not None:
            self.octets()
        return self

    @classmethod
    def of(
        cls, filename: str, octets: bytes, content_type: str = "application/octet-stream", *, inline: bool = False
    ) -> Attachment:
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
    subject: HeaderText | None = None
    text: BodyText | None = None
    html: BodyText | None = None
    locale: Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}([_-][A-Za-z0-9]{2,8})*$")] | None = None
    attachments: Annotated[tuple[Attachment, ...], Field(max_length=100)] = ()
    headers: Annotated[dict[HeaderName, HeaderText], Field(max_length=50)] = Field(default_factory=dict)
    stream: Literal["urgent", "normal", "bulk"] | None = None
    serial_key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    send_at: Moment | None = None
    expires_at: Moment | None = None
    on_unknown: Literal["resend", "hold"] = "resend"
    list_: Annotated[str, Field(max_length=200)] | None = Field(default=None, alias="list")
    notify: Annotated[tuple[AddressText, ...], Field(max_length=10)] = ()
    tags: Annotated[tuple[Annotated[str, Field(max_length=100)], ...], Field(max_length=20)] = ()
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=200)], Annotated[str, Field(max_length=2000)]], Field(max_length=50)
    ] = Field(default_factory=dict)

    @field_validator("id")
    @classmethod
    def _id_is_a_uuid(cls, value: str) -> str:
        return canonical_uuid(value)

    @field_validator("expires_at")
    @classmethod
    def _expires_after_it_is_sent(cls, value: datetime | None, info: ValidationInfo) -> datetime | None:
        send_at = info.data.get("send_at")
        if value is not None and send_at is not None and value <= send_at:
            raise ValueError("is not after send_at")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _tells_every_problem(cls, given: Any, handler: ModelWrapValidatorHandler[SendEmail]) -> SendEmail:
        """What no single field can see is checked beside the fields, so that one answer names every mistake."""
        too_much = list(_too_much(given)) if isinstance(given, Mapping) else []
        if too_much:
            raise ValidationError.from_exception_data("email.send", too_much)
        apart = list(_problems_between_fields(given)) if isinstance(given, Mapping) else []
        try:
            request = handler(given)
        except ValidationError as error:
            apart = [*map(_as_details, error.errors(include_url=False)), *apart]
        if apart:
            raise ValidationError.from_exception_data("email.send", apart)
        return request

    def recipients(self) -> list[str]:
        """The envelope's recipients, to, cc and bcc in this order, each once (compared by `Address.key`)."""
        found: dict[str, str] = {}
        for text in (*self.to, *self.cc, *self.bcc):
            address = parse_address(text)
            found.setdefault(address.key, address.mailbox)
        return list(found.values())

    def addresses(self, field: Literal["to", "cc", "bcc", "reply_to"]) -> list[Address]:
        return [parse_address(text) for text in getattr(self, field)]

    def to_json(self) -> bytes:
        """The JSON an app would publish: only the keys given."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        data |= {"version": self.version, "id": self.id}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()

    def content_hash(self) -> str:
        """The digest that tells the same request from another: RFC 8785 form of the keys given, without the id."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"id", "attachments"})
        if self.attachments:
            data["attachments"] = [
                item.model_dump(mode="json", exclude={"data", "blob"}) | {"digest": item.digest()}
                for item in self.attachments
            ]
        return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def _too_much(given: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """What is so large that looking closer would cost more than any honest request; cheap itself."""
    others = {key: value for key, value in islice(given.items(), MAX_OTHER_VALUES) if key != "params"}
    lists = {key: given.get(key) for key in (*_LISTS, *_TABLES)}
    for key, value in lists.items():
        most = _LISTS.get(key) or _TABLES[key]
        if isinstance(value, list | tuple | dict) and len(value) > most:
            yield _details((key,), f"has {len(value)} items, at most {most}")
            others.pop(key, None)
    if len(given) > MAX_OTHER_VALUES or measure(others, nodes=MAX_OTHER_VALUES, characters=MAX_REQUEST_BYTES):
        yield _details((), f"is too large or too deep: at most {MAX_OTHER_VALUES} values beside params")
    params = given.get("params")
    problem = measure(params, nodes=MAX_PARAMS_VALUES, characters=MAX_PARAMS_BYTES) or _too_long(params)
    if problem:
        limit = f"at most {MAX_PARAMS_VALUES} values and {MAX_PARAMS_BYTES} bytes as JSON"
        yield _details(("params",), f"{problem}; {limit}")


def _too_long(params: Any) -> str:
    try:
        text = json.dumps(params, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError):
        return ""  # not JSON: the problems of its values say so, each with its path
    return "is too long" if len(text.encode("utf-8", "surrogatepass")) > MAX_PARAMS_BYTES else ""


def _problems_between_fields(given: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    template, subject, text = (given.get(key) for key in ("template", "subject", "text"))
    fields = [given.get(field) or () for field in ("to", "cc", "bcc")]
    recipients = {str(item) for field in fields for item in _items(field)}
    if not any(fields):
        yield _details(("to",), "at least one recipient is needed in to, cc or bcc")
    if len(recipients) > MAX_RECIPIENTS:
        yield _details(("to",), f"{len(recipients)} recipients, at most {MAX_RECIPIENTS} an email")
    if template is None and subject is None:
        yield _details(("template",), "missing: give either template and params, or subject and text")
    elif template is None and text is None:
        yield _details(("text",), "needed when there is no template")
    if template is not None:
        together = [key for key in ("subject", "text", "html") if given.get(key) is not None]
        yield from (_details((key,), "not together with template") for key in together)
    inline = sum(map(_inline_bytes, _items(given.get("attachments"))))
    if inline > MAX_INLINE_BYTES:
        yield _details(("attachments",), f"{inline} bytes inline, at most {MAX_INLINE_BYTES}; upload a blob instead")
    for path, message in json_problems(given.get("params") or {}):
        yield _details(("params", *path), message)


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _inline_bytes(item: Any) -> int:
    data = item.get("data") if isinstance(item, Mapping) else getattr(item, "data", None)
    return len(data) * 3 // 4 - data[-2:].count("=") if isinstance(data, str) else 0


def _details(loc: tuple[str | int, ...], message: str) -> InitErrorDetails:
    error = PydanticCustomError("contract", "{message}", {"message": message})
    return InitErrorDetails(type=error, loc=loc, input=None)


def _as_details(item: Any) -> InitErrorDetails:
    message = str(item["msg"]).removeprefix("Value error, ").replace("a valid tuple", "a list")
    if item["type"] == "extra_forbidden":
        message = "unknown key" + _nearest(str(item["loc"][-1]), of_attachment=len(item["loc"]) > 1)
    loc = item["loc"]
    if len(loc) == 3 and loc[0] in {"headers", "metadata"}:  # pydantic's mark that the key itself is wrong
        loc = loc[:2]
    return _details(loc, message)


def _nearest(key: str, *, of_attachment: bool) -> str:
    if len(key) > _MAX_KEY_SHOWN:
        return ""
    fields = (Attachment if of_attachment else SendEmail).model_fields
    near = difflib.get_close_matches(key, [field.alias or name for name, field in fields.items()], n=1)
    return f", perhaps {near[0]}?" if near else ""


def refuse_too_large(body: bytes) -> None:
    """Raises InvalidRequest for a body not worth parsing; for those who parse it themselves."""
    if len(body) > MAX_REQUEST_BYTES:
        raise InvalidRequest([Problem("(request)", f"has {len(body)} bytes, at most {MAX_REQUEST_BYTES}")])
    if _has_too_many_values(body):
        most = MAX_PARAMS_VALUES + MAX_OTHER_VALUES
        raise InvalidRequest([Problem("(request)", f"has too many values, at most {most}")])


def _has_too_many_values(body: bytes) -> bool:
    """Whether the JSON is sure to have more values than any request may, found by counting: parsing would hold the GIL."""
    most = MAX_PARAMS_VALUES + MAX_OTHER_VALUES
    if body.count(b",") <= most:
        return False
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # now each quote begins or ends a string
    return bare.count(b'"') > 4 * most or sum(text.count(b",") for text in bare.split(b'"')[::2]) > most


def parse_send_email(body: bytes | str | dict[str, Any]) -> SendEmail:
    """Reads a request; raises InvalidRequest naming every problem with its path (the first hundred)."""
    if not isinstance(body, dict):
        refuse_too_large(body.encode() if isinstance(body, str) else body)
    try:
        if isinstance(body, dict):
            return SendEmail.model_validate(body)
        return SendEmail.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[:_MAX_PROBLEMS]
        raise InvalidRequest([Problem(_path(item["loc"]), item["msg"]) for item in found]) from None


def _path(loc: tuple[str | int, ...]) -> str:
    """`to[0]`, `params.number`: the way an app would write it."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step[:_MAX_KEY_SHOWN]}" for step in loc]
    return "".join(steps).removeprefix(".") or "(request)"
