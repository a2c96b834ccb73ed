"""What the filters of a real Postfix write is believed, where they write it, and what a forger writes there is not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from premises import DOMAIN, Site

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))

from filter_box import FilterBox

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


def test_each_field_counts_where_nobody_else_can_write(make_site: Callable[[str], Site]) -> None:
    site = make_site("lmtp")
    site.house.more |= {"GATEWAY_TRUSTED_AUTHSERV_ID": OURS, "GATEWAY_DNS_SERVERS": "127.0.0.1:1"}
    site.gateway("people", "add", "ann@example.org")
    site.start_gateway()
    with FilterBox() as box:
        site.mta.command("postconf", "-e", f"smtpd_milters = {box.address}")
        site.mta.command("postfix", "reload")
        for name, (place, found, line, _) in CASES.items():
            box.index, box.fields = place, [("Authentication-Results", f"{OURS}; {text}") for text in found]
            head = f"{line}\r\n" if line else ""
            octets = f"{head}From: ann@example.org\r\nSubject: {name}\r\n\r\n{name}\r\n".encode()
            site.mta.post("x@example.com", [f"members@{DOMAIN}"], octets)
        site.mta.drain()
    rows = {str(row["subject"]): row for row in site.mails(len(CASES))}
    assert {name: row["disposition"] for name, row in rows.items()} == {name: case[3] for name, case in CASES.items()}
    site.mta.assert_no_bounces()
