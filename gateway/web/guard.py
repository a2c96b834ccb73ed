"""What stands before every HTTP request: who may ask at all, and how much they may send.

In this order: its shape (number of headers, no compressed body, no body beyond its path's limit), its provenance, who asks.
While no user and no key exist the house is open, but only on loopback, only under a local Host and Origin (a page of the
wide web cannot reach it by DNS rebinding or a cross-site form), and never for a forwarded request (then the peer is a proxy,
not the person).  Once one exists, only a session or a key is let in, under a Host of ours; whoever is not let in hears the
same whatever he asked for.  What a session may change it may change only from a page of ours (Origin).
Refusals are problem+json (RFC 9457); a person at a browser is led to `/login`, or reads them as a page (`show`).
A long answer (a stream of events) ends soon after its asker lost the right to it.  `/healthz` and `/readyz` are open.
Limits: bodies that come too slowly are ended (408); nothing here inflates.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from gateway.contract.email_send import MAX_REQUEST_BYTES
from gateway.errors import StoreUnavailable
from gateway.web.asking import Asker, Asking, Open, User, put_asking
from gateway.web.credentials import Credentials, Shown, new_visit, read_shown, visit_cookie
from gateway.web.provenance import (
    OurNames,
    Provenance,
    Scope,
    is_local_name,
    is_ours,
    is_same_origin,
    name_in,
    read_provenance,
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

MAX_HEADERS = 100
LOOK_AGAIN_SECONDS = 5.0
_PROBES = frozenset({"/healthz", "/readyz"})
_FOR_STRANGERS = ("/login", "/invitation/", "/static/", "/status/", "/confirm/")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_UNKNOWN = (b"www-authenticate", b'Bearer realm="gateway"')
_ALWAYS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """How much a body may have, by the beginning of its path, and how slowly it may come."""

    most_bytes: int = MAX_REQUEST_BYTES
    by_path: Mapping[str, int] = field(default_factory=dict)
    idle_seconds: float = 30.0
    least_rate: float = 500.0

    def most(self, path: str) -> int:
        return self.by_path.get(path, self.most_bytes)


class Refused(Exception):
    """The request is not let in."""

    def __init__(self, status: int, title: str, *headers: Header) -> None:
        super().__init__(title)
        self.status, self.title, self.headers = status, title, headers


Show = Callable[[dict[str, Any], Refused], Response]


class Guard:
    """ASGI middleware in front of the application."""

    def __init__(
        self,
        app: App,
        credentials: Credentials,
        *,
        ours: OurNames,
        limits: BodyLimits | None = None,
        show: Show | None = None,
    ) -> None:
        self._app = app
        self._credentials = credentials
        self._ours = ours
        self._limits = limits or BodyLimits()
        self._show = show

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # nothing here speaks anything else; uvicorn closes what was not answered
        body = _Body(receive, self._limits, self._limits.most(scope["path"]))
        answer = _Answer(send, body)
        try:
            check_shape(scope, body.limit)
            await self._let_in(scope, answer)
            with suppress(BodyEnded):
                await self._app(scope, body.receive, answer.send)
            if body.ended is not None:
                raise body.ended
        except Refused as refused:
            await answer.refuse(refused, self._page_of(scope, refused))

    async def _let_in(self, scope: Scope, answer: _Answer) -> None:
        """Puts who asks into the scope, or raises Refused; the answer learns its cookies, and how long it may last."""
        came = read_provenance(scope, self._ours)
        shown = read_shown(scope["headers"], is_https=came.is_https)
        if scope["path"] in _PROBES:
            put_asking(scope, Asking(asker=None, client=came.client))
            return
        for_strangers = scope["path"].startswith(_FOR_STRANGERS)
        asker = self._judge(await self._asker_of(shown, for_strangers=for_strangers), came, for_strangers=for_strangers)
        if asker is None and not for_strangers:
            raise _not_known(scope)
        if isinstance(asker, User) and scope["method"] not in _SAFE and not is_same_origin(came, self._ours):
            raise Refused(403, "requests of a session are served from our own pages only (Origin)")
        if asker is not None:
            answer.last_while(functools.partial(self._credentials.is_still, asker, shown))
        cookies = _introduce(scope, came, shown, asker)
        answer.headers += [(b"set-cookie", cookie.encode()) for cookie in cookies]

    async def _asker_of(self, shown: Shown, *, for_strangers: bool) -> Asker | None:
        try:
            return await self._credentials.asker_of(shown)
        except StoreUnavailable:
            if for_strangers:  # the page that says so needs its style, and a status page says it itself
                return None
            raise Refused(
                503, "who asks cannot be looked up now, for the store does not answer", (b"retry-after", b"5")
            ) from None

    def _page_of(self, scope: Scope, refused: Refused) -> Response | None:
        """The refusal as a page, where a person at a browser waits for one."""
        return self._show(dict(scope), refused) if self._show is not None and wants_html(scope) else None

    def _judge(self, asker: Asker | None, came: Provenance, *, for_strangers: bool) -> Asker | None:
        """Who may ask from there; raises Refused where nobody may."""
        if isinstance(asker, Open) and for_strangers and (came.is_forwarded or not came.is_loopback):
            asker = None  # the first user's link is of use beyond loopback; nothing else is
        if isinstance(asker, Open):
            check_open(came)
        else:
            check_closed(came, self._ours)
        return asker


def _introduce(scope: Scope, came: Provenance, shown: Shown, asker: Asker | None) -> list[str]:
    """Tells the application who asks; a browser without a cookie gets one for its forms."""
    cookies: list[str] = []
    if not isinstance(asker, User):
        visit = shown.visit
        if not visit and wants_html(scope):
            visit = new_visit()
            cookies.append(visit_cookie(visit, is_https=came.is_https))
        shown = Shown(visit=visit)
    asking = Asking(
        asker=asker, client=came.client, is_https=came.is_https, form_token=shown.form_token, session=shown.session
    )
    put_asking(scope, asking)
    return cookies


def check_shape(scope: Scope, max_body_bytes: int) -> None:
    """Raises Refused for what no handler should see."""
    headers: list[Header] = scope["headers"]
    if len(headers) > MAX_HEADERS:
        raise Refused(431, f"more than {MAX_HEADERS} headers")
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise Refused(415, "compressed bodies are not read; send it plain")
        if name == b"content-length" and value.isdigit() and int(value) > max_body_bytes:
            raise _too_large(max_body_bytes)


def check_open(came: Provenance) -> None:
    """Raises Refused unless the request is of this machine's people and programs."""
    if came.is_forwarded:
        raise Refused(
            403, "forwarded requests are not served while the gateway is open to loopback only: make a user first"
        )
    if not came.is_loopback:
        raise Refused(403, "the gateway is open to loopback only: make a user first")
    if not is_local_name(came.host_name):
        raise Refused(421, "this Host is not ours; ask for localhost or 127.0.0.1")
    if came.is_anothers or (came.origin is not None and not is_local_name(name_in(came.origin))):
        raise Refused(403, "requests from other origins are not served")


def check_closed(came: Provenance, ours: OurNames) -> None:
    """Raises Refused for a Host that is not ours, and for other pages' requests."""
    if not is_ours(came, ours):
        raise Refused(421, "this Host is not ours")
    if came.origin is not None and not is_same_origin(came, ours):
        raise Refused(403, "requests from other origins are not served")


def wants_html(scope: Scope) -> bool:
    """Whether a person's browser asks for a page; a page's own stream of events asks for both and is none."""
    accepted = [value for name, value in scope["headers"] if name == b"accept"]
    is_stream = any(b"text/event-stream" in value for value in accepted)
    return any(b"text/html" in value for value in accepted) and not is_stream and not scope["path"].startswith("/v1/")


def _not_known(scope: Scope) -> Refused:
    if scope["method"] in _SAFE and wants_html(scope):
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        target = (scope["raw_path"] + query).decode("latin-1")
        return Refused(303, "log in first", (b"location", f"/login?next={quote(target, safe='')}".encode()))
    return Refused(401, "who asks is not known: log in, or send a key as Authorization: Bearer", _UNKNOWN)


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the body is larger than {limit} bytes")


class BodyEnded(Exception):
    """The body passed a limit while it was read; the application sees this, its answer is dropped."""


class _Body:
    """The request's body, read at most up to a limit of bytes and not too slowly."""

    def __init__(self, receive: Receive, limits: BodyLimits, limit: int) -> None:
        self._receive, self._limits, self.limit = receive, limits, limit
        self._read, self._begun, self._is_whole = 0, time.monotonic(), False
        self.ended: Refused | None = None

    async def receive(self) -> Message:
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._limits.idle_seconds):
                message = await self._receive()
        except TimeoutError:
            raise self._end(Refused(408, "the body did not come")) from None
        self._read += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._read > self.limit:
            raise self._end(_too_large(self.limit))
        late = time.monotonic() - self._begun - self._limits.idle_seconds
        if not self._is_whole and late > 0 and self._read < late * self._limits.least_rate:
            raise self._end(Refused(408, "the body comes too slowly"))
        return message

    def _end(self, refused: Refused) -> BodyEnded:
        self.ended = refused
        return BodyEnded()


class _Answer:
    """What goes out: the application's answer with the headers that every answer has, or a refusal."""

    def __init__(self, send: Send, body: _Body) -> None:
        self._send, self._body = send, body
        self._has_begun = self._is_over = False
        self._may_last: Callable[[], Awaitable[bool]] | None = None
        self._look_again_at = 0.0
        self.headers: list[Header] = []

    def last_while(self, may_last: Callable[[], Awaitable[bool]]) -> None:
        """An answer that comes in pieces goes on as long as this is true."""
        self._may_last = may_last
        self._look_again_at = time.monotonic() + LOOK_AGAIN_SECONDS

    async def send(self, message: Message) -> None:
        if self._body.ended is not None or self._is_over:
            return
        if message.get("more_body") and not await self._goes_on():
            self._is_over = True
            message = {"type": "http.response.body", "body": b""}  # its end; the application sees a client that left
        if message["type"] == "http.response.start":
            self._has_begun = True
            given: list[Header] = list(message.get("headers", ()))
            names = {name.lower() for name, _ in given}
            missing = [item for item in _ALWAYS if item[0] not in names]
            message = {**message, "headers": [*given, *missing, *self.headers]}
        await self._send(message)

    async def _goes_on(self) -> bool:
        if self._may_last is None or time.monotonic() < self._look_again_at:
            return True
        self._look_again_at = time.monotonic() + LOOK_AGAIN_SECONDS
        return await self._may_last()

    async def refuse(self, refused: Refused, page: Response | None) -> None:
        if self._has_begun:
            return  # too late for another answer; uvicorn closes the connection
        if page is None:
            body = json.dumps({"type": "about:blank", "title": refused.title, "status": refused.status}).encode()
            headers: list[Header] = [(b"content-type", b"application/problem+json"), (b"cache-control", b"no-store")]
            headers.append((b"content-length", str(len(body)).encode()))
        else:
            body, headers = bytes(page.body), list(page.raw_headers)
        names = {name for name, _ in headers}
        headers += [item for item in _ALWAYS if item[0] not in names]
        headers += [*refused.headers, (b"connection", b"close")]
        await self._send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
