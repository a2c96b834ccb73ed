"""The lines of a consumer: what each of its queues has delivered and nobody has been handed yet, and whose turn it is.

The broker fills a line up to its window (prefetch).  A line that has run empty may be refilled at any moment: when it is its
turn it is waited for, until the broker says that there are no more; else queues with small weights would be served in its
place, however long it is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gateway.queue.amqp_acks import Acks
from gateway.queue.amqp_ticket import Arrived
from gateway.queue.shares import Shares
from gateway.queue.ticket import EMAIL_SEND_SERIAL

REFILL_SECONDS = 0.1  # at most: another consumer may have taken what the broker spoke of
MAX_WINDOW = 1000


@dataclass(slots=True, eq=False)
class Delivery:
    """A ticket delivered under its tag, and the acknowledgements of the channel it came on."""

    line: Line
    tag: int
    arrived: Arrived
    acks: Acks
    is_over: bool = False


@dataclass(slots=True, eq=False)
class Line:
    """One queue of a consumer."""

    queue: str
    window: int
    waiting: deque[Delivery] = field(default_factory=deque)
    unacked: int = 0
    held: set[Delivery] = field(default_factory=set)  # early by less than a delay step
    delivered: int = 0
    may_have_more: bool = False
    is_asked: bool = False
    delivered_at_look: int = -1
    idle_looks: int = 0

    def arrived(self) -> None:
        self.unacked += 1
        self.delivered += 1
        self.may_have_more = True

    def left(self) -> None:
        self.unacked -= 1

    def clear(self) -> None:
        self.waiting.clear()
        self.held.clear()
        self.unacked = 0
        self.may_have_more = False

    def take_all(self) -> list[Delivery]:
        """Everything that is not handed out."""
        found = [*self.waiting, *self.held]
        self.waiting.clear()
        self.held.clear()
        return found

    @property
    def is_serial(self) -> bool:
        return self.queue == EMAIL_SEND_SERIAL

    @property
    def is_at_work(self) -> bool:
        """Whether something of it is leased, or on its way elsewhere."""
        return self.unacked > len(self.waiting) + len(self.held)

    @property
    def is_refilling(self) -> bool:
        return self.may_have_more and not self.waiting and self.unacked < self.window


class Lines:
    """The queues consumed together."""

    def __init__(self, weights: Mapping[str, int], *, concurrency: int) -> None:
        window = min(concurrency, MAX_WINDOW)
        self._lines = {name: Line(name, 1 if name == EMAIL_SEND_SERIAL else window) for name in weights}
        self._shares = Shares(weights)
        self._awaited: Line | None = None
        self._awaited_until = 0.0

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines.values())

    def next(self) -> Delivery | None:
        """The delivery whose queue's turn it is; None when there is none, or when its queue is being refilled."""
        if self._awaited is None:
            lines = {line.queue: (line,) for line in self if line.waiting or line.is_refilling}
            if not any(line.waiting for (line,) in lines.values()):
                return None
            picked = self._shares.pick(lines, 1)
            self._awaited, self._awaited_until = picked[0], time.monotonic() + REFILL_SECONDS
        line = self._awaited
        if line.waiting:
            self._awaited = None
            return line.waiting.popleft()
        if time.monotonic() < self._awaited_until and line.is_refilling:
            return None
        self._awaited, line.may_have_more = None, False
        return self.next()

    def to_ask(self) -> Line | None:
        """The line that is waited for: the broker is to be asked whether it has more."""
        line = self._awaited
        return None if line is None or line.is_asked else line

    @property
    def wait_seconds(self) -> float | None:
        """How long the queue whose turn it is will be waited for; None when none is."""
        return None if self._awaited is None else max(0.001, self._awaited_until - time.monotonic())

    def clear(self) -> None:
        for line in self:
            line.clear()
        self._awaited = None
