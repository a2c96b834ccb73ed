"""What the API needs of the rest of the gateway, handed in by `app`; and what its resources share in reading a request."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Query, Request
from fastapi.responses import JSONResponse

from gateway.contract.email_send import SendEmail, refuse_too_large
from gateway.contract.post_create import CreatePost
from gateway.errors import InvalidRequest, Problem
from gateway.mail.ids import canonical_uuid
from gateway.maillog import MailLog
from gateway.pending import PendingPosts
from gateway.store.lists import ListKind, Page
from gateway.web.asking import ApiKey, Asker, User, require

if TYPE_CHECKING:
    from gateway.store.blobs import BlobStore
    from gateway.store.emails import DatabaseLedger
    from gateway.store.lists import Lists
    from gateway.store.mails import Mails
    from gateway.watch.operator import Operator
    from gateway.web.api.events import EventStreams

T = TypeVar("T")
MAX_LIMIT = 500


class Submit(Protocol):
    """What puts requests on the queue: `client.Client`."""

    async def send(self, email: SendEmail, /) -> str: ...

    async def create_post(self, post: CreatePost, /) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiParts:
    """Everything the API speaks to; `submit` and `operator` are made for the one who asks."""

    submit: Callable[[str], Submit]
    operator: Callable[[str], Operator]
    check: Callable[[SendEmail], Sequence[Problem]]
    ledger: DatabaseLedger
    mails: Mails
    lists: Lists
    blobs: BlobStore
    has_room: Callable[[int], bool]
    max_blob_bytes: int
    streams: EventStreams
    readiness: Callable[[], Awaitable[list[str]]]
    metrics: Callable[[], tuple[bytes, str]] | None
    pending: PendingPosts
    log: MailLog


def needs(*scopes: str) -> Any:
    """A dependency: who asks, if it may do one of these."""

    async def asker(request: Request) -> Asker:
        return require(request, *scopes)

    return Depends(asker)


SENDER, READER, OPERATOR, SENDER_OR_READER = needs("send"), needs("read"), needs("admin"), needs("send", "read")


def app_of(asker: Asker) -> str:
    """The app in whose name something is asked for."""
    return asker.app if isinstance(asker, ApiKey) else ""


def only_app_of(asker: Asker) -> str | None:
    """The one app whose emails it may see; None = all."""
    return asker.app if isinstance(asker, ApiKey) and not asker.may("read") else None


def name_of(asker: Asker) -> str:
    """Who it was, for the stories of what people do."""
    if isinstance(asker, User):
        return asker.name
    return f"key {asker.prefix}" if isinstance(asker, ApiKey) else "web"


def known_id(text: str) -> str:
    """The id in its canonical form; raises InvalidRequest."""
    try:
        return canonical_uuid(text)
    except ValueError:
        raise InvalidRequest([Problem("id", "is not a UUID")]) from None


async def page_asked(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="lines a page")] = 50,
    after: Annotated[str, Query(max_length=1000, description="the `next` of the page before")] = "",
    oldest_first: Annotated[bool, Query(description="the oldest line first")] = False,
) -> Page:
    """The part of a list that a request asks for."""
    return Page(limit=limit, after=after, oldest_first=oldest_first)


async def listed(parts: ApiParts, kind: ListKind, wanted: Mapping[str, str | None], page: Page) -> JSONResponse:
    """One page of a list."""
    try:
        found = await parts.lists.page(kind, wanted, page)
    except ValueError as error:
        raise InvalidRequest([Problem("after", str(error))]) from None
    return JSONResponse({"rows": found.rows, "next": found.next})


def read_with_key(body: bytes, key: str | None, parse: Callable[[bytes], T]) -> T:
    """Reads a body; the Idempotency-Key is the request's id (and must not contradict one in the body)."""
    if key is None:
        return parse(body)
    key = key.strip().strip('"')  # a string in quotes in the IETF's draft, plain nearly everywhere else
    refuse_too_large(body)
    try:
        data = json.loads(body)
    except RecursionError:
        raise InvalidRequest([Problem("(request)", "is nested too deep")]) from None
    except ValueError as error:
        raise InvalidRequest([Problem("(request)", f"is not JSON: {error}")]) from None
    if not isinstance(data, dict):
        raise InvalidRequest([Problem("(request)", "is not a JSON object")])
    given = str(data.setdefault("id", key)).lower()
    if given != key.lower():
        raise InvalidRequest([Problem("Idempotency-Key", "differs from the id in the body")])
    return parse(json.dumps(data).encode())


def body_of(model: Any, example: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenAPI says of a body that the contract's own parser reads."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def new_key() -> str:
    """An id for a request that brings none."""
    return str(uuid.uuid4())
