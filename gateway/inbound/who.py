"""Who may write to a mailbox: `anyone`, `members` or `secret`.  Rules only: values in, a ruling out; no database.

members: a registered person, and the domain of the only From vouches for the mail (`authenticate`); what a mailbox would show
as the author must be that same address.  secret: an address that was made for a registered person and has not expired.
A mail that claims a member and does not prove it is held, and that member is asked (`store.confirmations`); one that claims
nobody registered is held as well.  What may be proven when DNS answers again waits.  What a person released goes on.
Also knows where answers to such questions go: `photos+TOKEN@…`, signed for one request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from gateway.inbound.authenticate import Authentication, Result
from gateway.inbound.router import MailboxRoute, own_address, plus_of
from gateway.mail.people import People, Person, person_key
from gateway.mail.secret_address import Secret, new_token, read_token
from gateway.mail.tokens import Tokens
from gateway.runtime import Clock

ANYONE, MEMBERS, SECRET = "anyone", "members", "secret"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """Whether a mail may go to its mailbox; `later` = it may be so when DNS answers again; `ask` = who is to be asked."""

    reason: str = ""
    person: Person | None = None
    ask: Person | None = None
    later: bool = False

    @property
    def admits(self) -> bool:
        return not self.reason

    @property
    def ask_id(self) -> str:
        return self.ask.id if self.ask else ""


class WhoMayWrite:
    """Rules by the settings' `who`, the keys of secret addresses and a snapshot of people."""

    def __init__(self, tokens: Tokens, people: Callable[[], People], *, clock: Clock) -> None:
        self._tokens = tokens
        self._people = people
        self._clock = clock

    def new_address(self, route: MailboxRoute, mailbox: str, person: Person, *, days: int | None = None) -> str:
        """A secret address for a person at a mailbox whose `who` is secret; raises ValueError for any other."""
        if route.who != SECRET:
            raise ValueError(f'{mailbox} takes mail from {route.who}: its who is not "secret"')
        today = self._clock().date()
        secret = Secret(handle=person.handle, expires_on=None if days is None else today + timedelta(days=days))
        own = own_address(route, mailbox)
        local, _, domain = own.rpartition("@")
        return f"{local}+{new_token(self._tokens, own, secret)}@{domain}"

    def answer_address(self, address: str, confirmation_id: str) -> str:
        """Where the request is answered: at a mailbox of ours, signed."""
        local, _, domain = address.rpartition("@")
        return f"{local}+{self._tokens.sign(_purpose(address), confirmation_id)}@{domain}"

    def confirmation_of(self, address: str, rcpt_to: str) -> str | None:
        """The request that a mail to `rcpt_to` answers."""
        return self._tokens.read(_purpose(address), plus_of(rcpt_to))

    def is_answer(self, address: str, rcpt_to: str) -> bool:
        return self.confirmation_of(address, rcpt_to) is not None

    def refusal(self, route: MailboxRoute, rcpt_to: str) -> str:
        """Why a door refuses the recipient; the same words for every wrong token."""
        return self._bearer(route, rcpt_to).reason if route.who == SECRET else ""

    def rule(self, route: MailboxRoute, rcpt_to: str, found: Authentication, shown_author: str) -> Ruling:
        """Rules over one recipient of a mail; `shown_author` is the address a mailbox would show as its author's."""
        if route.who == SECRET:
            return self._bearer(route, rcpt_to)
        person = self._people().at(found.author)
        proven = found.is_proven and person is not None and person_key(shown_author) == found.author
        if route.who == ANYONE or proven:
            return Ruling(person=person if proven else None)
        return self._unproven(found, shown_author)

    def _bearer(self, route: MailboxRoute, rcpt_to: str) -> Ruling:
        secret = read_token(self._tokens, own_address(route, rcpt_to), plus_of(rcpt_to))
        person = None if secret is None else self._people().with_handle(secret.handle)
        if secret is None or person is None:
            return Ruling(reason="this mailbox takes mail at secret addresses only, and this is none of them")
        if secret.has_expired(self._clock()):
            return Ruling(reason="this secret address has expired; ask for a new one")
        return Ruling(person=person)

    def _unproven(self, found: Authentication, shown_author: str) -> Ruling:
        claimed = self._people().at(found.author) or self._people().at(shown_author)
        if claimed is None:
            return Ruling(reason=f"members only: {found.author or shown_author or 'nobody'} is not registered")
        if found.verdict is Result.TEMPERROR:
            return Ruling(reason=f"members only: {found.reason}", later=True, ask=claimed)
        why = found.reason or "its From may be read as another address"
        return Ruling(reason=f"members only: it says it is from {claimed.address}, unproven: {why}"[:500], ask=claimed)


def _purpose(address: str) -> str:
    return f"confirm {address.casefold()}"
