"""What Postfix took, the gateway must not refuse for good: Postfix would return it to whom a forger named as the sender."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mta import missing
from premises import DOMAIN, Site, open_sites

VICTIM = "victim@example.net"
HEAD = "From: x@example.com\r\nTo: y@example.com\r\nSubject: {}\r\n"
TRICKS = {
    "long_header": (f"posts@{DOMAIN}", "".join(f"X-{number}: {'x' * 900}\r\n" for number in range(150))),
    "no_secret": (f"drop@{DOMAIN}", ""),
    "wrong_secret": (f"drop+{'a' * 24}@{DOMAIN}", ""),
}
BODIES = {"bare_cr": b"a\rb\r\n", "cr_cr_lf": b"a\r\r\n", "bare_lf": b"a\nb\r\n"}  # mended by Postfix


@pytest.fixture(scope="module", params=["lmtp", pytest.param("pipe", marks=pytest.mark.long)])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if why := missing():
        pytest.skip(f"POSTFIX IS NOT TESTED: {why}")
    with open_sites() as make:
        made = make(request.param)
        made.start_gateway()
        yield made


def test_nothing_that_postfix_took_is_returned_to_a_forged_sender(site: Site) -> None:
    for name, (rcpt_to, more) in TRICKS.items():
        site.mta.post(VICTIM, [rcpt_to], (HEAD.format(name) + more + "\r\nHello\r\n").encode())
    for name, body in BODIES.items():
        site.mta.post(VICTIM, [f"posts@{DOMAIN}"], HEAD.format(name).encode() + b"\r\n" + body)
    with pytest.raises(AssertionError, match="disallowed character"):
        site.mta.post(VICTIM, [f"posts@{DOMAIN}"], HEAD.format("nul").encode() + b"\r\na\0b\r\n")
    site.mta.drain()
    rows = {str(row["subject"]): row for row in site.mails(len(TRICKS) + len(BODIES))}
    site.mta.assert_no_bounces()
    assert {name: row["disposition"] for name, row in rows.items()} == {
        **dict.fromkeys(BODIES, "delivered"),
        "": "held",  # the header that is too long to be read
        "no_secret": "held",
        "wrong_secret": "held",
    }
