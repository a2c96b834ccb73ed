"""What became of one recipient: exactly one disposition each; everything finer is its `reason`.

Used by the ledger (`store`), the events, the lists and reconcile.  A refusal at RCPT is no disposition.
"""

from __future__ import annotations

from enum import StrEnum

# How the reasons begin of what is held for a fault of ours, by which it is found again.
CANNOT_RENDER = "cannot be rendered"
SAME_FAULT = "failed the same way"
GAVE_UP = "gave up after"


class Disposition(StrEnum):
    PENDING = "pending"
    HELD = "held"
    DELIVERED = "delivered"
    DUPLICATE = "duplicate"
    DISCARDED = "discarded"
    SENDING = "sending"
    DELAYED = "delayed"
    UNKNOWN = "unknown"
    RELAYED = "relayed"
    BOUNCED = "bounced"
    COMPLAINED = "complained"
    SUPPRESSED = "suppressed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"
    DEAD = "dead"
    REJECTED = "rejected"

    @property
    def is_final(self) -> bool:
        return self not in _OPEN

    @property
    def counted_as(self) -> str:
        """The column of reconcile it falls into: pending, stored, relayed, accounted or dead."""
        return _COUNTED.get(self, "accounted")


_WAITING = {
    Disposition.PENDING,
    Disposition.HELD,
    Disposition.SENDING,
    Disposition.DELAYED,
    Disposition.UNKNOWN,
}
_OPEN = _WAITING | {Disposition.DEAD}
_COUNTED = dict.fromkeys(_WAITING, "pending") | {
    Disposition.DELIVERED: "stored",
    Disposition.RELAYED: "relayed",
    Disposition.BOUNCED: "relayed",
    Disposition.COMPLAINED: "relayed",
    Disposition.DEAD: "dead",
}
