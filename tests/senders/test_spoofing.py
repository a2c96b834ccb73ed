"""A table of tricks: none of them is ever taken for the member ann@example.org, and each is one that some program falls for."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import dkim
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from sender_desk import MEMBER_HOST, SIGNED, STRANGER_HOST, Desk, mail, rsa_key, signed

from gateway.inbound.authenticate import Result
from gateway.inbound.authenticate.authenticator import TrustedMta
from gateway.inbound.router import MailboxRoute
from gateway.inbound.who import MEMBERS, WhoMayWrite
from gateway.inbound.xforward import TrustedHosts
from gateway.mail.parse import parse
from gateway.mail.people import People, Person
from gateway.mail.tokens import Tokens

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANN = Person(id="0", address="ann@example.org", name="Ann", handle="0102030405")
ROUTE = MailboxRoute(address="photos@in.example.net", kind="photos", who=MEMBERS)
FROM_ANN = "From: ann@example.org"
EVIL = "evil.example.com"
OURS = "mx.example.net"


def who() -> WhoMayWrite:
    return WhoMayWrite(Tokens([bytes(32)]), lambda: People([ANN]), clock=lambda: datetime.now(UTC))


async def is_member(desk: Desk, octets: bytes, **envelope: Any) -> bool:
    """What ingest would rule: the judged sender, and the author as our parser shows it."""
    found = await desk.judge(octets, **{"mail_from": f"x@{EVIL}"} | envelope)
    parsed = await parse(octets, desk.cage)
    return who().rule(ROUTE, "photos@in.example.net", found, parsed.from_.address).admits


def raw(*lines: str | bytes, body: str = "Hello") -> bytes:
    """A mail of exactly these header lines."""
    return b"".join((line if isinstance(line, bytes) else line.encode()) + b"\r\n" for line in (*lines, "", body))


def evil(octets: bytes, **values: Any) -> bytes:
    """Signed soundly, by the stranger's own domain."""
    return signed(octets, EVIL, **values)


def with_line(octets: bytes, line: str) -> bytes:
    return line.encode() + b"\r\n" + octets


def author(value: str) -> Callable[[], bytes]:
    """A mail with this From, signed by the stranger's domain."""
    return lambda: evil(mail(value))


def own(value: str) -> Callable[[], bytes]:
    """A mail with this From, signed by Ann's own domain: what its look would let through."""
    return lambda: signed(raw(f"From: {value}", "To: x@y.example", "Subject: A day"))


def signed_without_from(octets: bytes) -> bytes:
    """A sound signature of example.org over Subject alone, which dkimpy verifies and would not make."""
    key = serialization.load_pem_private_key(rsa_key()[0], None)
    body_hash = base64.b64encode(hashlib.sha256(octets.partition(b"\r\n\r\n")[2]).digest()).decode()
    tags = f"v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=s1; h=subject; bh={body_hash}; b="
    assert isinstance(key, rsa.RSAPrivateKey)
    text = f"subject:A day\r\ndkim-signature:{tags}".encode()
    proof = base64.b64encode(key.sign(text, padding.PKCS1v15(), hashes.SHA256())).decode()
    return with_line(octets, f"DKIM-Signature: {tags}{proof}")


REPEATED = {
    "Subject": "Send money",
    "To": "photos@in.example.net",
    "Date": "Fri, 27 Nov 2026 17:00:00 +0000",
    "Reply-To": f"x@{EVIL}",
    "Message-ID": f"<1@{EVIL}>",
    "Content-Type": "multipart/mixed; boundary=theirs",
    "Content-Transfer-Encoding": "base64",
    "MIME-Version": "1.0",
}
TRICKS: dict[str, Callable[[], bytes]] = {
    "two From fields, ours first": lambda: with_line(evil(mail(f"x@{EVIL}")), FROM_ANN),
    "two From fields, ours last": lambda: evil(raw(f"From: x@{EVIL}", FROM_ANN, "Subject: A day")),
    "two From fields, both signed": lambda: evil(raw(FROM_ANN, f"From: x@{EVIL}", "Subject: A day")),
    "a second From, put in front of a signed one": lambda: with_line(signed(mail()), f"From: x@{EVIL}"),
    "a From with a blank before its colon": lambda: raw(
        *evil(mail(f"x@{EVIL}")).decode().split("\r\n")[:9], "From : ann@example.org"
    ),
    "a From in front, its name in capitals and a blank": lambda: with_line(
        evil(mail(f"x@{EVIL}")), "FROM : ann@example.org"
    ),
    "a From hidden in a fold": lambda: evil(raw(f"X-A: b\r\n {FROM_ANN}", f"From: x@{EVIL}", "Subject: A day")),
    "a From after a line of blanks": lambda: evil(
        raw(f"From: x@{EVIL}", "X-A: b\r\n \r\n From: ann@example.org", "Subject: A day")
    ),
    "a From behind a bare CR": lambda: evil(raw(f"X-A: b\r{FROM_ANN}", f"From: x@{EVIL}", "Subject: A day")),
    "a From behind a bare LF": lambda: evil(raw(f"X-A: b\n{FROM_ANN}", f"From: x@{EVIL}", "Subject: A day")),
    "a mailbox line of old programs": lambda: with_line(evil(mail()), "From ann@example.org Mon Jan  1 00:00:00 2026"),
    "no From": lambda: evil(raw("Sender: ann@example.org", "Subject: A day", f"From: x@{EVIL}")).replace(
        b"\r\nFrom: x@", b"\r\nX: x@"
    ),
    "Sender is ours": lambda: evil(mail(f"x@{EVIL}", more=["Sender: ann@example.org"])),
    "Reply-To and Resent-From are ours": lambda: evil(
        mail(f"x@{EVIL}", more=["Reply-To: ann@example.org", "Resent-From: ann@example.org"])
    ),
    "two addresses, ours first": author(f"ann@example.org, x@{EVIL}"),
    "two addresses, ours last": author(f"x@{EVIL}, ann@example.org"),
    "two addresses in brackets": author(f"<x@{EVIL}> <ann@example.org>"),
    "two addresses, signed by ours": own(f"x@{EVIL}, ann@example.org"),
    "an address in the name": author(f'"ann@example.org" <x@{EVIL}>'),
    "an address in the bare name": author(f"ann@example.org <x@{EVIL}>"),
    "the bare name, signed by ours": own(f"x@{EVIL} <ann@example.org>"),
    "an address in a comment": author(f"x@{EVIL} (ann@example.org)"),
    "a comment inside the address": own("ann@example.org(x)"),
    "a comment in front": own("(x) ann@example.org"),
    "nested brackets": author(f"<<ann@example.org>x@{EVIL}>"),
    "a route address": own("<@evil.example.com,@b.example:ann@example.org>"),
    "a source route through us": author(f"<@example.org:x@{EVIL}>"),
    "a group": own("Friends: ann@example.org;"),
    "an empty group in front": own("undisclosed:;, ann@example.org"),
    "the percent hack": author(f"ann%example.org@{EVIL}"),
    "two at signs": author(f"ann@example.org@{EVIL}"),
    "two at signs, signed by ours": own(f"x@{EVIL}@example.org"),
    "a quoted local part that is our address": author(f'"ann@example.org"@{EVIL}'),
    "an encoded word as address": author("=?utf-8?q?ann=40example=2Eorg?="),
    "an encoded word in the address": own("=?utf-8?q?ann?=@example.org"),
    "an encoded word in brackets": own("Ann <=?utf-8?b?YW5uQGV4YW1wbGUub3Jn?=>"),
    "an encoded word that hides a bracket": author(f"=?utf-8?q?=3Cann=40example=2Eorg=3E?= <x@{EVIL}>"),
    "a NUL in the address": own(f"ann@example.org\0@{EVIL}"),
    "a NUL in the name": own("A\0nn <ann@example.org>"),
    "a tab in the address": own("ann@\texample.org"),
    "blanks around the dot": own("ann@example . org"),
    "a dot at the end of the domain": author("ann@example.org."),
    "a dot at the end, signed by ours": own("ann@example.org."),
    "a soft hyphen": own("a\u00adnn@example.org"),
    "a zero-width space": own("ann\u200b@example.org"),
    "a right-to-left override": own("\u202eann@example.org"),
    "a Cyrillic а": own("\u0430nn@example.org"),
    "a Kelvin sign's friend, the full-width a": own("\uff41nn@example.org"),
    "a Cyrillic domain": lambda: evil(mail("ann@ex\u0430mple.org")),
    "a full-width domain": own("ann@\uff45xample.org"),
    "an ideographic full stop": own("ann@example\u3002org"),
    "a full-width full stop": own("ann@example\uff0eorg"),
    "a subdomain that begins like ours": author("ann@example.org.evil.example.com"),
    "our name as a subdomain": author("ann@example.org.example.com"),
    "From in no known charset": own("ann@example.org\udc80".encode("utf-8", "surrogateescape").decode("latin-1")),
    "an unclosed quote": own('"Ann <ann@example.org>'),
    "an unclosed bracket": own("Ann <ann@example.org"),
    "an unopened bracket": own("Ann ann@example.org>"),
    **{
        f"a second {name} in front of a signed one": lambda name=name, value=value: with_line(
            signed(mail(more=[f"{name}: theirs"]), include=(*SIGNED, name.lower().encode())), f"{name}: {value}"
        )
        for name, value in REPEATED.items()
    },
    "a signature that leaves From out": lambda: signed_without_from(mail()),
    "d= is a public suffix": lambda: signed(mail(), "org"),
    "d= has a dot at its end": lambda: signed(mail(), EVIL).replace(b"d=evil.example.com;", b"d=example.org.;"),
    "d= is empty": lambda: signed(mail(), EVIL).replace(b"d=evil.example.com;", b"d=;"),
    "d= twice": lambda: signed(mail(), EVIL).replace(b"d=evil.example.com;", b"d=example.org; d=evil.example.com;"),
    "d= ours, key theirs": lambda: evil(mail()).replace(b"d=evil.example.com", b"d=example.org"),
    "i= ours, d= theirs": lambda: evil(mail()).replace(b"i=@evil.example.com", b"i=@example.org"),
    "s= leads elsewhere": lambda: signed(mail(), EVIL).replace(b"s=s1;", b"s=s1._domainkey.evil.example.com;"),
    "the body goes on behind l=": lambda: signed(mail(), length=True) + b"and more\r\n",
    "l= covers all": lambda: signed(mail(), length=True),
    "a signature of another mail": lambda: signed(mail(body="Other")).split(b"From:")[0] + mail(),
    "an old algorithm": lambda: signed(mail()).replace(b"a=rsa-sha256", b"a=rsa-sha1"),
    "an expired signature": lambda: signed(mail()).replace(b"q=dns/txt;", b"q=dns/txt; x=1000;"),
    "a passing chain of strangers": lambda: mail(more=["ARC-Seal: i=1; cv=none; d=example.org; s=s1; b=AAAA"]),
    "somebody's results": lambda: mail(
        more=["Authentication-Results: example.org; dmarc=pass header.from=example.org"]
    ),
    "our server's results, forged": lambda: mail(
        more=[f"Authentication-Results: {OURS}; dmarc=pass header.from=example.org"]
    ),
    "SPF results, forged": lambda: mail(
        more=["Received-SPF: pass (x) client-ip=192.0.2.10; envelope-from=ann@example.org"]
    ),
}


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS.keys())
async def test_a_trick_makes_nobody_a_member(desk: Desk, trick: Callable[[], bytes]) -> None:
    assert not await is_member(desk, trick(), client=STRANGER_HOST, helo="host.example.com")


ENVELOPES: dict[str, dict[str, str]] = {
    "the envelope says ours, the host is a stranger's": {"mail_from": "ann@example.org"},
    "only HELO passes": {"mail_from": "", "helo": "example.org", "client": MEMBER_HOST},
    "HELO passes beside a stranger's envelope": {
        "helo": "example.org",
        "client": MEMBER_HOST,
        "mail_from": f"x@{EVIL}",
    },
    "the envelope is a stranger's and passes": {"mail_from": f"ann@{EVIL}"},
    "two at signs in the envelope": {"mail_from": f"ann@example.org@{EVIL}"},
    "ours in quotes in the envelope": {"mail_from": f'"ann@example.org"@{EVIL}'},
    "a dot at the end of the envelope": {"mail_from": "ann@example.org.", "client": STRANGER_HOST},
    "no client": {"mail_from": "ann@example.org", "client": ""},
    "this host": {"mail_from": "ann@example.org", "client": "127.0.0.1"},
    "a name in place of an address": {"mail_from": "ann@example.org", "client": "example.org"},
    "an envelope of a public suffix": {"mail_from": "ann@org", "client": STRANGER_HOST},
    "a mail server's word at the world's door": {"mail_from": f"x@{EVIL}", "door": "smtp"},
}


@pytest.mark.parametrize("values", ENVELOPES.values(), ids=ENVELOPES.keys())
async def test_an_envelope_makes_nobody_a_member(desk: Desk, values: dict[str, str]) -> None:
    assert not await is_member(desk, mail(), **values)


async def test_a_field_that_is_signed_as_often_as_it_is_there_is_no_trick(desk: Desk) -> None:
    twice = mail(more=["Received: by a", "Received: by b", "MIME-Version: 1.0", "MIME-Version: 1.0"])
    assert await is_member(desk, signed(twice, include=(*SIGNED, b"mime-version", b"mime-version")))
    assert not await is_member(desk, signed(twice, include=(*SIGNED, b"mime-version")))


async def test_the_address_of_our_own_mail_server_vouches_for_nobody(desk: Desk) -> None:
    """It relays the world's mail without naming the client, and our domain's SPF names it, since it sends for us, too."""
    assert await is_member(desk, mail(), mail_from="ann@example.org", client=MEMBER_HOST)
    desk.trusted = TrustedMta(hosts=TrustedHosts([ip_network(f"{MEMBER_HOST}/32")]))
    facts: dict[str, Any] = {"mail_from": "ann@example.org", "client": MEMBER_HOST, "by_trusted_host": True}
    try:
        assert not await is_member(desk, mail(), **facts)
        assert await is_member(desk, signed(mail()), **facts)
    finally:
        desk.trusted = TrustedMta()


async def test_the_signature_without_from_is_one_that_dkimpy_takes() -> None:
    key = f"v=DKIM1; p={rsa_key()[1]}".encode()
    assert dkim.DKIM(signed_without_from(mail())).verify(dnsfunc=lambda name, timeout=5: key)


PLAIN = [
    "ann@example.org",
    "Ann <ann@example.org>",
    '"Ann, B." <Ann@Example.ORG>',
    "=?utf-8?q?=C3=84nn?= <ann@example.org>",
]


@pytest.mark.parametrize("value", [*PLAIN, '"ann@example.org" <ann@example.org>', "Ann (Sales) <ann@example.org>"])
async def test_ann_herself_is_a_member(desk: Desk, value: str) -> None:
    assert await is_member(desk, signed(mail(value)))
    assert await is_member(desk, mail(value), mail_from="bounce@example.org", client=MEMBER_HOST)


# What our own mail server says, and what others say it says.

GOOD = (
    f"Authentication-Results: {OURS}; spf=pass smtp.mailfrom=example.org; dmarc=pass (p=reject) header.from=example.org"
)


HOP = "Received: from host.example.com by mx.example.net (Postfix); Fri, 27 Nov 2026 17:00:00 +0000"


def results(text: str) -> str:
    return f"Authentication-Results: {OURS}; {text}"


def by_mta(*lines: str) -> bytes:
    return mail(more=lines)


@pytest.fixture
def believing(desk: Desk) -> Any:
    desk.trusted = TrustedMta(authserv_id=OURS, junk_fields=("x-spam-flag",))
    yield desk
    desk.trusted = TrustedMta()


@pytest.mark.parametrize(
    "lines",
    [
        [GOOD],
        ["Received: from a by mx.example.net", GOOD],
        [GOOD.replace("mx.example.net", "MX.Example.NET")],
        [f"Authentication-Results: {OURS} 1; dkim=pass header.d=example.org header.s=s1"],
        [f"Authentication-Results: {OURS}; spf=pass smtp.mailfrom=ann@example.org"],
        [f"Authentication-Results: {OURS}; auth=pass (plain) smtp.auth=Ann@example.org smtp.mailfrom=ann@example.org"],
        # Each filter of one server writes its own, above the Received or right below it.
        [results("dmarc=pass header.from=example.org"), results("dkim=pass header.d=example.org"), HOP],
        [results("spf=fail smtp.mailfrom=evil.example.com"), results("dkim=pass header.d=example.org"), HOP],
        [results("spf=none"), "Received-SPF: none", "X-Spam: no", results("dkim=pass header.d=example.org"), HOP],
        [HOP, results("dmarc=pass header.from=example.org"), results("dkim=pass header.d=example.org")],
    ],
)
async def test_our_mail_servers_word_makes_a_member(believing: Desk, lines: list[str]) -> None:
    asked = believing.dns.asked.total()
    found = await believing.judge(by_mta(*lines), by_trusted_host=True, client=STRANGER_HOST)
    assert (found.verdict, found.source, found.author) == (Result.PASS, "mta", "ann@example.org"), found
    assert not any("_domainkey" in name for name, _ in list(believing.dns.asked)[asked:])


FORGED = f"Authentication-Results: {OURS}; dmarc=pass header.from=example.org"
OUR_DKIM = results("dkim=fail header.d=example.org")
OUR_NO = results("dmarc=fail header.from=example.org")
MTA_TRICKS: dict[str, dict[str, Any]] = {
    "a forged one below ours": {
        "lines": [f"Authentication-Results: {OURS}; dmarc=fail header.from=example.org", FORGED]
    },
    "a forged one below a stranger's": {"lines": ["Authentication-Results: mx.other.net; dmarc=none", FORGED]},
    "a forged one below two Received": {"lines": ["Received: by us", "Received: by them", FORGED]},
    "another id that begins like ours": {"lines": [FORGED.replace(OURS, f"{OURS}.{EVIL}")]},
    "ours in a comment": {"lines": [f"Authentication-Results: {EVIL} ({OURS}); dmarc=pass header.from=example.org"]},
    "ours behind a semicolon": {
        "lines": [f"Authentication-Results: {EVIL}; {OURS}; dmarc=pass header.from=example.org"]
    },
    "another domain passes": {"lines": [f"Authentication-Results: {OURS}; dmarc=pass header.from={EVIL}"]},
    "a stranger's signature passes": {"lines": [f"Authentication-Results: {OURS}; dkim=pass header.d={EVIL}"]},
    "a public suffix passes": {"lines": [f"Authentication-Results: {OURS}; dkim=pass header.d=org"]},
    "HELO passes": {"lines": [f"Authentication-Results: {OURS}; spf=pass smtp.helo=example.org"]},
    "dmarc twice": {"lines": [FORGED + "; dmarc=fail header.from=example.org"]},
    "not to be read": {"lines": [FORGED + "; ((((("]},
    "endless comments": {"lines": [f"Authentication-Results: {OURS}; {'(' * 3000}"]},
    "at the world's door": {"lines": [GOOD], "by_trusted_host": False, "door": "smtp"},
    "by LMTP from a stranger": {"lines": [GOOD], "by_trusted_host": False, "door": "lmtp"},
    "a forged one beside ours, below the Received": {"lines": [HOP, OUR_DKIM, FORGED]},
    "a forged one beside ours, and no Received": {"lines": [OUR_DKIM, FORGED]},
    "a forged one behind our Received": {"lines": [OUR_DKIM, HOP, FORGED]},
    "a forged one behind our Received and a hop of his own": {"lines": [OUR_DKIM, HOP, FORGED, HOP]},
    "a forged one behind another server's, above the Received": {
        "lines": [OUR_DKIM, "Authentication-Results: mx.other.net; spf=pass", FORGED, HOP]
    },
    "a forged login": {"lines": [HOP, OUR_DKIM, results("auth=pass smtp.auth=ann@example.org")]},
    "somebody else's login": {"lines": [results(f"auth=pass smtp.auth=x@{EVIL}"), HOP]},
    "a login that failed": {"lines": [results("auth=fail smtp.auth=ann@example.org"), HOP]},
    "a login without an address": {"lines": [results("auth=pass smtp.auth=ann"), HOP]},
    "two logins": {
        "lines": [results(f"auth=pass smtp.auth=x@{EVIL}"), results("auth=pass smtp.auth=ann@example.org"), HOP]
    },
    "the login's MAIL FROM": {"lines": [results("auth=pass smtp.mailfrom=ann@example.org"), HOP]},
    "two fields that contradict each other": {"lines": [OUR_NO, results("dmarc=pass header.from=example.org"), HOP]},
    "SPF passes for two domains": {
        "lines": [results("spf=pass smtp.mailfrom=example.org"), results(f"spf=pass smtp.mailfrom={EVIL}"), HOP]
    },
    "SPF passes and fails": {
        "lines": [results("spf=pass smtp.mailfrom=example.org"), results("spf=fail smtp.mailfrom=example.org"), HOP]
    },
    "eleven fields": {"lines": [*[results("dkim=none")] * 10, results("dmarc=pass header.from=example.org"), HOP]},
    "a second Subject": {"lines": [results("dmarc=pass header.from=example.org"), HOP, "Subject: Send money"]},
    "a field of ours that cannot be read": {
        "lines": [results("((((("), results("dmarc=pass header.from=example.org"), HOP]
    },
    "a name with a comment before it": {
        "lines": [f"Authentication-Results: (x) {OURS}; dmarc=pass header.from=example.org", HOP]
    },
    "the sender's own words": {"lines": [GOOD], "mail_from": f'"a; dmarc=pass header.from=example.org "@{EVIL}'},
    "a signature's own words": {
        "lines": [GOOD, HOP, "DKIM-Signature: v=1; d=evil.example.com; s=x; i=a=3B=20dmarc=3Dpass@evil.example.com"]
    },
    "a signature's selector": {"lines": [GOOD, HOP, "DKIM-Signature: v=1; d=evil.example.com; s=(x"]},
    "the client's own words": {"lines": [GOOD], "helo": "x; dmarc=pass"},
    "nothing found": {"lines": [f"Authentication-Results: {OURS}; none"]},
    "the name in the field's name": {
        "lines": [f"X-Authentication-Results: {OURS}; dmarc=pass header.from=example.org"]
    },
}


@pytest.mark.parametrize("values", MTA_TRICKS.values(), ids=MTA_TRICKS.keys())
async def test_no_other_word_does(believing: Desk, values: dict[str, Any]) -> None:
    lines = values["lines"]
    facts = {"door": "lmtp", "by_trusted_host": True} | {key: value for key, value in values.items() if key != "lines"}
    assert not await is_member(believing, by_mta(*lines), **facts)


async def test_two_from_fields_are_none_whatever_our_mail_server_says(believing: Desk) -> None:
    octets = raw(GOOD, FROM_ANN, f"From: x@{EVIL}")
    assert not await is_member(believing, octets, by_trusted_host=True)


async def test_what_our_mail_server_leaves_out_is_looked_up(believing: Desk) -> None:
    """It checks SPF alone, say, or wrote two fields where one counts: a sound signature proves itself."""
    octets = signed(mail(more=[HOP, results(f"spf=pass smtp.mailfrom={EVIL}")]))
    found = await believing.judge(octets, by_trusted_host=True, mail_from=f"x@{EVIL}")
    assert (found.verdict, found.source, found.aligned_by) == (Result.PASS, "both", "dkim")
    assert (found.spf.result, found.spf.domain) == (Result.PASS, EVIL)
    told = await believing.judge(with_line(octets, OUR_NO), by_trusted_host=True)
    assert (told.verdict, told.source) == (Result.FAIL, "mta")


async def test_a_login_at_our_mail_server_is_told_where_it_is_the_senders_own(believing: Desk) -> None:
    octets = by_mta(results("auth=pass smtp.auth=ann@example.org"), HOP)
    found = await believing.judge(octets, by_trusted_host=True)
    assert (found.is_proven, found.aligned_by, found.login) == (True, "login", "ann@example.org")
    assert found.verifies("Ann@example.org")
    assert not found.verifies("victim@example.net")
    other = await believing.judge(octets.replace(b"From: Ann <ann@", b"From: Bob <bob@"), by_trusted_host=True)
    assert (other.is_proven, other.verifies("ann@example.org"), other.verifies("bob@example.org")) == (
        False,
        True,
        False,
    )


@pytest.mark.parametrize(("value", "is_junk"), [("YES", True), ("Yes, score=12", True), ("NO", False), ("nope", False)])
async def test_our_mail_servers_junk_is_told(believing: Desk, value: str, is_junk: bool) -> None:
    found = await believing.judge(signed(mail(more=[f"X-Spam-Flag: {value}"])))
    assert bool(found.junk) is is_junk


@pytest.mark.parametrize(
    "oddity", ["From : x@y.example", "no header line", "X: a\nb: c", "X: a\0b", f"X: {'y' * 120_000}"], ids=range(5)
)
async def test_an_odd_header_does_not_hide_that_it_is_junk(believing: Desk, oddity: str) -> None:
    found = await believing.judge(mail(more=["X-Spam-Flag:", " YES", oddity]))
    assert (found.verdict, found.junk) == (Result.FAIL, "x-spam-flag: YES")
