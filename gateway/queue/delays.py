"""How a ticket waits on AMQP: down a ladder of delay queues, each with one waiting time, until it is due to the quarter second.

Each home queue has delay queues of its own, `gateway.delay.<seconds>.<home>`, made the first time one of its tickets has to
wait: so they can be counted, and a home that takes nothing holds up no other.  A ticket takes the longest step that is not
longer than what it still has to wait; back in its home the consumer sees that it is early and sends it down the next step.
The last quarter of a second it waits in the consumer's hand.
Promise: never early, and late by what the hops take.  Dead lettering is at-least-once: a delay queue whose leader dies may
let go of a ticket twice.  The ±15 % that keep apart what failed together are in the moment itself.
"""

from __future__ import annotations

IN_HAND_SECONDS = 0.25
STEPS = tuple(IN_HAND_SECONDS * 2**n for n in range(19))  # a quarter of a second to 18 hours
_PREFIX = "gateway.delay."


def step_for(wait_seconds: float) -> float | None:
    """The longest step within the wait; None when it is short enough for the consumer's hand."""
    return max((step for step in STEPS if step <= wait_seconds), default=None)


def delay_queue(step: float, home: str) -> str:
    """The name of a home's delay queue, and of the fanout exchange in front of it."""
    return f"{_PREFIX}{step:g}.{home}"
