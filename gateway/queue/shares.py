"""How queues consumed together share a consumer: by weight, smoothly, so that none starves and none is strictly first."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class Shares:
    """Smooth weighted round robin (as nginx does it) over the queues that have something."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)
        self._credits = dict.fromkeys(weights, 0)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._weights)

    def pick(self, waiting: Mapping[str, Sequence[T]], wanted: int) -> list[T]:
        """Takes up to `wanted` from the front of the lines, by weight; the credits go on from call to call."""
        lines = {name: deque(line) for name, line in waiting.items() if line}
        picked: list[T] = []
        while lines and len(picked) < wanted:
            for name in lines:
                self._credits[name] += self._weights[name]
            name = max(lines, key=self._credits.__getitem__)
            self._credits[name] -= sum(self._weights[other] for other in lines)
            picked.append(lines[name].popleft())
            if not lines[name]:
                del lines[name]
        return picked
