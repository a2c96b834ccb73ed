"""DMARC (RFC 7489): does a domain that vouches for the mail belong to the one in From.  Home of dmarc and publicsuffixlist.

The library's relaxed comparison takes any parent for aligned, `com` for `example.com`: identifiers that are public suffixes are
dropped before it sees them, and both sides must have the same organizational domain besides.  Without a record the relaxed
comparison holds; a record that cannot be read, or more than one, leaves the strict one.
Promise: a record that cannot be looked up is `temperror`; then only an equal domain vouches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import dmarc
from publicsuffixlist import PublicSuffixList

from gateway.inbound.authenticate.resolver import DnsFault
from gateway.inbound.authenticate.result import Authentication, DmarcCheck, Result
from gateway.inbound.authenticate.spf import Ask

_MAX_RECORD_BYTES = 2_048


@dataclass(frozen=True, slots=True)
class Identifier:
    """A domain one mechanism vouches with (`by` is `dkim` or `spf`), and what came of it."""

    domain: str
    by: str
    result: Result


@dataclass(frozen=True, slots=True)
class _Policy:
    """How close a domain must be, and what is to be told of it."""

    check: DmarcCheck
    dkim: dmarc.DMARCAlignment = dmarc.DMARCAlignment.STRICT
    spf: dmarc.DMARCAlignment = dmarc.DMARCAlignment.STRICT


class PublicSuffixes:
    """Where domains of different owners part; reads its list at the first question."""

    @cached_property
    def _list(self) -> PublicSuffixList:
        return PublicSuffixList()

    def warm(self) -> None:
        """Reads the list: a tenth of a second, so for a thread."""
        assert self._list

    def is_suffix(self, domain: str) -> bool:
        """Whether nobody owns it as a whole, like `com`, `co.uk` and `github.io`; single labels are such."""
        return "." not in domain or bool(self._list.is_public(domain))

    def organization(self, domain: str) -> str:
        """The domain its owner registered, '' for a public suffix."""
        return "" if self.is_suffix(domain) else str(self._list.privatesuffix(domain) or "")


async def judge(
    author_domain: str, identifiers: Sequence[Identifier], ask: Ask, suffixes: PublicSuffixes
) -> Authentication:
    """The verdict, what the domain says of itself, and which domain vouches; the rest of the value is for the caller."""
    if suffixes.is_suffix(author_domain):
        reason = f"{author_domain} is a public suffix: nobody speaks for all of it"
        return Authentication(verdict=Result.FAIL, reason=reason)
    policy = await _policy(author_domain, ask, suffixes)
    owned = [item for item in identifiers if not suffixes.is_suffix(item.domain)]
    passed = [item for item in owned if item.result is Result.PASS]
    aligned = next((item for item in passed if _is_aligned(author_domain, item, policy, suffixes)), None)
    if aligned is not None:
        check = replace(policy.check, result=policy.check.result if _is_told(policy) else Result.PASS)
        return Authentication(
            verdict=Result.PASS, reason="", dmarc=check, aligned_domain=aligned.domain, aligned_by=aligned.by
        )
    if later := _may_pass_later(author_domain, owned, policy, suffixes):
        return Authentication(verdict=Result.TEMPERROR, reason=later, dmarc=policy.check)
    check = replace(policy.check, result=policy.check.result if _is_told(policy) else Result.FAIL)
    return Authentication(verdict=Result.FAIL, reason=_why_not(author_domain, owned), dmarc=check)


def _is_told(policy: _Policy) -> bool:
    """Whether the record itself is the news: there is none, or none to be read."""
    return policy.check.result is not Result.PASS


def _is_aligned(author_domain: str, item: Identifier, policy: _Policy, suffixes: PublicSuffixes) -> bool:
    mode = policy.dkim if item.by == "dkim" else policy.spf
    same = suffixes.organization(item.domain) == suffixes.organization(author_domain) != ""
    return same and bool(dmarc.DMARC(_Suffixes(suffixes)).check_alignment(author_domain, item.domain, mode))


def _may_pass_later(author_domain: str, items: Sequence[Identifier], policy: _Policy, suffixes: PublicSuffixes) -> str:
    """Why the verdict may be another one when DNS answers again, '' when it cannot."""
    relaxed = replace(policy, dkim=dmarc.DMARCAlignment.RELAXED, spf=dmarc.DMARCAlignment.RELAXED)
    known = relaxed if policy.check.result is Result.TEMPERROR else policy
    for item in items:
        waits = item.result is Result.TEMPERROR or (item.result is Result.PASS and known is relaxed)
        if waits and _is_aligned(author_domain, item, known, suffixes):
            return f"{item.by} of {item.domain} cannot be looked up now"
    return ""


def _why_not(author_domain: str, items: Sequence[Identifier]) -> str:
    others = sorted({item.domain for item in items if item.result is Result.PASS})
    if others:
        return f"only {', '.join(others[:3])} vouches for it, not {author_domain}"
    return f"neither a signature nor the sending host vouches for {author_domain}"


async def _policy(domain: str, ask: Ask, suffixes: PublicSuffixes) -> _Policy:
    organization = suffixes.organization(domain)
    try:
        for asked in dict.fromkeys((domain, organization)):
            if found := [text for text in await ask(f"_dmarc.{asked}", "TXT") if _is_record(text)]:
                return _read(found, asked, domain)
    except DnsFault as fault:
        return _Policy(DmarcCheck(result=Result.TEMPERROR, domain=domain, reason=str(fault)))
    check = DmarcCheck(domain=domain, reason="the domain has no record")
    return _Policy(check, dmarc.DMARCAlignment.RELAXED, dmarc.DMARCAlignment.RELAXED)


def _is_record(text: str | bytes) -> bool:
    return isinstance(text, bytes) and text[:8] == b"v=DMARC1" and text[8:9] in (b"", b";", b" ")


def _read(found: Sequence[str | bytes], at: str, domain: str) -> _Policy:
    """The policy in a record at `at`, which is `domain` or the domain it belongs to."""
    unread = DmarcCheck(result=Result.PERMERROR, domain=at)
    if len(found) > 1:
        return _Policy(replace(unread, reason="it has more than one record"))
    text = found[0] if isinstance(found[0], bytes) else b""
    if len(text) > _MAX_RECORD_BYTES:
        return _Policy(replace(unread, reason="its record is longer than honest ones"))
    try:
        policy = dmarc.DMARC().parse_record(text.decode("ascii"), domain, strict=False)
    except (dmarc.Error, ValueError) as error:
        return _Policy(replace(unread, reason=f"its record cannot be read: {error}"[:200]))
    told = policy.sp if at != domain and policy.sp.value else policy.p
    check = DmarcCheck(result=Result.PASS, domain=at, policy=told.value or "")
    return _Policy(check, policy.adkim, policy.aspf)


class _Suffixes:
    """The list in the shape the library asks for."""

    def __init__(self, suffixes: PublicSuffixes) -> None:
        self._suffixes = suffixes

    def get_public_suffix(self, domain: str) -> str:
        return self._suffixes.organization(domain) or domain
