"""Passwords: what is kept of them, and whether one is right.  Home of argon2.

Hashing is made to cost time and memory, so it runs in threads, two at a time.  Promise: a name that is nobody's costs what a
wrong password costs, so that the time tells nothing.
"""

from __future__ import annotations

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.errors import InvalidRequest, Problem

MIN_CHARACTERS = 10
MAX_BYTES = 1024
AT_ONCE = 2


class Passwords:
    """Hashes and proves passwords off the event loop."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._nobodys = ""

    async def keep(self, password: str) -> str:
        """What may be stored of a new password; raises InvalidRequest for one that is too short or too long."""
        if len(password) < MIN_CHARACTERS or len(password.encode("utf-8", "replace")) > MAX_BYTES:
            raise InvalidRequest(
                [Problem("password", f"takes {MIN_CHARACTERS} characters or more, {MAX_BYTES} bytes at most")]
            )
        async with self._turns:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def is_right(self, kept: str | None, password: str) -> bool:
        """Whether the password is the one kept; as slow for nobody's (None)."""
        if len(password.encode("utf-8", "replace")) > MAX_BYTES:
            password = ""
        async with self._turns:
            return await asyncio.to_thread(self._prove, kept, password)

    def _prove(self, kept: str | None, password: str) -> bool:
        if not self._nobodys:  # made at the first try whoever it is, or that one would tell
            self._nobodys = self._hasher.hash("nobody's password")
        try:
            self._hasher.verify(kept or self._nobodys, password)
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return False
        return kept is not None
