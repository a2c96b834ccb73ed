"""The retry ladder: how long an unsuccessful attempt waits before the next, and when there is no next.

Written as steps, each `number unit` with an optional `*times`: `1m 5m 15m 1h*2 4h*3 12h*9` is five days.
The worker climbs it with tickets, `outbound.deliver` with recipients.  Each wait is spread by ±15 %, so that what failed
together does not come again together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SPREAD = 0.15
_MAX_STEPS = 1000
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])", re.ASCII)
_STEP = re.compile(r"([^*]*)(?:\*(\d{1,4}))?", re.ASCII)


def duration_seconds(text: str) -> float:
    """Reads `30s`, `15m`, `1.5h` or `7d`; raises ValueError saying what is wrong."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration like 30s, 15m, 4h or 7d")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The waits between attempts, in seconds; one attempt more than there are steps."""

    steps: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Ladder:
        """Reads the written form; raises ValueError naming the step that cannot be read."""
        steps: list[float] = []
        for word in text.split():
            steps += _parse_step(word)
        if not steps:
            raise ValueError("a retry ladder needs at least one step, like 1m")
        if len(steps) > _MAX_STEPS:
            raise ValueError(f"a retry ladder of {len(steps)} steps; at most {_MAX_STEPS}")
        return cls(steps=tuple(steps))

    @property
    def total_seconds(self) -> float:
        """From the first attempt to the last, without spread."""
        return sum(self.steps)

    def delay_seconds(self, attempt: int, *, jitter: float = 0.5) -> float | None:
        """The wait after the `attempt`-th unsuccessful attempt (1 is the first); None when we give up.

        `jitter` is a random number from 0 to 1; 0.5 is the step as written.
        """
        if attempt < 1:
            raise ValueError(f"attempts count from 1, not {attempt}")
        if attempt > len(self.steps):
            return None
        return self.steps[attempt - 1] * (1 + SPREAD * (2 * jitter - 1))


def _parse_step(word: str) -> list[float]:
    match = _STEP.fullmatch(word)
    if match is None or match[2] == "0":
        raise ValueError(f"{word!r} is not a step of a retry ladder like 15m or 1h*2")
    try:
        seconds = duration_seconds(match[1])
    except ValueError as error:
        raise ValueError(f"step {word!r}: {error}") from None
    if seconds <= 0:
        raise ValueError(f"step {word!r}: a step must wait")
    return [seconds] * int(match[2] or 1)
