"""When failing is more than the usual: more recipients fail for good than are relayed, and not just a few.

One unknown address is the sender's business and told to him; a relay that refuses all we send is the admin's.
"""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 300.0
FAILURES_AT_ONCE = 20


class FailureMeter:
    """Whether more recipients fail than are relayed, over the last minutes of this process; how many since it began."""

    def __init__(self, *, window_seconds: float = WINDOW_SECONDS) -> None:
        self._window_seconds = window_seconds
        self._samples: deque[tuple[float, int, int]] = deque()
        self._began_at: int | None = None

    def read(self, now: float, *, failed: int, relayed: int) -> int:
        """Takes the counters as they are now; 0 while all is well."""
        self._samples.append((now, failed, relayed))
        while len(self._samples) > 1 and self._samples[1][0] <= now - self._window_seconds:
            self._samples.popleft()
        _, failed_before, relayed_before = self._samples[0]
        lately = failed - failed_before
        if not lately:
            self._began_at = None
        elif self._began_at is None and lately >= FAILURES_AT_ONCE and lately > relayed - relayed_before:
            self._began_at = failed_before
        return 0 if self._began_at is None else failed - self._began_at
