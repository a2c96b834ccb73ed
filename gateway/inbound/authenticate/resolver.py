"""Our resolver: DNS answers for everything that is asked about a sender, cached, and never in the way of the event loop.

`Resolver` belongs to the process and has the cache; `Budget` is what one mail may ask.  Promises: an answer, a proven absence
(`()`) or `DnsFault`, which is never taken for an absence; a query ends after `query_seconds`, a mail's questions after their
number or their time is used up; the cache holds a bounded number of small answers, absences and faults for a short time.
Limits: no DNSSEC; answers over 16 KiB are a fault.  Home of dnspython.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.resolver
import dns.rrset

_SERVER = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9.]+|[0-9a-f]*:[0-9a-f]*:[0-9a-f:.]*))(?::(\d{1,5}))?", re.IGNORECASE)
Answer = tuple[str | bytes, ...]

QUERY_SECONDS = 4.0
MAIL_SECONDS = 20.0
MAIL_QUERIES = 80
_TRY_SECONDS = 1.5
_MAX_ANSWER_BYTES = 16 * 1024
_MAX_CACHED_BYTES = 4 * 1024
_MAX_CACHED = 4_000
_MIN_SECONDS, _MAX_SECONDS, _ABSENT_SECONDS, _FAULT_SECONDS = 30.0, 3600.0, 60.0, 10.0


class DnsFault(Exception):
    """No answer now: a time-out, a server's failure, or something that is no answer. Says nothing about the domain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    until: float
    answer: Answer | DnsFault


class Resolver:
    """Asks the servers given (`host` or `host:port`), else those of the system."""

    def __init__(
        self,
        servers: Sequence[str] = (),
        *,
        query_seconds: float = QUERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ValueError for what is no server."""
        self._query_seconds = query_seconds
        self._clock = clock
        self._cache: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._asking: dict[tuple[str, str], asyncio.Future[Answer]] = {}
        self._resolver = _configured(servers, min(_TRY_SECONDS, query_seconds))

    @property
    def cached(self) -> int:
        """How many answers are kept."""
        return len(self._cache)

    async def ask(self, name: str, kind: str) -> Answer:
        """The records of a name: addresses and names as text, TXT as octets, MX in order of preference; raises DnsFault."""
        key = (name.lower().rstrip("."), kind)
        kept = self._cache.get(key)
        if kept is not None and kept.until > self._clock():
            self._cache.move_to_end(key)
            if isinstance(kept.answer, DnsFault):
                raise DnsFault(str(kept.answer))
            return kept.answer
        return await self._once(key)

    async def _once(self, key: tuple[str, str]) -> Answer:
        """Two mails that ask the same at the same time are one question; who gives up does not end it for the other."""
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.ensure_future(self._look_up(key))
            self._asking[key] = asking
            asking.add_done_callback(lambda done: self._asking.pop(key, None))
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(asking)

    async def _look_up(self, key: tuple[str, str]) -> Answer:
        try:
            async with asyncio.timeout(self._query_seconds + 1):
                answer, seconds = await self._query(*key)
        except (TimeoutError, DnsFault) as fault:
            told = fault if isinstance(fault, DnsFault) else DnsFault(f"{key[0]}: no answer in time")
            self._keep(key, told, _FAULT_SECONDS)
            raise told from None
        self._keep(key, answer, seconds)
        return answer

    async def _query(self, name: str, kind: str) -> tuple[Answer, float]:
        try:
            asked = dns.name.Name([label.encode() for label in name.split(".")] + [b""])
        except (dns.exception.DNSException, UnicodeError):
            return (), _ABSENT_SECONDS  # no name that DNS could hold
        try:
            found = await self._resolver.resolve(
                asked, kind, raise_on_no_answer=False, search=False, lifetime=self._query_seconds
            )
        except dns.resolver.NXDOMAIN:
            return (), _ABSENT_SECONDS
        # Broad: whatever a hostile server makes the library raise is an answer that we do not have.
        except (dns.exception.DNSException, OSError, ValueError, AttributeError, IndexError) as error:
            raise DnsFault(f"{name}: {_short(error)}") from None
        if found.rrset is None:
            return (), _ABSENT_SECONDS
        answer = tuple(_value(record, kind) for record in _ordered(found.rrset, kind))
        if sum(map(len, answer)) > _MAX_ANSWER_BYTES:
            raise DnsFault(f"{name}: an answer beyond all measure")
        return answer, min(max(float(found.rrset.ttl), _MIN_SECONDS), _MAX_SECONDS)

    def _keep(self, key: tuple[str, str], answer: Answer | DnsFault, seconds: float) -> None:
        if not isinstance(answer, DnsFault) and sum(map(len, answer)) > _MAX_CACHED_BYTES:
            return
        self._cache[key] = _Kept(until=self._clock() + seconds, answer=answer)
        self._cache.move_to_end(key)
        while len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)


class Budget:
    """The questions of one mail: so many, until so long; what is beyond is a DnsFault."""

    def __init__(self, resolver: Resolver, *, queries: int = MAIL_QUERIES, seconds: float = MAIL_SECONDS) -> None:
        self._resolver = resolver
        self._queries = queries
        self._until = asyncio.get_running_loop().time() + seconds

    async def ask(self, name: str, kind: str) -> Answer:
        if self._queries <= 0:
            raise DnsFault("this mail asked too many questions")
        self._queries -= 1
        try:
            async with asyncio.timeout_at(self._until):
                return await self._resolver.ask(name, kind)
        except TimeoutError:
            raise DnsFault("no time is left for this mail's questions") from None


def _configured(servers: Sequence[str], try_seconds: float) -> dns.asyncresolver.Resolver:
    resolver = dns.asyncresolver.Resolver(configure=False)
    if servers:
        resolver.nameservers = [_nameserver(server) for server in servers]
    else:
        try:
            resolver.read_resolv_conf("/etc/resolv.conf")
        except dns.exception.DNSException:
            resolver.nameservers = ["127.0.0.1"]  # what the C library asks on a host that names no server
    resolver.timeout = try_seconds
    resolver.cache = None
    resolver.use_edns(0, 0, 1232)
    return resolver


def _nameserver(server: str) -> dns.nameserver.Nameserver:
    found = _SERVER.fullmatch(server)
    try:
        if found is None or not 0 < int(found[3] or 53) < 65536:
            raise ValueError
        return dns.nameserver.Do53Nameserver(str(ipaddress.ip_address(found[1] or found[2])), int(found[3] or 53))
    except ValueError:
        text = f"{server!r} is not an address of a DNS server like 192.0.2.53 or [2001:db8::53]:5353"
        raise ValueError(text) from None


def _ordered(rrset: dns.rrset.RRset, kind: str) -> list[Any]:
    records: list[Any] = list(rrset)
    return sorted(records, key=lambda record: int(record.preference)) if kind == "MX" else records


def _value(record: Any, kind: str) -> str | bytes:
    if kind == "TXT":
        text: bytes = b"".join(record.strings)
        return text
    if kind in ("A", "AAAA"):
        return str(record.address)
    name: dns.name.Name = record.exchange if kind == "MX" else record.target
    return name.to_text(omit_final_dot=True)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
