"""How much a client and a sender may ask of a door in a while; more is put off (4xx), never refused for good.

Shares: mails, recipients and errors of a client; mails and recipients of a sender.  A client is an IPv4 address or an IPv6 /64; a
sender is who logged in, else a mail_from as it comes from one network (/24, /64): forging it elsewhere uses up nobody's share.
Not counted are the null sender as a sender; and as a client who comes by the UNIX socket, from this host or from
`trusted_hosts`: they speak for others.
Promise: bounded memory: of at most `ENTRIES` counts a share the one longest unused is forgotten.
Limits: who sends through one host or network shares with all who do: what others use up is put off, never refused.
Each process counts by itself, from zero after its start.  A share is a bucket that empties steadily: who was silent may
bring all of it at once, and again as much within the next window.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ENTRIES = 10_000
_KEY_CHARACTERS = 320
_MAPPED = "::ffff:"
_ROUNDING_SECONDS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What each may bring in a window; 0 = any number."""

    window_seconds: float = 600.0
    mails_per_client: int = 1_000
    recipients_per_client: int = 5_000
    errors_per_client: int = 200
    mails_per_sender: int = 300
    recipients_per_sender: int = 3_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """A share that is used up; `name` is its setting, and in so many seconds there is some of it again."""

    name: str
    wait_seconds: float


class Rate:
    """At most `most` in `seconds` for each key: one number a key, the time at which its bucket will be empty again."""

    def __init__(self, most: int, seconds: float, now: Callable[[], float]) -> None:
        self._step = seconds / most if most else 0.0
        self._seconds = seconds
        self._now = now
        self._empty_at: OrderedDict[str, float] = OrderedDict()

    def wait_seconds(self, key: str) -> float:
        """How long until one more fits; 0 = it does now."""
        now = self._now()
        filled = max(0.0, self._empty_at.get(key, now) - now)
        wait = filled + self._step - self._seconds if self._step else 0.0
        return wait if wait > _ROUNDING_SECONDS else 0.0

    def take(self, key: str) -> None:
        """Counts one; what does not fit any more is not counted."""
        if not self._step or self.wait_seconds(key):
            return
        now = self._now()
        self._empty_at[key] = max(now, self._empty_at.pop(key, now)) + self._step
        while len(self._empty_at) > ENTRIES:
            self._empty_at.popitem(last=False)

    def __len__(self) -> int:
        return len(self._empty_at)


class Throttle:
    """The counts of one door.  Keys that are empty are not counted."""

    def __init__(self, shares: Shares, now: Callable[[], float] = time.monotonic) -> None:
        def rate(most: int) -> Rate:
            return Rate(most, shares.window_seconds, now)

        self._mails = {
            "mails_per_client": rate(shares.mails_per_client),
            "mails_per_sender": rate(shares.mails_per_sender),
        }
        self._recipients = {
            "recipients_per_client": rate(shares.recipients_per_client),
            "recipients_per_sender": rate(shares.recipients_per_sender),
        }
        self._errors = {"errors_per_client": rate(shares.errors_per_client)}

    def mail(self, client: str, sender: str) -> Spent | None:
        """Counts a mail for both, unless one of them has no share left."""
        return _take(self._mails, (client, sender))

    def recipient(self, client: str, sender: str) -> Spent | None:
        return _take(self._recipients, (client, sender))

    def error(self, client: str) -> None:
        _take(self._errors, (client,))

    def too_many_errors(self, client: str) -> Spent | None:
        return _spent(self._errors, (client,))


def _take(rates: dict[str, Rate], keys: Sequence[str]) -> Spent | None:
    if not any(keys):
        return None
    spent = _spent(rates, keys)
    if spent is None:
        for rate, key in zip(rates.values(), keys, strict=True):
            if key:
                rate.take(key)
    return spent


def _spent(rates: dict[str, Rate], keys: Sequence[str]) -> Spent | None:
    waits = [
        Spent(name=name, wait_seconds=rate.wait_seconds(key))
        for (name, rate), key in zip(rates.items(), keys, strict=True)
        if key
    ]
    longest = max(waits, key=lambda spent: spent.wait_seconds, default=None)
    return longest if longest is not None and longest.wait_seconds else None


def client_address(peer: str) -> str:
    """Who opened a connection: at a socket for both families (systemd's are) IPv4 comes in IPv6's form, and is IPv4 all the same."""
    return peer[len(_MAPPED) :] if peer.startswith(_MAPPED) and "." in peer else peer


def client_key(client: str) -> str:
    """Whom a connection counts for: an IPv4 address, or an IPv6 network of 64 bits (one host owns it all)."""
    return _network(client, 32)


def sender_key(login: str, mail_from: str, client: str) -> str:
    """Whom a mail counts for beside its client; '' for the null sender of a stranger."""
    if login:
        return f"login {login}"[:_KEY_CHARACTERS]
    return f"{mail_from.casefold()[:_KEY_CHARACTERS]} {_network(client, 24)}" if mail_from else ""


def is_loopback(client: str) -> bool:
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _network(client: str, bits: int) -> str:
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    address = getattr(address, "ipv4_mapped", None) or address
    network = ipaddress.ip_network((address, 64 if address.version == 6 else bits), strict=False)
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)
