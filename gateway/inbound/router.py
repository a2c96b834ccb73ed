"""The router: which mailbox an address leads to, or why none does.

A kind of mailbox may refuse some of its addresses (`Refusal`): asked at the doors only, after the route is found.
Asked twice: by the doors at RCPT, so that nothing is accepted and bounced later, and by ingest.  Pure: settings in, answers
out; no database, no clock.
Order: the exact address, the address without its plus part, postmaster@ and abuse@ (they exist for every local domain, and
bare `postmaster` too), then the backstop `*@domain`.  Domains and our own local parts are compared without case.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.errors import FaultOwner, PermanentFailure
from gateway.mail.addresses import domain_to_ascii
from gateway.reply import Reply

Refusal = Callable[[str, str], str]
"""(the mailbox's own address, rcpt_to) → why it is refused, '' to take it."""


class Guard(Protocol):
    """Knows what stands behind the + of addresses that only some may use (`inbound.who`); needs no database."""

    def refusal(self, route: MailboxRoute, rcpt_to: str) -> str:
        """Why a door refuses the recipient, '' to take it."""
        ...

    def is_answer(self, address: str, rcpt_to: str) -> bool:
        """Whether it is where a request of ours to confirm is answered."""
        ...


POSTMASTER = "postmaster"
_ROLES = frozenset({"postmaster", "abuse"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxRoute:
    """An address pattern (`posts@example.org` or `*@example.org`), the kind of mailbox it leads to, and who may write there."""

    address: str
    kind: str
    who: str = "anyone"


class Router:
    """Routes for local domains; every other domain is somebody else's."""

    def __init__(
        self,
        mailboxes: Sequence[MailboxRoute],
        *,
        domains: Sequence[str],
        refusals: Mapping[str, Refusal] | None = None,
        guard: Guard | None = None,
    ) -> None:
        """Takes routes, what kinds refuse, and who guards addresses that not everybody may know.

        Raises ValueError for a pattern outside the domains or given twice.
        """
        self._refusals = dict(refusals or {})
        self._guard = guard
        self._domains = {domain_to_ascii(domain) for domain in domains}
        self._routes: dict[tuple[str, str], MailboxRoute] = {}
        for route in mailboxes:
            key = _key(route.address)
            if key[1] not in self._domains:
                raise ValueError(f"{route.address}: {key[1] or 'no domain'} is not among the domains")
            if key in self._routes:
                raise ValueError(f"{route.address} is given twice")
            self._routes[key] = route

    def route(self, rcpt_to: str) -> MailboxRoute:
        """Returns the route of an address; raises PermanentFailure (5.1.1 unknown, 5.7.1 not ours)."""
        if rcpt_to.lower() == POSTMASTER:
            return MailboxRoute(address=POSTMASTER, kind=POSTMASTER)
        local, domain = _key(rcpt_to)
        if domain not in self._domains:
            raise _refusal("5.7.1", f"relaying denied: {domain or rcpt_to} is not served here")
        bare = local.partition("+")[0]
        found = self._routes.get((local, domain)) or self._routes.get((bare, domain))
        if found is None and bare in _ROLES:
            return MailboxRoute(address=f"{bare}@{domain}", kind=POSTMASTER)
        found = found or self._routes.get(("*", domain))
        if found is None:
            raise _refusal("5.1.1", f"{local}@{domain} is unknown here")
        return found

    def patterns(self) -> list[tuple[str, str]]:
        """All that leads somewhere, as (local part, domain in A-labels), plus parts aside; `*` is a backstop."""
        roles = {(role, domain) for role in _ROLES for domain in self._domains}
        return sorted(roles | set(self._routes))

    def accepts(self, rcpt_to: str) -> None:
        """Raises what `route` raises, or 5.1.1 for what the mailbox refuses; the question of the doors."""
        route = self.route(rcpt_to)
        if self._guard:
            if self._guard.is_answer(own_address(route, rcpt_to), rcpt_to):
                return
            if reason := self._guard.refusal(route, rcpt_to):
                raise _refusal("5.1.1", reason)
        refusal = self._refusals.get(route.kind)
        if refusal and (reason := refusal(own_address(route, rcpt_to), rcpt_to)):
            raise _refusal("5.1.1", reason)


def own_address(route: MailboxRoute, rcpt_to: str) -> str:
    """The mailbox's own address: the route's, or of a backstop the recipient's without its plus part."""
    if not route.address.startswith("*@"):
        return route.address
    local, domain = _key(rcpt_to)
    return f"{local.partition('+')[0]}@{domain}"


def plus_of(rcpt_to: str) -> str:
    """What stands behind the + of an address."""
    return rcpt_to.rpartition("@")[0].strip('"').partition("+")[2]


def recipient_key(rcpt_to: str) -> tuple[str, str, str]:
    """What all ways to write one of our recipients share; case counts behind the + only, where it may mean something."""
    local, domain = _key(rcpt_to)
    return local.partition("+")[0], plus_of(rcpt_to), domain


def _key(address: str) -> tuple[str, str]:
    local, _, domain = address.rpartition("@")
    if local.startswith('"') and local.endswith('"'):
        local = local[1:-1]
    try:
        domain = domain_to_ascii(domain)
    except ValueError:
        domain = domain.lower()
    return unicodedata.normalize("NFC", local).casefold(), domain


def _refusal(status: str, text: str) -> PermanentFailure:
    reply = Reply(code=550, enhanced_status=status, text=text)
    return PermanentFailure(text, reply=reply, owner=FaultOwner.RECIPIENT)
