"""What was found out about a sender, in words: at the terminal by `show` and `explain`, and never raw JSON for people."""

from __future__ import annotations

import dkim
import pytest
from sender_desk import MEMBER_HOST, Desk, mail, rsa_key, signed

from gateway.inbound.authenticate import NOT_JUDGED
from gateway.inbound.authenticate.words import words_of
from gateway.tables import Lines, print_object

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_proven_sender_in_words(desk: Desk) -> None:
    found = await desk.judge(signed(mail()), client=MEMBER_HOST, helo="host.example.com")
    verdict, *lines = words_of(found.to_json())
    assert verdict == "ann@example.org: example.org vouches for it (dkim)"
    assert lines[0] == "SPF pass for example.org"
    assert lines[1].startswith("SPF of HELO fail for host.example.com")
    assert lines[2:] == [
        "DKIM pass d=example.org s=s1 a=rsa-sha256",
        "DMARC pass for example.org (p=reject)",
        "looked up by us",
    ]


async def test_an_unproven_sender_in_words(desk: Desk) -> None:
    octets = mail(more=["X-Spam-Flag: YES", "DKIM-Signature: v=1; a=rsa-sha1; d=example.org; s=s1; h=from"])
    chain = b"".join(
        dkim.arc_sign(
            mail(more=["Authentication-Results: a.example; spf=pass"]),
            b"s1",
            b"example.com",
            rsa_key()[0],
            b"a.example",
            include_headers=[b"from"],
        )
    )
    found = await desk.judge(chain + octets, client="127.0.0.1")
    words = words_of(found.to_json())
    assert words[0] == "ann@example.org: neither a signature nor the sending host vouches for example.org"
    assert "DKIM policy d=example.org s=s1 a=rsa-sha1: its algorithm is not one of today's (RFC 8301)" in words
    assert "ARC pass by example.com" in words


async def test_a_mail_without_anything_says_so(desk: Desk) -> None:
    words = words_of((await desk.judge(b"Subject: x\r\n\r\nx\r\n", client="")).to_json())
    assert words == ["not known: it has no From field", "DKIM none: it has no signature", "looked up by us"]
    assert words_of({}) == []
    assert words_of(NOT_JUDGED.to_json())[0] == "not known: not judged"


async def test_what_another_version_wrote_is_told_as_far_as_it_goes() -> None:
    assert words_of({"verdict": "pass", "author": "a@b.example", "aligned_domain": "b.example"}) == [
        "a@b.example: b.example vouches for it (?)",
        "DKIM none: it has no signature",
    ]


async def test_lines_stand_below_each_other_and_harm_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_object({"id": "1", "auth": Lines(["first", "second \x1b[2J"])}, as_json=False)
    assert capsys.readouterr().out == "id: 1\nauth: first\n  second \N{REPLACEMENT CHARACTER}[2J\n"
