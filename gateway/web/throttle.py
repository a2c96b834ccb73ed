"""Counts wrong passwords, so that nobody tries many: per name and client, per client, per name.

A person who mistypes has five tries; somebody who tries many names is stopped by his address, many addresses on one name by
that name's larger count.  Limits: each process counts by itself; of at most `ENTRIES` counts the oldest is forgotten.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_SECONDS = 900.0
ENTRIES = 10_000
_MOST = {"both": 5, "client": 20, "name": 50}
Key = tuple[str, str, str]


@dataclass(slots=True)
class _Count:
    failures: int
    until: float


class LoginThrottle:
    """Failures of the last quarter of an hour."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._counts: OrderedDict[Key, _Count] = OrderedDict()

    def wait_seconds(self, name: str, client: str) -> int:
        """How long this client must wait before it may try this name again; 0 = it may now."""
        now = self._now()
        full = [count.until - now for key in _keys(name, client) if (count := self._full(key)) is not None]
        return max(0, math.ceil(max(full, default=0)))

    def failed(self, name: str, client: str) -> None:
        """A password was wrong (counted before it is tried, so that many at once gain nothing)."""
        until = self._now() + WINDOW_SECONDS
        for key in _keys(name, client):
            count = self._counts.pop(key, None)
            failures = count.failures if count is not None and count.until > self._now() else 0
            self._counts[key] = _Count(failures + 1, until)
        while len(self._counts) > ENTRIES:
            self._counts.popitem(last=False)

    def succeeded(self, name: str, client: str) -> None:
        """It was right after all: this name and client begin anew, the others lose what was counted for this try."""
        both, *others = _keys(name, client)
        self._counts.pop(both, None)
        for key in others:
            if key in self._counts:
                self._counts[key].failures -= 1

    def _full(self, key: Key) -> _Count | None:
        count = self._counts.get(key)
        if count is None or count.until <= self._now() or count.failures < _MOST[key[0]]:
            return None
        return count


def _keys(name: str, client: str) -> tuple[Key, Key, Key]:
    name, network = name.strip().lower()[:64], _network(client)
    return ("both", name, network), ("client", "", network), ("name", name, "")


def _network(client: str) -> str:
    """An IPv6 client is its /64: it has more addresses than anybody could count. An IPv4 one may come in IPv6's form."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client[:64]
    address = getattr(address, "ipv4_mapped", None) or address
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
