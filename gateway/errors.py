"""Everything that can go wrong, and how bad it is: severity is the class, the reply is what the peer hears.

    GatewayError
    ├── TransientFailure      4.x.x: try again later (the default for every unknown fault)
    │   ├── QueueUnavailable      the queue did not confirm; nothing is promised
    │   ├── StoreUnavailable      the database or blob store did not answer
    │   │   └── BlobDamaged           it answered with other octets than were put
    │   └── StorageFault          an SQLite file could not be read or written
    ├── PermanentFailure      5.x.x: proven; trying again cannot help
    │   └── InvalidRequest        a request broke its contract; carries every problem with its path
    ├── LeaseLost             the ticket is somebody else's now: stop, write nothing
    ├── ClaimLost             the recipient's row is somebody else's now: RSET, no dot
    ├── JobFailed             work in the cage raised; carries the exception's name and text
    │   └── OverBudget            the cage killed the work at its limit of time or memory
    └── SettingsError         the settings are wrong; carries every problem with key and place

Promise: SMTP answers, retries and notices are derived from these and from nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateway.reply import Reply


class FaultOwner(StrEnum):
    """Whose fault it is decides who waits: only `domain` and `recipient` faults climb the retry ladder."""

    RELAY = "relay"
    DOMAIN = "domain"
    RECIPIENT = "recipient"
    CONTENT = "content"
    OURS = "ours"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a request or a settings file: where, and what; shown as one line, whatever the path holds."""

    path: str
    message: str

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path else self.message
        return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class GatewayError(Exception):
    """The root of every error the gateway raises on purpose."""


class TransientFailure(GatewayError):
    """Something that may pass; `reply` is 4yz."""

    def __init__(self, text: str, *, reply: Reply | None = None, owner: FaultOwner = FaultOwner.OURS) -> None:
        super().__init__(text)
        self.reply = reply or Reply(code=451, enhanced_status="4.3.0", text=text)
        self.owner = owner
        if not self.reply.is_transient:
            raise ValueError(f"a transient failure cannot carry {self.reply}")


class PermanentFailure(GatewayError):
    """Something proven that no retry mends; `reply` is 5yz."""

    def __init__(self, text: str, *, reply: Reply | None = None, owner: FaultOwner = FaultOwner.CONTENT) -> None:
        super().__init__(text)
        self.reply = reply or Reply(code=554, enhanced_status="5.0.0", text=text)
        self.owner = owner
        if not self.reply.is_permanent:
            raise ValueError(f"a permanent failure cannot carry {self.reply}")


class QueueUnavailable(TransientFailure):
    """The queue did not confirm: the caller retries or answers 451."""


class StoreUnavailable(TransientFailure):
    """The database or the blob store did not answer: work waits in the queue."""


class BlobDamaged(StoreUnavailable):
    """A blob's octets are not those its digest names: only a restored copy, or the same octets put again, can help."""


class StorageFault(TransientFailure):
    """An SQLite file could not be opened, read or written (disk full, locked away, damaged)."""


class InvalidRequest(PermanentFailure):
    """A request that breaks its contract; `problems` names them all at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)) or "invalid request")
        self.problems = tuple(problems)


class LeaseLost(GatewayError):
    """The lease ran out or was taken; whatever was decided must not be settled here."""


class ClaimLost(GatewayError):
    """The claim on a recipient's row is gone; the transaction with the relay must be reset."""


class JobFailed(GatewayError):
    """A job in the cage raised: `kind` is the exception's class name."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}" if text else kind)
        self.kind = kind
        self.text = text


class OverBudget(JobFailed):
    """The cage ended a job at its limit; `kind` is `cpu`, `wall`, `memory`, `crashed` (by itself) or `died`."""


class SettingsError(GatewayError):
    """The settings cannot be used; `problems` names key and place of each mistake."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)
