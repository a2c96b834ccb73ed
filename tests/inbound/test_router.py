"""The router: every address leads somewhere or is refused with the right status."""

from __future__ import annotations

import pytest

from gateway.errors import PermanentFailure
from gateway.inbound.router import MailboxRoute, Router

ROUTER = Router(
    [
        MailboxRoute(address="posts@example.org", kind="posts"),
        MailboxRoute(address="posts+secret@example.org", kind="secret"),
        MailboxRoute(address="*@help.example.org", kind="support"),
        MailboxRoute(address="abuse@help.example.org", kind="desk"),
        MailboxRoute(address="grüße@müller.example", kind="posts"),
    ],
    domains=["example.org", "Help.Example.Org", "müller.example", "bare.example"],
)


@pytest.mark.parametrize(
    ("rcpt_to", "kind"),
    [
        ("posts@example.org", "posts"),
        ("Posts@Example.ORG", "posts"),
        ('"posts"@example.org', "posts"),
        ("posts+holiday@example.org", "posts"),
        ("posts+a+b@example.org", "posts"),
        ("posts+secret@example.org", "secret"),
        ("anyone@help.example.org", "support"),
        ("any+one@help.example.org", "support"),
        ("GRÜSSE@xn--mller-kva.example", "posts"),
        ("postmaster", "postmaster"),
        ("PostMaster@example.org", "postmaster"),
        ("postmaster@help.example.org", "postmaster"),
        ("abuse@bare.example", "postmaster"),
        ("abuse@help.example.org", "desk"),
    ],
)
def test_an_address_leads_to_its_mailbox(rcpt_to: str, kind: str) -> None:
    assert ROUTER.route(rcpt_to).kind == kind


@pytest.mark.parametrize(
    ("rcpt_to", "status"),
    [
        ("nobody@example.org", "5.1.1"),
        ("postsx@example.org", "5.1.1"),
        ("posts@bare.example", "5.1.1"),
        ("posts@elsewhere.example", "5.7.1"),
        ("posts@sub.example.org", "5.7.1"),
        ("postmaster@elsewhere.example", "5.7.1"),
        ("posts", "5.7.1"),
        ("*@example.org", "5.1.1"),
    ],
)
def test_any_other_address_is_refused(rcpt_to: str, status: str) -> None:
    with pytest.raises(PermanentFailure) as refused:
        ROUTER.accepts(rcpt_to)
    assert refused.value.reply.code == 550
    assert refused.value.reply.enhanced_status == status


def test_a_pattern_outside_the_domains_or_given_twice_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"elsewhere\.example is not among the domains"):
        Router([MailboxRoute(address="a@elsewhere.example", kind="posts")], domains=["example.org"])
    with pytest.raises(ValueError, match="twice"):
        Router(
            [MailboxRoute(address=a, kind="posts") for a in ("a@example.org", "A@example.org")], domains=["example.org"]
        )
