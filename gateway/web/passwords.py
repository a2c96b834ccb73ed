"""Passwords: what is kept of them, and whether one is right.  Home of argon2.

Hashing is made to cost time and memory, so it runs in two threads of its own: never more at once, also when who asked has gone
meanwhile (a thread cannot be stopped), and never in the way of other work.  Whoever comes while `WAITING` others wait is told
to come again: so many tries from everywhere keep nobody waiting for minutes.
Promise: a name that is nobody's costs what a wrong password costs, so that the time tells nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.errors import InvalidRequest, Problem, TransientFailure

MIN_CHARACTERS = 10
MAX_BYTES = 1024
AT_ONCE = 2
WAITING = 50
_Result = TypeVar("_Result")


class Passwords:
    """Hashes and proves passwords off the event loop."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="passwords")
        self._waiting = 0
        self._nobodys = ""

    async def keep(self, password: str) -> str:
        """What may be stored of a new password; raises InvalidRequest for one that is too short or too long."""
        if len(password) < MIN_CHARACTERS or len(password.encode("utf-8", "replace")) > MAX_BYTES:
            raise InvalidRequest(
                [Problem("password", f"takes {MIN_CHARACTERS} characters or more, {MAX_BYTES} bytes at most")]
            )
        return await self._in_thread(lambda: self._hasher.hash(password))

    async def is_right(self, kept: str | None, password: str) -> bool:
        """Whether the password is the one kept; as slow for nobody's (None). Raises TransientFailure when too many wait."""
        if len(password.encode("utf-8", "replace")) > MAX_BYTES:
            password = ""
        return await self._in_thread(lambda: self._prove(kept, password))

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        if self._waiting >= WAITING:
            raise TransientFailure("too many logins at once, try again later")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    def _prove(self, kept: str | None, password: str) -> bool:
        if not self._nobodys:  # made at the first try whoever it is, or that one would tell
            self._nobodys = self._hasher.hash("nobody's password")
        try:
            self._hasher.verify(kept or self._nobodys, password)
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return False
        return kept is not None
