"""Who logs in at the door: users of the pages by their password, apps by a key with the scope `send`.

Promises: passwords are proven off the event loop and tries are counted per client and name, together with those at the
pages where both run in one process; a name that is nobody's costs what a wrong password costs.
What is returned stands in `Envelope.auth`: a user's name, or `app:NAME`, which no user's name can be.
Limits: while the store is away, or too many passwords wait to be proven, nobody can log in (454): the client keeps its mail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway.errors import TransientFailure
from gateway.inbound.door_auth import Shown
from gateway.mail.envelope import APP
from gateway.maillog import MailLog
from gateway.reply import Reply
from gateway.store.access import Access, key_prefix

MAX_NAME_CHARACTERS = 320
SCOPE = "send"


class Passwords(Protocol):
    async def is_right(self, kept: str | None, password: str) -> bool:
        """As slow for nobody's (None). Raises TransientFailure when it cannot be tried now."""


class Throttle(Protocol):
    def wait_seconds(self, name: str, client: str) -> int: ...

    def failed(self, name: str, client: str) -> None: ...

    def succeeded(self, name: str, client: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLogins:
    """Proves what clients of the door show of themselves."""

    access: Access
    passwords: Passwords
    throttle: Throttle
    log: MailLog

    async def prove(self, shown: Shown, *, client: str) -> str:
        """Who that is; '' for nobody. Raises TransientFailure with the reply 454."""
        prefix = key_prefix(shown.password)
        name = (prefix or shown.name.strip().lower())[:MAX_NAME_CHARACTERS]
        if wait := self.throttle.wait_seconds(name, client):
            self.log.login_refused(client=client, why="throttled")
            raise _later(f"too many wrong tries, wait {wait} seconds")
        try:
            found = await (self._app(shown, client) if prefix else self._user(name, shown.password, client))
        except TransientFailure as fault:
            raise _later("logins cannot be checked now, try again later") from fault
        if found:
            self.log.logged_in(found, client=client)
        else:
            self.log.login_refused(client=client, why="name or password")
        return found

    async def _user(self, name: str, password: str, client: str) -> str:
        """Counted before it is tried, so that many at once gain nothing."""
        self.throttle.failed(name, client)
        try:
            kept = await self.access.password_hash(name)
            is_right = await self.passwords.is_right(kept, password)
        except TransientFailure:
            self.throttle.succeeded(name, client)  # nothing was tried
            raise
        if not is_right:
            return ""
        self.throttle.succeeded(name, client)
        return name

    async def _app(self, shown: Shown, client: str) -> str:
        """Nobody guesses a key; wrong ones are counted to spare the store."""
        key = (await self.access.look(key=shown.password)).key
        if key is None or SCOPE not in key.scopes or shown.name.lower() not in (key.app.lower(), key.prefix):
            self.throttle.failed(key_prefix(shown.password), client)
            return ""
        return f"{APP}{key.app}"


def _later(text: str) -> TransientFailure:
    return TransientFailure(text, reply=Reply(code=454, enhanced_status="4.7.0", text=text))
