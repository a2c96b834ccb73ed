"""Requests of a later version than this worker reads: versions N and N+1 run side by side, so they are parked, not rejected.

`queue.worker` parks: the ticket comes again every `PARKED_SECONDS`, spends no attempt and hears no answer, until a newer worker
takes it.
Limit: while it is parked it has left the line of `email.send.serial`; requests of a later version come after the upgrade.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PARKED_SECONDS = 3600


class NewerVersion(Exception):
    """The request speaks a later version of the contract: a newer worker will understand it."""


def refuse_newer(data: Mapping[str, Any], *, known: int, contract: str) -> None:
    """Raises NewerVersion for a request above the version known here; one without a number has ours."""
    version = data.get("version", known)
    if isinstance(version, int) and version > known:
        raise NewerVersion(f"version {version} of {contract}, this worker reads {known}")
