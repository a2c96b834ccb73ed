"""What stands before every HTTP request: who may ask at all, and how much they may send.

While no user and no key exist the API is open, but only on loopback, only under a local Host and Origin (a page of the
wide web cannot reach it by DNS rebinding or a cross-site form), and never for a forwarded request (then the peer is a
proxy, not the person).  Refusals are problem+json (RFC 9457).  Bodies are cut off at `max_body_bytes`, compressed
ones refused: nothing here inflates.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via"})


class _TooLarge(Exception):
    """The body passed the limit while it was read."""


class Guard:
    """ASGI middleware in front of the application."""

    def __init__(self, app: App, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _refusal(scope, self._max_body_bytes)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        body = _Body(receive, self._max_body_bytes)

        async def unless_too_large(message: Message) -> None:
            if not body.too_large:
                await send(message)

        with suppress(_TooLarge):
            await self._app(scope, body.receive, unless_too_large)
        if body.too_large:
            await _answer(send, 413, f"the body is larger than {self._max_body_bytes} bytes")


class _Body:
    """The request's body, read at most up to a limit; past it the application sees an error and its answer is dropped."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._left = limit
        self.too_large = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.too_large = True
            raise _TooLarge
        return message


def _refusal(scope: Scope, max_body_bytes: int) -> tuple[int, str] | None:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    if any(name in _FORWARDED for name, _ in headers):
        return 403, "forwarded requests are not served while the API is open to loopback only"
    if len(hosts) != 1 or _name(f"//{hosts[0]}") not in _LOCAL_NAMES:
        return 421, "this Host is not ours; ask for localhost or 127.0.0.1"
    for name, value in headers:
        if name == b"origin" and _name(value.decode("latin-1")) not in _LOCAL_NAMES:
            return 403, "requests from other origins are not served"
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            return 415, "compressed bodies are not read; send it plain"
        if name == b"content-length" and value.isdigit() and int(value) > max_body_bytes:
            return 413, f"the body is larger than {max_body_bytes} bytes"
    client = scope.get("client")
    if client and client[0] not in {"127.0.0.1", "::1"}:
        return 403, "the API is open to loopback only"
    return None


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"type": "about:blank", "title": detail, "status": status}).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
