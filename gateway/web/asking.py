"""Who asks, as every handler behind the guard finds it: `asker_of(request)`, and the token its forms carry.

The guard (`web.guard`) puts an `Asking` into the request's scope before the application is called; API and pages only
read it here.  A page writes `form_token(request)` into each of its forms (field `form_token`, or header `X-Form-Token` for
htmx); the POST's handler calls `require_form_token` with what came back before it does anything.
Promise: a request behind the guard always has one of the three askers; nothing here reads a database.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

FORM_FIELD = "form_token"
FORM_HEADER = "x-form-token"
_KEY = "gateway.asking"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person with a session; may do everything."""

    name: str

    def may(self, scope: str) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An app by its key: `send` = its own emails, posts and blobs; `read` = everything; `admin` = both and operating."""

    prefix: str
    app: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True, slots=True)
class Open:
    """Somebody on loopback while no user and no key exist; may do everything."""

    def may(self, scope: str) -> bool:
        return True


Asker = User | ApiKey | Open


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What the guard found out about a request; `asker` is None only where nobody needs to be known (`/login`)."""

    asker: Asker | None
    client: str
    is_https: bool = False
    form_token: str = field(default="", repr=False)
    session: str = field(default="", repr=False)


class NotAllowed(Exception):
    """The asker may not do this, or the form is not one of ours: 403, with the text."""


class _Scoped(Protocol):
    """A request or a websocket: whatever has an ASGI scope."""

    @property
    def scope(self) -> Any: ...

    @property
    def headers(self) -> Mapping[str, str]: ...


def put_asking(scope: Any, asking: Asking) -> None:
    """Lets the application see who asks."""
    scope[_KEY] = asking


def asking_of(request: _Scoped) -> Asking:
    asking: Asking = request.scope[_KEY]
    return asking


def asker_of(request: _Scoped) -> Asker:
    """Who asks; raises NotAllowed where nobody is known."""
    asker = asking_of(request).asker
    if asker is None:
        raise NotAllowed("log in first")
    return asker


def require(request: _Scoped, *scopes: str) -> Asker:
    """Who asks, if it may do one of these; raises NotAllowed."""
    asker = asker_of(request)
    if not any(asker.may(scope) for scope in scopes):
        raise NotAllowed(f"this key does not have the scope {' or '.join(scopes)}")
    return asker


def form_token(request: _Scoped) -> str:
    """What each form of this page carries, bound to the asker's session."""
    return asking_of(request).form_token


def require_form_token(request: _Scoped, given: object = None) -> None:
    """Raises NotAllowed unless the form (its field, or the header) carries this session's token."""
    text = given if isinstance(given, str) else request.headers.get(FORM_HEADER, "")
    wanted = form_token(request)
    if not wanted or not hmac.compare_digest(text.encode("utf-8", "replace"), wanted.encode()):
        raise NotAllowed("this form is too old or not ours: go back, reload the page and send it again")
