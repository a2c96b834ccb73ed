"""SPF (RFC 7208): may this client speak for that domain.  pyspf decides, our resolver answers; home of pyspf.

pyspf asks DNS in the middle of its work and would wait there.  It is run anew instead with every answer known so far, until it
asks for nothing new: it never waits, needs no thread that hostile name servers could keep, and its own limits (10 lookups, 2
void ones) hold in each run.  Promises: every fault of DNS is `temperror`, everything pyspf raises `permerror`, and neither is
`fail`.  Explanations (exp=) are not fetched: nobody is told a stranger's words.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Mapping

import spf as pyspf

from gateway.inbound.authenticate.resolver import Answer, DnsFault
from gateway.inbound.authenticate.result import Result, SpfCheck
from gateway.mail.addresses import domain_to_ascii

Ask = Callable[[str, str], Awaitable[Answer]]
Known = dict[tuple[str, str], Answer | DnsFault]

_MAX_RUNS = 120
_MAX_RECORD_BYTES = 2_048
_NO_CLIENT = "no client address is known to check"


class _NotYetKnown(BaseException):
    """pyspf asked something that was not asked before. No Exception: pyspf has a bare `except: pass`."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.question = (name, kind)


async def check_mail_from(client: str, mail_from: str, helo: str, ask: Ask) -> SpfCheck:
    """SPF of the envelope's sender; a null sender has none to check."""
    local, _, domain = mail_from.rpartition("@")
    if not domain:
        return SpfCheck(reason="the null sender has no domain")
    return await _check(client, "mailfrom", local, domain, helo, ask)


async def check_helo(client: str, helo: str, ask: Ask) -> SpfCheck:
    """SPF of the name the client calls itself; told, and never a proof of who wrote a mail."""
    return await _check(client, "helo", "postmaster", helo, helo, ask)


async def _check(client: str, identity: str, local: str, domain: str, helo: str, ask: Ask) -> SpfCheck:
    address = public_address(client)
    if address is None:
        return SpfCheck(identity=identity, reason=_NO_CLIENT)
    try:
        domain = domain_to_ascii(domain)
    except ValueError:
        return SpfCheck(identity=identity, reason=f"{domain[:100]!r} is no domain")
    if domain.startswith("[") or "." not in domain:
        return SpfCheck(identity=identity, domain=domain, reason="not a domain that SPF is for")
    result, reason = await evaluate(address, f"{local}@{domain}", helo, ask)
    return SpfCheck(result=result, domain=domain, identity=identity, reason=reason)


async def evaluate(client: str, sender: str, helo: str, ask: Ask) -> tuple[Result, str]:
    """check_host() of RFC 7208, section 4: the result, and why where that is worth saying."""
    known: Known = {}
    for _ in range(_MAX_RUNS):
        await asyncio.sleep(0)  # what is cached answers at once, and a run may take some milliseconds
        try:
            return _run(client, sender, helo, known)
        except _NotYetKnown as missing:
            try:
                known[missing.question] = await ask(*missing.question)
            except DnsFault as fault:
                known[missing.question] = fault
    return Result.PERMERROR, "it asks for too many names"


def public_address(client: str) -> str | None:
    """The client's address as SPF takes it; None for none, and for this host itself."""
    text = client.strip("[]").removeprefix("IPv6:").partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None) or address
    return None if mapped.is_loopback or mapped.is_unspecified else str(mapped)


def _run(client: str, sender: str, helo: str, known: Known) -> tuple[Result, str]:
    try:
        query = _Query(client, sender, helo, known)
        result, _, told = query.check()
        return Result(result), "" if result in ("pass", "none") else str(told)[:200]
    # Broad: pyspf raises AssertionError, IndexError and others for records it cannot read.
    except Exception as error:  # noqa: BLE001
        return Result.PERMERROR, f"the record cannot be read ({type(error).__name__})"


class _Query(pyspf.query):  # type: ignore[misc]  # pyspf has no types
    """One run of pyspf against the answers known so far."""

    def __init__(self, client: str, sender: str, helo: str, known: Mapping[tuple[str, str], Answer | DnsFault]) -> None:
        super().__init__(i=client, s=sender, h=helo, strict=True)
        self._known = known

    def dns(self, name: str, qtype: str, cnames: object = None, ignore_void: bool = False) -> list[object]:
        """What pyspf asks: addresses, (preference, name) pairs, names, or tuples of strings."""
        name = name.rstrip(".").lower()
        if not name or not all(0 < len(label.encode()) < 64 for label in name.split(".")):
            return []
        answer = self._answer(name, qtype)
        if not answer and not ignore_void:
            self.void_lookups += 1
            if self.void_lookups > pyspf.MAX_VOID_LOOKUPS:
                raise pyspf.PermError(f"Void lookup limit of {pyspf.MAX_VOID_LOOKUPS} exceeded")
        if qtype == "MX":
            return list(enumerate(answer))
        return [(item,) for item in answer] if qtype == "TXT" else list(answer)

    def _answer(self, name: str, qtype: str) -> Answer:
        try:
            answer = self._known[name, qtype]
        except KeyError:
            raise _NotYetKnown(name, qtype) from None
        if isinstance(answer, DnsFault):
            raise pyspf.TempError(f"DNS {answer}")
        if any(len(item) > _MAX_RECORD_BYTES and item[:6].lower() == b"v=spf1" for item in answer):
            raise pyspf.PermError("a record too long to be an honest one")
        return answer

    def validated_ptrs(self) -> list[str]:
        """Names of the client that lead back to it; a name whose lookup fails is passed over (RFC 7208, section 5.5)."""
        try:
            names = [str(name) for name in self.dns_ptr(self.i)][: pyspf.MAX_PTR]
        except pyspf.TempError:
            return []
        return [name for name in names if self._leads_back(name)]

    def _leads_back(self, name: str) -> bool:
        try:
            return bool(self.cidrmatch(self.dns_a(name, self.A), self.cidrmax))
        except pyspf.TempError:
            return False

    def get_explanation(self, spec: str) -> None:
        """Nothing: see the module."""
