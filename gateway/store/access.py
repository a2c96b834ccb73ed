"""Who may ask: users with their sessions and invitations, and the keys of apps.  One verb per fact.

Secrets are made here and told once: of a key or a session only a SHA-256 is stored (they are 256 random bits, nothing to
guess), of a password what `web.passwords` made of it.  `look` answers for one request in one read: whether the house is open
(no user and no key yet), whose session it is, which key.
Promises: making the first user or key closes the house for every process with its commit; a user's removal or new password
ends all sessions; a revoked key stays listed and opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.errors import InvalidRequest, Problem
from gateway.mail.ids import new_id
from gateway.runtime import Clock
from gateway.store.database import Database, insert_absent
from gateway.store.schema import api_keys, as_json, invitations, sessions, users

IDLE_SECONDS = 12 * 3600
LIFETIME_SECONDS = 7 * 86400
SEEN_EVERY_SECONDS = 300
INVITATION_SECONDS = 86400
KEY_SCOPES = ("send", "read", "admin")
_NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")
_APP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"(gw_[a-z2-7]{8})_([A-Za-z0-9_-]{43})")
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    """A key that is good now."""

    prefix: str
    app: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one request's credentials are worth; `is_open` while there is neither user nor key."""

    is_open: bool
    user: str | None = None
    key: KnownKey | None = None
    is_stale: bool = False  # the session was last noted long ago: note it


class Access:
    """The verbs of users, sessions, invitations and keys."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def look(self, *, session: str = "", key: str = "") -> Look:
        """What a request with this session's token and this key may be taken for."""
        now = self._clock()
        return await self._database.read(lambda connection: _look(connection, now, session=session, key=key))

    async def is_entered(self) -> bool:
        """Whether a user exists or an invitation is out: whether somebody can log in, now or soon."""
        now = self._clock()
        waiting = sa.select(invitations.c.id).where(invitations.c.used_at.is_(None), invitations.c.expires_at > now)

        def work(connection: sa.Connection) -> bool:
            return any(connection.execute(query.limit(1)).first() for query in (sa.select(users.c.name), waiting))

        return await self._database.read(work)

    # users

    async def add_user(self, name: str, password_hash: str) -> bool:
        """Makes a user; False where the name is taken."""
        values = {"name": user_name(name), "password_hash": password_hash, "created_at": self._clock()}
        return bool(await self._database.write(lambda connection: insert_absent(connection, users, values)))

    async def set_password(self, name: str, password_hash: str) -> bool:
        """Gives a user another password and ends all his sessions; False where there is no such user."""
        chosen = users.c.name == user_name(name)

        def work(connection: sa.Connection) -> bool:
            changed = connection.execute(sa.update(users).where(chosen).values(password_hash=password_hash)).rowcount
            connection.execute(sa.delete(sessions).where(sessions.c.user_name == user_name(name)))
            return bool(changed)

        return await self._database.write(work)

    async def remove_user(self, name: str) -> bool:
        """Removes a user with all his sessions; False where there is no such user."""

        def work(connection: sa.Connection) -> bool:
            connection.execute(sa.delete(sessions).where(sessions.c.user_name == user_name(name)))
            return bool(connection.execute(sa.delete(users).where(users.c.name == user_name(name))).rowcount)

        return await self._database.write(work)

    async def users(self) -> list[dict[str, Any]]:
        """A line per user, with how many sessions there are."""
        counted = sa.select(sa.func.count()).where(sessions.c.user_name == users.c.name).scalar_subquery()
        query = sa.select(users.c.name, users.c.created_at, counted.label("sessions")).order_by(users.c.created_at)
        rows = await self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [as_json(row) for row in rows]

    async def password_hash(self, name: str) -> str | None:
        """What is kept of a user's password; None for a name that is nobody's."""
        query = sa.select(users.c.password_hash).where(users.c.name == name.strip().lower())
        return await self._database.read(lambda connection: connection.execute(query).scalar())

    # sessions

    async def start_session(self, name: str, password_hash: str) -> str:
        """Starts a session and returns its token, '' where the user is gone or has another password by now."""
        token, now = secrets.token_urlsafe(32), self._clock()
        values = {"token_hash": _digest(token), "user_name": user_name(name), "created_at": now, "seen_at": now}
        is_same = sa.and_(users.c.name == user_name(name), users.c.password_hash == password_hash)

        def work(connection: sa.Connection) -> bool:
            connection.execute(sa.delete(sessions).where(sa.not_(_lives(now))))
            if connection.execute(sa.select(users.c.name).where(is_same)).first() is None:
                return False
            connection.execute(sa.insert(sessions), values)
            return True

        return token if await self._database.write(work, rings=False) else ""

    async def note_seen(self, token: str) -> None:
        """The session is in use."""
        chosen = sessions.c.token_hash == _digest(token)
        statement = sa.update(sessions).where(chosen).values(seen_at=self._clock())
        await self._database.write(lambda connection: connection.execute(statement).rowcount, rings=False)

    async def end_session(self, token: str) -> None:
        statement = sa.delete(sessions).where(sessions.c.token_hash == _digest(token))
        await self._database.write(lambda connection: connection.execute(statement).rowcount, rings=False)

    # invitations

    async def invite(self, name: str, *, lifetime_seconds: float = INVITATION_SECONDS) -> str:
        """Lets whoever has the (signed) id become this user once, within its time; returns the id."""
        invitation_id, expires_at = new_id(), self._clock() + timedelta(seconds=lifetime_seconds)
        values = {"id": invitation_id, "user_name": user_name(name), "expires_at": expires_at}
        await self._database.write(lambda connection: connection.execute(sa.insert(invitations), values).rowcount)
        return invitation_id

    async def invited(self, invitation_id: str) -> str | None:
        """Whose invitation this is; None where it is none, used or over."""
        now = self._clock()
        return await self._database.read(lambda connection: _invited(connection, now, invitation_id))

    async def accept_invitation(self, invitation_id: str, password_hash: str) -> str | None:
        """Makes the invited user; None where the invitation is none, used or over, or the name taken meanwhile."""
        now = self._clock()

        def work(connection: sa.Connection) -> str | None:
            name = _invited(connection, now, invitation_id)
            unused = sa.and_(invitations.c.id == invitation_id, invitations.c.used_at.is_(None))
            if (
                name is None
                or not connection.execute(sa.update(invitations).where(unused).values(used_at=now)).rowcount
            ):
                return None
            values = {"name": name, "password_hash": password_hash, "created_at": now}
            return name if insert_absent(connection, users, values) else None

        return await self._database.write(work)

    # keys

    async def add_key(self, app: str, scopes: Sequence[str]) -> str:
        """Makes a key for an app and returns it: the only time it is told."""
        text, values = _new_key(app, scopes, self._clock())
        await self._database.write(lambda connection: connection.execute(sa.insert(api_keys), values).rowcount)
        return text

    async def keys(self) -> list[dict[str, Any]]:
        """A line per key, revoked ones included."""
        columns = [column for column in api_keys.c if column.name != "secret_hash"]
        query = sa.select(*columns).order_by(api_keys.c.created_at)
        rows = await self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [as_json(row) for row in rows]

    async def revoke_key(self, prefix: str) -> bool:
        """Ends a key, named by its prefix (or itself); False where there is none that is good."""
        match = _KEY.fullmatch(prefix)
        good = sa.and_(api_keys.c.prefix == (match[1] if match else prefix), api_keys.c.revoked_at.is_(None))
        statement = sa.update(api_keys).where(good).values(revoked_at=self._clock())
        return bool(await self._database.write(lambda connection: connection.execute(statement).rowcount))


def key_prefix(text: str) -> str:
    """The public part of what has the form of a key, '' for anything else."""
    match = _KEY.fullmatch(text)
    return match[1] if match else ""


def user_name(text: str) -> str:
    """A user's name in its one form; raises InvalidRequest."""
    name = text.strip().lower()
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            [Problem("name", "takes 1 to 64 letters, digits and . _ @ + -, beginning with one of the first")]
        )
    return name


def _new_key(app: str, scopes: Sequence[str], now: datetime) -> tuple[str, dict[str, Any]]:
    problems = [
        Problem("scope", f"{scope!r} is not one of {', '.join(KEY_SCOPES)}") for scope in set(scopes) - {*KEY_SCOPES}
    ]
    if not _APP.fullmatch(app):
        problems.append(Problem("app", "takes 1 to 64 letters, digits and . _ -"))
    if not scopes:
        problems.append(Problem("scope", f"names at least one of {', '.join(KEY_SCOPES)}"))
    if problems:
        raise InvalidRequest(problems)
    prefix = "gw_" + "".join(secrets.choice(_LETTERS) for _ in range(8))
    text = f"{prefix}_{secrets.token_urlsafe(32)}"
    kept = {"prefix": prefix, "secret_hash": _digest(text), "app": app, "created_at": now}
    return text, kept | {"scopes": " ".join(scope for scope in KEY_SCOPES if scope in scopes)}


def _look(connection: sa.Connection, now: datetime, *, session: str, key: str) -> Look:
    found = connection.execute(_SESSION.where(sessions.c.token_hash == _digest(session), _lives(now))).first()
    known = _known_key(connection, key)
    if found is not None or known is not None:
        stale = found is not None and (now - found.seen_at).total_seconds() > SEEN_EVERY_SECONDS
        return Look(is_open=False, user=found.user_name if found else None, key=known, is_stale=stale)
    closed = any(connection.execute(query).first() for query in (_ANY_USER, _ANY_KEY))
    return Look(is_open=not closed)


def _known_key(connection: sa.Connection, text: str) -> KnownKey | None:
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    query = sa.select(api_keys).where(api_keys.c.prefix == match[1], api_keys.c.revoked_at.is_(None))
    row = connection.execute(query).first()
    if row is None or not hmac.compare_digest(row.secret_hash, _digest(text)):
        return None
    return KnownKey(prefix=row.prefix, app=row.app, scopes=frozenset(row.scopes.split()))


def _invited(connection: sa.Connection, now: datetime, invitation_id: str) -> str | None:
    good = (invitations.c.id == invitation_id, invitations.c.used_at.is_(None), invitations.c.expires_at > now)
    name = connection.execute(sa.select(invitations.c.user_name).where(*good)).scalar()
    return None if name is None else str(name)


def _lives(now: datetime) -> sa.ColumnElement[bool]:
    in_use = sessions.c.seen_at > now - timedelta(seconds=IDLE_SECONDS)
    return sa.and_(in_use, sessions.c.created_at > now - timedelta(seconds=LIFETIME_SECONDS))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


_SESSION = sa.select(sessions.c.user_name, sessions.c.seen_at)
_ANY_USER = sa.select(users.c.name).limit(1)
_ANY_KEY = sa.select(api_keys.c.prefix).where(api_keys.c.revoked_at.is_(None)).limit(1)
