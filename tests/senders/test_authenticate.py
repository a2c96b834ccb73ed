"""What vouches for a mail: SPF, DKIM and DMARC against a real name server, each way right and each way wrong."""

from __future__ import annotations

import dkim
import pytest
from sender_desk import MEMBER_HOST, Desk, ed25519_key, mail, odd_key, rsa_key, signed

from gateway.inbound.authenticate import Authentication, Result
from gateway.inbound.authenticate.resolver import Resolver
from gateway.mail.parse.guards import DEFAULT_LIMITS

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_sending_host_of_the_domain_vouches_for_it(desk: Desk) -> None:
    found = await desk.judge(mail(), client=MEMBER_HOST)
    assert (found.verdict, found.aligned_domain, found.aligned_by) == (Result.PASS, "example.org", "spf")
    assert found.author == "ann@example.org"
    assert found.is_proven
    assert (found.dmarc.result, found.dmarc.policy) == (Result.PASS, "reject")


async def test_another_host_does_not(desk: Desk) -> None:
    found = await desk.judge(mail())
    assert (found.verdict, found.spf.result) == (Result.FAIL, Result.FAIL)
    assert not found.is_proven


@pytest.mark.parametrize(
    ("selector", "algorithm", "key"),
    [("s1", b"rsa-sha256", rsa_key()[0]), ("ed", b"ed25519-sha256", ed25519_key()[0])],
    ids=["rsa", "ed25519"],
)
async def test_a_signature_of_the_domain_vouches_for_it_whoever_delivers(
    desk: Desk, selector: str, algorithm: bytes, key: bytes
) -> None:
    octets = signed(mail(), selector=selector, algorithm=algorithm, key=key)
    found = await desk.judge(octets, mail_from="list@evil.example.com")
    assert (found.verdict, found.aligned_by) == (Result.PASS, "dkim")
    assert [(item.result, item.algorithm) for item in found.dkim] == [(Result.PASS, algorithm.decode())]


@pytest.mark.parametrize("selector", ["s1", "ed"])
async def test_a_changed_mail_is_not_vouched_for(desk: Desk, selector: str) -> None:
    key = {"s1": rsa_key()[0], "ed": ed25519_key()[0]}[selector]
    algorithm = {"s1": b"rsa-sha256", "ed": b"ed25519-sha256"}[selector]
    octets = signed(mail(), selector=selector, algorithm=algorithm, key=key)
    for changed in (octets.replace(b"Hello", b"Hullo"), octets.replace(b"A day", b"A die")):
        found = await desk.judge(changed)
        assert (found.verdict, found.dkim[0].result) == (Result.FAIL, Result.FAIL)


async def test_relaxed_alignment_takes_a_subdomain_of_the_same_owner(desk: Desk) -> None:
    found = await desk.judge(signed(mail(), "news.example.org"))
    assert (found.verdict, found.aligned_domain) == (Result.PASS, "news.example.org")
    found = await desk.judge(signed(mail("ann@news.example.org")))
    assert (found.verdict, found.dmarc.domain, found.dmarc.policy) == (Result.PASS, "example.org", "quarantine")


async def test_strict_alignment_takes_the_very_domain_only(desk: Desk) -> None:
    assert (await desk.judge(signed(mail("ann@strict.net"), "strict.net"))).verdict is Result.PASS
    found = await desk.judge(signed(mail("ann@strict.net"), "news.strict.net"))
    assert (found.verdict, found.dkim[0].result, found.dmarc.result) == (Result.FAIL, Result.PASS, Result.FAIL)
    found = await desk.judge(mail("ann@strict.net"), mail_from="a@news.strict.net", client=MEMBER_HOST)
    assert (found.verdict, found.spf.result) == (Result.FAIL, Result.PASS)


@pytest.mark.parametrize(
    ("author", "signer"),
    [
        ("ann@example.com", "com"),
        ("ann@bank.co.uk", "co.uk"),
        ("ann@bank.co.uk", "thief.co.uk"),
        ("ann@bank.github.io", "github.io"),
        ("ann@bank.github.io", "thief.github.io"),
        ("ann@github.io", "github.io"),
    ],
)
async def test_a_public_suffix_vouches_for_nobody(desk: Desk, author: str, signer: str) -> None:
    octets = signed(mail(author), "evil.example.com").replace(b"d=evil.example.com", b"d=" + signer.encode())
    for given in (octets, signed(mail(author), signer)):
        found = await desk.judge(given, mail_from=f"a@{signer}")
        assert found.verdict is Result.FAIL


async def test_a_domain_without_a_record_is_vouched_for_relaxed(desk: Desk) -> None:
    found = await desk.judge(signed(mail("ann@example.com"), "evil.example.com"))
    assert (found.verdict, found.dmarc.result) == (Result.PASS, Result.NONE)


@pytest.mark.parametrize("records", [["v=DMARC1; p=none", "v=DMARC1; p=reject"], ["v=DMARC1; adkim=r"]])
async def test_a_record_that_cannot_be_read_leaves_the_strict_comparison(desk: Desk, records: list[str]) -> None:
    domain = f"muddle{len(records)}.net"
    desk.dns.put(f"_dmarc.{domain}", "TXT", *records)
    for signer in (domain, f"news.{domain}"):
        desk.dns.put(f"s1._domainkey.{signer}", "TXT", f"p={rsa_key()[1]}")
    assert (await desk.judge(signed(mail(f"a@{domain}"), domain))).verdict is Result.PASS
    found = await desk.judge(signed(mail(f"a@{domain}"), f"news.{domain}"))
    assert (found.verdict, found.dmarc.result) == (Result.FAIL, Result.PERMERROR)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("revoked", "v=DKIM1; p="),
        ("trying", f"v=DKIM1; t=y; p={rsa_key()[1]}"),
        ("sha1", f"v=DKIM1; h=sha1; p={rsa_key()[1]}"),
        ("tls", f"v=DKIM1; s=tlsrpt; p={rsa_key()[1]}"),
        ("other", f"v=DKIM1; k=ed25519; p={ed25519_key()[1]}"),
        ("garbage", "v=DKIM1; p=AAAA"),
        ("no tags", "hello"),
        ("other version", f"v=DKIM2; p={rsa_key()[1]}"),
    ],
    ids=lambda value: value if len(value) < 20 else "",  # no key: names are the same in every process
)
async def test_a_key_that_is_not_for_this_vouches_for_nobody(desk: Desk, name: str, record: str) -> None:
    selector = name.replace(" ", "-")
    desk.dns.put(f"{selector}._domainkey.example.org", "TXT", record)
    found = await desk.judge(signed(mail(), selector=selector))
    assert found.verdict is Result.FAIL
    assert found.dkim[0].result in (Result.PERMERROR, Result.NEUTRAL)


async def test_two_keys_under_one_name_are_none(desk: Desk) -> None:
    desk.dns.put("twice._domainkey.example.org", "TXT", f"p={rsa_key()[1]}", "p=")
    assert (await desk.judge(signed(mail(), selector="twice"))).dkim[0].result is Result.PERMERROR


@pytest.mark.parametrize(
    ("exponent", "bits"),
    [(65537, 768), (65537, 8_192), (2**64 + 1, 2048), (1, 2048)],
    ids=lambda value: str(value)[:8],
)
async def test_a_key_that_is_no_honest_number_is_not_tried(desk: Desk, exponent: int, bits: int) -> None:
    selector = f"odd-{bits}-{exponent}"
    desk.dns.put(f"{selector}._domainkey.example.org", "TXT", f"p={odd_key(exponent, bits)}")
    found = await desk.judge(signed(mail(), selector=selector))
    assert (found.dkim[0].result, "the key has" in found.dkim[0].reason) == (Result.PERMERROR, True), found.dkim[0]


async def test_a_key_of_1024_bits_is_believed(desk: Desk) -> None:
    private, public = rsa_key(1024)
    desk.dns.put("least._domainkey.example.org", "TXT", f"p={public}")
    assert (await desk.judge(signed(mail(), selector="least", key=private))).verdict is Result.PASS


async def test_what_cannot_be_looked_up_is_no_failure(desk: Desk) -> None:
    desk.dns.put("s1._domainkey.away.net", "FAULT", "")
    found = await desk.judge(signed(mail("ann@away.net"), "away.net"), mail_from="x@evil.example.com")
    assert (found.verdict, found.dkim[0].result) == (Result.TEMPERROR, Result.TEMPERROR)
    desk.dns.put("silent.net", "FAULT", "TXT")
    found = await desk.judge(mail("ann@silent.net"), mail_from="ann@silent.net")
    assert (found.verdict, found.spf.result) == (Result.TEMPERROR, Result.TEMPERROR)
    desk.dns.put("s1._domainkey.dark.net", "TXT", f"p={rsa_key()[1]}")
    desk.dns.put("s1._domainkey.news.dark.net", "TXT", f"p={rsa_key()[1]}")
    desk.dns.put("_dmarc.dark.net", "FAULT", "")
    found = await desk.judge(signed(mail("ann@dark.net"), "news.dark.net"))
    assert (found.verdict, found.dmarc.result) == (Result.TEMPERROR, Result.TEMPERROR)
    assert (await desk.judge(signed(mail("ann@dark.net"), "dark.net"))).verdict is Result.PASS


async def test_a_strangers_dead_name_server_does_not_make_a_forgery_wait(desk: Desk) -> None:
    desk.dns.put("s1._domainkey.gone.example.com", "FAULT", "")
    found = await desk.judge(signed(mail(), "gone.example.com"))
    assert found.verdict is Result.FAIL


async def test_only_so_many_signatures_are_verified_those_of_the_author_first(desk: Desk) -> None:
    octets = signed(mail())
    for _ in range(12):
        octets = signed(octets, "evil.example.com")
    found = await desk.judge(octets)
    assert [item.result for item in found.dkim].count(Result.PASS) == 5
    assert (found.verdict, found.aligned_domain) == (Result.PASS, "example.org")


async def test_a_mail_of_this_host_asks_nobody(desk: Desk) -> None:
    asked = desk.dns.asked.total()
    for client in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "local", ""):
        found = await desk.judge(mail(), client=client)
        assert (found.verdict, found.spf.result) == (Result.FAIL, Result.NONE)
    assert desk.dns.asked.total() == asked


async def test_it_is_the_same_after_it_was_stored(desk: Desk) -> None:
    found = await desk.judge(signed(mail()), client=MEMBER_HOST)
    assert Authentication.from_json(found.to_json()) == found


async def test_a_chain_of_forwarders_is_told_and_proves_nothing(desk: Desk) -> None:
    octets = mail(more=["Authentication-Results: mx.example.com; spf=pass smtp.mailfrom=example.org"])
    arc_set = dkim.arc_sign(octets, b"s1", b"example.com", rsa_key()[0], b"mx.example.com", include_headers=[b"from"])
    forwarded = b"".join(arc_set) + octets
    found = await desk.judge(forwarded)
    assert (found.arc.result, found.arc.sealers) == (Result.PASS, ("example.com",)), found.arc.reason
    assert found.verdict is Result.FAIL
    assert (await desk.judge(forwarded.replace(b"Hello", b"Hullo"))).arc.result is Result.FAIL


@pytest.mark.parametrize("line", ["ARC-Seal: i=1000; d=example.com; s=s1", "ARC-Seal: nonsense", "ARC-Seal: i=1; a=b"])
async def test_a_chain_that_is_none_is_an_error_of_its_own(desk: Desk, line: str) -> None:
    found = await desk.judge(signed(mail(more=[line])))
    assert (found.verdict, found.arc.result) == (Result.PASS, Result.PERMERROR)


async def test_a_resolver_that_is_not_there_is_no_verdict(desk: Desk) -> None:
    desk.resolver, kept = Resolver(["127.0.0.1:1"], query_seconds=0.5), desk.resolver
    try:
        found = await desk.judge(signed(mail()), client=MEMBER_HOST)
    finally:
        desk.resolver = kept
    assert (found.verdict, found.spf.result, found.dkim[0].result) == (Result.TEMPERROR,) * 3


async def test_the_largest_mail_is_verified(desk: Desk) -> None:
    line = "0123456789abcdef" * 4 + "0123456789ab"
    body = "\r\n".join([line] * (34 * 2**20 // 78))
    octets = signed(mail(body=body))
    assert len(octets) < DEFAULT_LIMITS.mail_bytes
    found = await desk.judge(octets)
    assert found.verdict is Result.PASS, found.dkim[0].reason
