"""What a request shows of itself: a session's cookie or a key in `Authorization: Bearer`; and who that is.

Promise: each request is judged by the store as it is at that moment.  While the store does not answer, a key that was good
within the last minutes still is (nothing can be revoked meanwhile), so that apps can go on queueing; sessions are not.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from gateway.errors import StoreUnavailable
from gateway.store.access import LIFETIME_SECONDS, Access, KnownKey, Look
from gateway.web.asking import ApiKey, Asker, Open, User

REMEMBERED_SECONDS = 600.0
REMEMBERED_KEYS = 1000
_SESSION, _VISIT = "gateway_session", "gateway_visit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The credentials of one request; `visit` ties the forms of somebody without a session to his browser."""

    session: str = ""
    visit: str = ""
    key: str = ""

    @property
    def form_token(self) -> str:
        """What forms carry: only who has the cookie can know it, and it does not tell the cookie."""
        bound = self.session or self.visit
        return hmac.new(bound.encode(), b"form", hashlib.sha256).hexdigest() if bound else ""


def read_shown(headers: Sequence[tuple[bytes, bytes]], *, is_https: bool) -> Shown:
    cookies: SimpleCookie = SimpleCookie()
    key = ""
    for name, value in headers:
        if name == b"cookie":
            _load(cookies, value.decode("latin-1"))
        elif name == b"authorization":
            scheme, _, credentials = value.decode("latin-1").partition(" ")
            key = credentials.strip() if scheme.lower() == "bearer" else ""
    found = {
        name: cookies[full].value for name in (_SESSION, _VISIT) if (full := cookie_name(name, is_https)) in cookies
    }
    return Shown(session=found.get(_SESSION, ""), visit=found.get(_VISIT, ""), key=key)


def cookie_name(name: str, is_https: bool) -> str:
    """Over https the browser itself keeps `__Host-` cookies from being set by anybody but us."""
    return f"__Host-{name}" if is_https else name


def session_cookie(token: str, *, is_https: bool) -> str:
    """The Set-Cookie that begins a session, or with '' ends it."""
    return _set_cookie(_SESSION, token, is_https=is_https, seconds=LIFETIME_SECONDS if token else 0)


def visit_cookie(token: str, *, is_https: bool) -> str:
    return _set_cookie(_VISIT, token, is_https=is_https, seconds=LIFETIME_SECONDS)


def new_visit() -> str:
    return secrets.token_urlsafe(16)


class Credentials:
    """Asks the store what the credentials are worth."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._keys: OrderedDict[str, tuple[KnownKey, float]] = OrderedDict()

    async def asker_of(self, shown: Shown) -> Asker | None:
        """Who asks; None for somebody unknown at a closed house. Raises StoreUnavailable."""
        try:
            look = await self._access.look(session=shown.session, key=shown.key)
        except StoreUnavailable:
            known = self._remembered(shown.key)
            if known is None:
                raise
            return _as_asker(known)
        if look.key is not None:
            self._remember(shown.key, look.key)
        else:
            self._keys.pop(_digest(shown.key), None)
        if look.is_stale:
            with suppress(StoreUnavailable):  # noted at the next request then
                await self._access.note_seen(shown.session)
        return _asker(look)

    async def is_still(self, asker: Asker, shown: Shown) -> bool:
        """Whether these credentials still are this asker's; true while nobody can say.  No sign of life of a session."""
        try:
            look = await self._access.look(session=shown.session, key=shown.key)
        except StoreUnavailable:
            return True
        return _asker(look) == asker

    def _remember(self, key: str, known: KnownKey) -> None:
        self._keys.pop(_digest(key), None)
        self._keys[_digest(key)] = (known, time.monotonic() + REMEMBERED_SECONDS)
        while len(self._keys) > REMEMBERED_KEYS:
            self._keys.popitem(last=False)

    def _remembered(self, key: str) -> KnownKey | None:
        known, until = self._keys.get(_digest(key), (None, 0.0))
        return known if until > time.monotonic() else None


def _asker(look: Look) -> Asker | None:
    if look.key is not None:
        return _as_asker(look.key)
    if look.user is not None:
        return User(name=look.user)
    return Open() if look.is_open else None


def _as_asker(known: KnownKey) -> ApiKey:
    return ApiKey(prefix=known.prefix, app=known.app, scopes=known.scopes)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _load(cookies: SimpleCookie, text: str) -> None:
    """Adds what can be read; a cookie of somebody else that cannot is no reason to lose ours."""
    for item in text.split(";"):
        try:
            cookies.load(item.strip())
        except CookieError:
            continue


def _set_cookie(name: str, value: str, *, is_https: bool, seconds: int) -> str:
    secure = "; Secure" if is_https else ""
    return f"{cookie_name(name, is_https)}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"
