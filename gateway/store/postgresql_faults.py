"""What an error of PostgreSQL means for the work in hand: do it again, tell that the store is away, or it is the work's own.

Told by SQLSTATE (PostgreSQL manual, appendix A), never by the wording.
"""

from __future__ import annotations

from enum import Enum, auto

import sqlalchemy as sa

_LOST_RACES = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected: the other one goes on
    "0A000",  # "cached plan must not change result type": a newer version has just led the schema up
}
_TAKEN = "23505"  # unique_violation: the other writer's row can be seen now
_AWAY_CLASSES = ("08", "28", "3D", "53", "57", "58", "F0", "XX")
_READ_ONLY = "25006"  # read_only_sql_transaction: a primary became a standby under us
_AWAY = {
    _READ_ONLY,
    "25P03",  # idle_in_transaction_session_timeout
    "55P03",  # lock_not_available: somebody holds the row for longer than we wait
    "26000",  # invalid_sql_statement_name and
    "42P05",  # duplicate_prepared_statement: a pooler in transaction mode mixes connections up; an operator mends it
    "42501",  # insufficient_privilege: a grant is missing; an operator mends it, the work waits
}
_STALE_CLASSES = ("08", "57P")  # the connection is gone, not the statement


class Verdict(Enum):
    """What to do with work that raised."""

    AGAIN = auto()  # nothing of it happened, and the next time it may go through
    AGAIN_ONCE = auto()  # likewise, but if it comes again it is no race
    LOST_CONNECTION = auto()  # nothing of it happened, unless it was its COMMIT that was under way
    AWAY = auto()
    WORKS_OWN = auto()


def leave_the_standby(context: sa.engine.ExceptionContext) -> None:
    """Gives up the pooled connections to a server that may only be read: behind the same address another one may write."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


def verdict_on(error: sa.exc.DBAPIError) -> Verdict:
    """What the error means."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    if state in _LOST_RACES:
        return Verdict.AGAIN
    if state == _TAKEN:
        return Verdict.AGAIN_ONCE
    if error.connection_invalidated or state.startswith(_STALE_CLASSES):
        return Verdict.LOST_CONNECTION
    if state in _AWAY or state.startswith(_AWAY_CLASSES):
        return Verdict.AWAY
    return Verdict.WORKS_OWN
