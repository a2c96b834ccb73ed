"""What many tries at once may cost: two threads, whoever has gone meanwhile, and no line of people that never ends."""

from __future__ import annotations

import asyncio
import threading

import pytest
from argon2 import PasswordHasher

from gateway.errors import TransientFailure
from gateway.web.passwords import AT_ONCE, WAITING, Passwords

WAIT_SECONDS = 20.0


class Slow(PasswordHasher):
    """Hashes until it is told to go on, and knows how many it did at once."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=64)
        self.go_on = threading.Event()
        self.begun = threading.Semaphore(0)
        self.at_once = self.most = 0

    def verify(self, *words: object, **values: object) -> bool:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.begun.release()
        assert self.go_on.wait(WAIT_SECONDS)
        self.at_once -= 1
        return True


async def test_who_goes_away_leaves_no_third_thread_and_nobody_waits_for_ever() -> None:
    hasher = Slow()
    passwords = Passwords(hasher)
    for _ in range(AT_ONCE):
        gone = asyncio.create_task(passwords.is_right("kept", "x"))
        assert await asyncio.to_thread(hasher.begun.acquire, timeout=WAIT_SECONDS)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    waiting = [asyncio.create_task(passwords.is_right("kept", "x")) for _ in range(WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(TransientFailure, match="too many logins at once"):
        await passwords.is_right("kept", "x")
    assert not hasher.begun.acquire(timeout=0.2), "a third is at work"
    hasher.go_on.set()
    assert all(await asyncio.gather(*waiting))
    assert hasher.most == AT_ONCE
    assert await passwords.is_right("kept", "x")
