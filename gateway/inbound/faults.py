"""Faults of mailboxes: told apart by fingerprint, so that a mail nobody can take does not climb the ladder for days.

A fingerprint is the exception's type and the innermost frame of the plug-in.  The ticket of a recipient who waits carries
his last one, how often it came in a row and since when; so the count outlives the process and is shared by all workers.
Rule: the same fingerprint `HOPELESS_TIMES` times while other mails pass = held, and said loudly; never blamed on the
sender.  While nothing else passes it may be an outage of what the mailbox stands on, and the ladder goes on.
Limit: what passed is known to this process only; after a restart another mail must pass first.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

HOPELESS_TIMES = 5
HEADER = "fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fingerprint that came `times` times in a row for one recipient, the first time at `since`."""

    fingerprint: str
    times: int
    since: datetime

    def to_header(self) -> dict[str, Any]:
        return asdict(self) | {"since": self.since.isoformat()}

    @classmethod
    def after(cls, headers: Mapping[str, Any], fingerprint: str, now: datetime) -> Fault:
        """The fault as it stands now that `fingerprint` came, on a ticket with these headers."""
        try:
            last = headers[HEADER]
            if last["fingerprint"] == fingerprint:
                since = datetime.fromisoformat(last["since"])
                return cls(fingerprint=fingerprint, times=int(last["times"]) + 1, since=since)
        except (KeyError, TypeError, ValueError):
            pass  # the first one, or a header that is not ours
        return cls(fingerprint=fingerprint, times=1, since=now)


class Passes:
    """Which mails passed lately in this process."""

    def __init__(self) -> None:
        self._last: deque[tuple[str, datetime]] = deque(maxlen=2)

    def note(self, mail_id: str, now: datetime) -> None:
        """A mailbox took the mail."""
        if self._last and self._last[-1][0] == mail_id:
            self._last.pop()
        self._last.append((mail_id, now))

    def make_hopeless(self, fault: Fault, mail_id: str) -> bool:
        """Whether the fault is the mail's: it came often enough, and other mails have passed since it first came."""
        others = any(passed != mail_id and at >= fault.since for passed, at in self._last)
        return fault.times >= HOPELESS_TIMES and others


def fingerprint_of(error: BaseException, plug_in: object) -> str:
    """The error's type and the innermost frame of the plug-in; where it has none, the innermost of all."""
    home = getattr(sys.modules.get(type(plug_in).__module__), "__file__", None)
    innermost = own = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        innermost = f"{code.co_filename.rpartition('/')[2]}:{code.co_name}:{trace.tb_lineno}"
        own = innermost if code.co_filename == home else own
        trace = trace.tb_next
    return f"{type(error).__name__} at {own or innermost or 'an unknown place'}"
