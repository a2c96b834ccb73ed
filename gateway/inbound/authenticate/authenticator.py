"""The authenticator: judges one mail by everything the package knows; see the package for what it promises."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gateway.inbound.authenticate.dmarc import Identifier, PublicSuffixes, judge
from gateway.inbound.authenticate.header import Header, Unreadable, read_header
from gateway.inbound.authenticate.own_mta import junk_verdict, own_results, read_results
from gateway.inbound.authenticate.resolver import Budget, Resolver
from gateway.inbound.authenticate.result import Authentication, Result
from gateway.inbound.authenticate.signatures import check_signatures
from gateway.inbound.authenticate.spf import check_helo, check_mail_from
from gateway.inbound.xforward import TrustedHosts
from gateway.mail.envelope import Envelope
from gateway.mail.parse import Cage


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedMta:
    """Our own mail server: the name it signs its results with ('' for none), the fields it marks junk by, where it stands."""

    authserv_id: str = ""
    junk_fields: Sequence[str] = ()
    hosts: TrustedHosts = field(default_factory=TrustedHosts)


class Authenticator:
    """One for all workers of a process."""

    def __init__(self, resolver: Resolver, cage: Cage, *, trusted: TrustedMta | None = None) -> None:
        self._resolver = resolver
        self._cage = cage
        self._trusted = trusted or TrustedMta()
        self._suffixes = PublicSuffixes()

    async def authenticate(self, envelope: Envelope, octets: bytes) -> Authentication:
        """Judges one mail; raises only TransientFailure, where no child of the cage starts."""
        try:
            header = read_header(octets)
        except Unreadable as why:
            found = Authentication(verdict=Result.FAIL, reason=str(why))
        else:
            found = await self._judged(envelope, octets, header)
        return replace(found, junk=junk_verdict(octets, self._trusted.junk_fields))

    async def _judged(self, envelope: Envelope, octets: bytes, header: Header) -> Authentication:
        author, doubt = _author(header)
        budget = Budget(self._resolver)
        if not doubt and envelope.author_by_login and envelope.author_by_login == author:
            return _by_login(author)
        told = self._told_by_mta(envelope, header)
        found = told or await self._looked_up(envelope, octets, header, budget, author)
        if doubt:
            return replace(found, verdict=Result.FAIL, reason=doubt)
        await asyncio.to_thread(self._suffixes.warm)
        judged = await self._verdict(envelope, found, author, budget)
        if told is not None and judged.is_proven and header.repeated() and judged.aligned_by != "login":
            # Our mail server does not say which of them the signature was over.
            return replace(judged, verdict=Result.FAIL, reason=f"it has more than one {min(header.repeated()).title()}")
        if told is None or judged.is_proven or _has_judged(told):
            return judged
        filled = _filled(told, await self._looked_up(envelope, octets, header, budget, author))
        return await self._verdict(envelope, filled, author, budget)

    def _told_by_mta(self, envelope: Envelope, header: Header) -> Authentication | None:
        """Not where somebody has logged in here: he writes mail, wherever he sits, and is no mail server of ours."""
        if not self._trusted.authserv_id or not envelope.by_trusted_host or envelope.auth:
            return None
        fields = own_results(header, self._trusted.authserv_id)
        return read_results(fields, header, envelope) if fields else None

    async def _looked_up(
        self, envelope: Envelope, octets: bytes, header: Header, budget: Budget, author: str
    ) -> Authentication:
        """After a login the host says nothing of who wrote: it is somebody's own machine, and he has said who he is.

        Neither does a mail server of ours by its address: it would vouch for all that it relays.
        """
        signatures = check_signatures(octets, header, budget.ask, self._cage, prefer=_domain(author))
        if envelope.auth:
            dkim, arc = await signatures
            return Authentication(source="own", dkim=dkim, arc=arc)
        client, helo = ("" if envelope.client in self._trusted.hosts else envelope.client), envelope.helo
        spf, helo_check, (dkim, arc) = await asyncio.gather(
            check_mail_from(client, envelope.mail_from, helo, budget.ask),
            check_helo(client, helo, budget.ask),
            signatures,
        )
        return Authentication(source="own", spf=spf, helo=helo_check, dkim=dkim, arc=arc)

    async def _verdict(self, envelope: Envelope, found: Authentication, author: str, budget: Budget) -> Authentication:
        """SPF of HELO is left out: it says who runs the host, not who wrote the mail."""
        domain = _domain(author)
        found = replace(found, author=author)
        if found.login == author:
            return replace(found, verdict=Result.PASS, reason="", aligned_domain=domain, aligned_by="login")
        if _has_judged(found):
            return _by_word_of_mta(found, domain)
        identifiers = [Identifier(item.domain, "dkim", item.result) for item in found.dkim if item.domain]
        identifiers += [Identifier(found.spf.domain, "spf", found.spf.result)] if found.spf.domain else []
        if not any(item.result in (Result.PASS, Result.TEMPERROR) for item in identifiers):
            # Whatever the domain says of itself cannot change that, so that it is not asked.
            reason = f"neither a signature nor the sending host vouches for {domain}"
            if envelope.auth:
                reason = (
                    f"{envelope.auth} has logged in, which is not the author, and no signature vouches for {domain}"
                )
            return replace(found, verdict=Result.FAIL, reason=reason)
        judged = await judge(domain, identifiers, budget.ask, self._suffixes)
        return replace(
            found,
            verdict=judged.verdict,
            reason=judged.reason,
            aligned_domain=judged.aligned_domain,
            aligned_by=judged.aligned_by,
            dmarc=judged.dmarc,
        )


def _has_judged(found: Authentication) -> bool:
    """Whether our mail server has come to a verdict of its own; then nothing it left out would change that."""
    return found.dmarc.result not in (Result.NONE, Result.TEMPERROR)


def _filled(told: Authentication, own: Authentication) -> Authentication:
    """What our mail server did not say, looked up by us."""
    spf = own.spf if told.spf.result is Result.NONE else told.spf
    helo = own.helo if told.helo.result is Result.NONE else told.helo
    return replace(told, source="both", spf=spf, helo=helo, dkim=told.dkim or own.dkim, arc=own.arc)


def _by_login(author: str) -> Authentication:
    return Authentication(
        verdict=Result.PASS,
        reason="",
        author=author,
        aligned_domain=_domain(author),
        aligned_by="login",
        source="login",
        login=author,
    )


def _by_word_of_mta(found: Authentication, domain: str) -> Authentication:
    """Our mail server looked at DMARC itself: that is the verdict, if it is about this domain."""
    told = found.dmarc
    if told.result is Result.PASS and told.domain == domain:
        return replace(found, verdict=Result.PASS, reason="", aligned_domain=domain, aligned_by="dmarc")
    return replace(
        found,
        verdict=Result.FAIL,
        reason=f"our mail server found dmarc={told.result} for {told.domain or 'no domain'}",
    )


def _author(header: Header) -> tuple[str, str]:
    """The author's address, or why it is not known."""
    try:
        return header.author(), ""
    except Unreadable as why:
        return "", str(why)


def _domain(address: str) -> str:
    return address.rpartition("@")[2]
