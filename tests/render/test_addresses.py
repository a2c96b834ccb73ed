"""The mailbox grammar, case by case."""

from __future__ import annotations

import pytest

from gateway.mail.addresses import (
    MAX_SENDER_CHARACTERS,
    Address,
    domain_to_ascii,
    needs_smtputf8,
    parse_address,
    parse_mailbox,
    parse_sender,
    wire_mailbox,
)

GOOD = {
    "ann@example.org": "ann@example.org",
    "o'hara+x/y=z@example.org": "o'hara+x/y=z@example.org",
    "ann@localhost": "ann@localhost",
    "Ann@EXAMPLE.org": "Ann@example.org",
    '"ann"@example.org': "ann@example.org",
    '"a..b"@example.org': '"a..b"@example.org',
    "jörg@müller.example": "jörg@xn--mller-kva.example",
    "a@straße.example": "a@xn--strae-oqa.example",
    "a@xn--mller-kva.example": "a@xn--mller-kva.example",
    "a@[192.0.2.1]": "a@[192.0.2.1]",
    "a@[IPv6:2001:db8::1]": "a@[ipv6:2001:db8::1]",
    "x" * 64 + "@example.org": "x" * 64 + "@example.org",
    "jose\u0301@example.org": "josé@example.org",
}

BAD = {
    "": "is empty",
    "ann": "has no @",
    "@example.org": "has nothing before the @",
    "ann@": "'' is not a domain name",
    "a@b@c": "must contain exactly one @",
    "a@b,c@d": "is not one address: ',' is not allowed in it",
    "a@b c": "is not one address: ' ' is not allowed in it",
    "<ann@example.org>": "is not one address: '<' is not allowed in it",
    "a@b\r\nBcc: c@d": "contains the invisible character U+000D",
    "a\0@b": "contains the invisible character U+0000",
    "a\u202eb@c": "contains the invisible character U+202E",
    "a\u200bb@c": "contains the invisible character U+200B",
    "a\u00a0b@c": "contains the invisible character U+00A0",
    "\ud800@b": "contains the invisible character U+D800",
    "=?utf-8?q?x?=@b": "contains an encoded word",
    ".a@b": "cannot stand before the @",
    "a..b@c": "cannot stand before the @",
    '""@c': "cannot stand before the @",
    '"a"b@c': "cannot stand before the @",
    "a(comment)@b": "cannot stand before the @",
    "a@-b.de": "is not a domain name",
    "a@b..de": "is not a domain name",
    "a@b.de.": "is not a domain name",
    "a@under_score.de": "is not a domain name",
    "a@192.0.2.1": "an IP address goes in brackets",
    "a@[192.0.2.256]": "is not an address literal",
    "a@[IPv6:fe80::1%eth0]": "is not an address literal",
    "a@" + "b" * 64: "is not a domain name",
    "a@☃.example": "is not an internationalised domain name",
    "x" * 65 + "@b": "has more than 64 octets before the @",
    "ü" * 33 + "@b": "has more than 64 octets before the @",
    "a@" + "label." * 50 + "de": "is longer than 254 octets",
}


@pytest.mark.parametrize("text", GOOD)
def test_a_mailbox_is_taken_and_has_one_key(text: str) -> None:
    mailbox = parse_mailbox(text)
    assert Address(mailbox=mailbox).key == GOOD[text]
    assert domain_to_ascii(mailbox.rpartition("@")[2]) in wire_mailbox(mailbox)


@pytest.mark.parametrize("text", BAD)
def test_what_is_not_one_mailbox_is_refused_in_plain_words(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_mailbox(text)
    assert BAD[text] in str(refused.value)
    with pytest.raises(ValueError):
        parse_address(f"Ann <{text}>")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ann@example.org", ""),
        ("<ann@example.org>", ""),
        ("  Ann Example   <ann@example.org> ", "Ann Example"),
        ("J. Doe (Sales) <ann@example.org>", "J. Doe (Sales)"),
        ('"Doe, Ann \\"A\\"" <ann@example.org>', 'Doe, Ann "A"'),
        ("👩‍👩‍👧‍👦 مرحبا\u200f <ann@example.org>", "👩‍👩‍👧‍👦 مرحبا\u200f"),
        ("=?utf-8?q?x?= <ann@example.org>", "=?utf-8?q?x?="),
    ],
)
def test_a_display_name_is_read(text: str, name: str) -> None:
    assert parse_address(text) == Address(mailbox="ann@example.org", name=name)


@pytest.mark.parametrize(
    "text",
    [
        "a@b, Ann <c@d>",
        "Doe, Ann <a@b>",
        "Team: Ann <a@b>",
        "Ann <a@b> <c@d>",
        '"Ann <a@b>" <c@d>',
        "Ann a@b>",
        "Ann <a@b",
        "Ann\n <a@b>",
        "Ann\u202e <a@b>",
        "Ann\u2028 <a@b>",
        "Ann\ud800 <a@b>",
        "x" * 1000 + " <a@b>",
    ],
)
def test_a_display_name_that_deceives_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_only_a_local_part_beyond_ascii_needs_smtputf8() -> None:
    assert needs_smtputf8("jörg@example.org")
    assert not needs_smtputf8("ann@müller.example")


IN_USE = {
    "x" * 65 + "@b",
    ".a@b",
    "a..b@c",
    "a@-b.de",
    "a@under_score.de",
    "a@192.0.2.1",
    "a@" + "label." * 50 + "de",
}


@pytest.mark.parametrize("sender", sorted(IN_USE))
def test_an_envelopes_sender_is_taken_as_it_is_in_use(sender: str) -> None:
    assert parse_sender(sender) == sender


@pytest.mark.parametrize(
    "sender", [*(text for text in BAD if text not in IN_USE), "x" * MAX_SENDER_CHARACTERS + "@b", "ann@.b"]
)
def test_what_programs_may_read_in_two_ways_is_no_sender(sender: str) -> None:
    with pytest.raises(ValueError):
        parse_sender(sender)
