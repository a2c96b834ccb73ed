"""Forgers before a real Postfix: nothing that it took goes back to whom they name, and only our own filters are believed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mta import missing
from premises import DOMAIN, Site, open_sites

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))

from filter_box import FilterBox

VICTIM = "victim@example.net"
HEAD = "From: x@example.com\r\nTo: y@example.com\r\nSubject: {}\r\n"
TRICKS = {
    "long_header": (f"posts@{DOMAIN}", "".join(f"X-{number}: {'x' * 900}\r\n" for number in range(150))),
    "no_secret": (f"drop@{DOMAIN}", ""),
    "wrong_secret": (f"drop+{'a' * 24}@{DOMAIN}", ""),
}
BODIES = {"bare_cr": b"a\rb\r\n", "cr_cr_lf": b"a\r\r\n", "bare_lf": b"a\nb\r\n"}  # mended by Postfix


OURS = "mx.example.net"
FORGED = f"Authentication-Results: {OURS}; dmarc=pass header.from=example.org"
ABOVE, BELOW = 0, 1  # our Received
CASES: dict[str, tuple[int, list[str], str, str]] = {
    # name: (place, what our filters found, in the order they ran; what the client wrote; what becomes of it)
    "above_dkim_then_spf": (ABOVE, ["dkim=pass header.d=example.org", "spf=none"], "", "delivered"),
    "below_dkim_then_dmarc": (BELOW, ["dkim=none", "dmarc=pass header.from=example.org"], "", "delivered"),
    "above_forged": (ABOVE, ["dkim=none"], FORGED, "held"),
    "below_forged": (BELOW, ["dkim=none"], FORGED, "held"),
    "below_forged_and_dmarc": (BELOW, ["dmarc=fail header.from=example.org"], FORGED, "held"),
    "login": (BELOW, ["auth=pass smtp.auth=ann@example.org"], "", "delivered"),
}


@pytest.fixture(scope="module", params=["lmtp", pytest.param("pipe", marks=pytest.mark.long)])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if why := missing():
        pytest.skip(f"POSTFIX IS NOT TESTED: {why}")
    with open_sites() as make:
        made = make(request.param)
        made.house.more |= {"GATEWAY_TRUSTED_AUTHSERV_ID": OURS, "GATEWAY_DNS_SERVERS": "127.0.0.1:1"}
        made.gateway("people", "add", "ann@example.org")
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
    rows = {str(row["subject"]): row for row in site.mails(len(TRICKS) + len(BODIES), {*TRICKS, *BODIES, ""})}
    site.mta.assert_no_bounces()
    assert {name: row["disposition"] for name, row in rows.items()} == {
        **dict.fromkeys(BODIES, "delivered"),
        "": "held",  # the header that is too long to be read
        "no_secret": "held",
        "wrong_secret": "held",
    }


def test_each_field_counts_where_nobody_else_can_write(site: Site) -> None:
    with FilterBox() as box:
        site.mta.command("postconf", "-e", f"smtpd_milters = {box.address}")
        site.mta.command("postfix", "reload")
        for name, (place, found, line, _) in CASES.items():
            box.index, box.fields = place, [("Authentication-Results", f"{OURS}; {text}") for text in found]
            head = f"{line}\r\n" if line else ""
            octets = f"{head}From: ann@example.org\r\nSubject: {name}\r\n\r\n{name}\r\n".encode()
            site.mta.post("x@example.com", [f"members@{DOMAIN}"], octets)
        site.mta.drain()
    rows = {str(row["subject"]): row for row in site.mails(len(CASES), CASES)}
    assert {name: row["disposition"] for name, row in rows.items()} == {name: case[3] for name, case in CASES.items()}
    site.mta.assert_no_bounces()
