"""What people mail through a real Postfix arrives octet for octet, by LMTP and by pipe, to everyone it was for."""

from __future__ import annotations

import hashlib
import smtplib
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from mta import missing, without_trace
from premises import DOMAIN, Site, open_sites

HEAD = (
    "From: Ann <ann@example.net>\r\nTo: posts@in.example.org\r\nDate: Fri, 27 Nov 2026 17:00:00 +0000\r\n"
    "Message-ID: <{}@example.net>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nSubject: {}\r\n"
)


def mail(name: str, body: bytes, more: str = "") -> bytes:
    return (HEAD.format(name, name) + more + "\r\n").encode() + body


MAILS = {
    "plain": mail("plain", b"One line.\r\n"),
    "eight_bit": mail("eight_bit", "Grüße, €\r\n".encode(), "Content-Transfer-Encoding: 8bit\r\n"),
    "latin1": mail("latin1", b"Gr\xfc\xdfe\r\n", "Content-Transfer-Encoding: 8bit\r\n"),
    "dots": mail("dots", b".\r\n..\r\n.dot\r\nend .\r\n.\r\n"),
    "begins_with_dot": mail("begins_with_dot", b".x\r\n"),
    "empty_body": mail("empty_body", b""),
    "blank_ends": mail("blank_ends", b"trailing  \r\n\t\r\n\r\n\r\n"),
    "long_lines": mail("long_lines", b"x" * 998 + b"\r\n" + b"y" * 50_000 + b"\r\n" + b"z " * 6_000 + b"\r\n"),
    "ten_megabytes": mail("ten_megabytes", b"".join(b"%076d\r\n" % number for number in range(135_000))),
}


@pytest.fixture(scope="module", params=["lmtp", "pipe"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """One site for the mails of all these tests, told apart by their subjects."""
    if why := missing():
        pytest.skip(f"POSTFIX IS NOT TESTED: {why}")
    with open_sites() as make:
        made = make(request.param)
        made.start_gateway()
        yield made


def test_every_octet_arrives_as_postfix_got_it(site: Site) -> None:
    for octets in MAILS.values():
        site.mta.post("ann@example.net", [f"posts@{DOMAIN}"], octets)
    utf8 = mail("utf8", "Grüße\r\n".encode(), "X-Name: Jürgen\r\nContent-Transfer-Encoding: 8bit\r\n")
    site.mta.post("jürgen@example.net", ["bestellung@bücher.example"], utf8)
    site.mta.drain()

    rows = site.mails(len(MAILS) + 1, {*MAILS, "utf8"})
    assert {row["disposition"] for row in rows} == {"delivered"}
    wanted = Counter(hashlib.sha256(octets).hexdigest() for octets in [*MAILS.values(), utf8])
    kept = site.octets()
    got = [without_trace(kept[str(row["id"])]) for row in rows]
    assert Counter(hashlib.sha256(octets).hexdigest() for octets in got) == wanted
    assert {row["mail_from"] for row in rows} == {"ann@example.net", "jürgen@example.net"}
    assert "bestellung@bücher.example" in {row["rcpt_to"] for row in rows}
    site.mta.assert_no_bounces()


def test_everyone_of_many_recipients_gets_it_once(site: Site) -> None:
    count = 250 if site.transport == "lmtp" else 12
    recipients = [f"posts+{number}@{DOMAIN}" for number in range(count - 1)] + [f"postmaster@{DOMAIN}"]
    site.mta.post("ann@example.net", recipients, mail("many", b"One for all.\r\n"))
    site.mta.drain()
    rows = site.mails(count, {"many"})
    assert Counter(str(row["rcpt_to"]) for row in rows) == Counter(recipients)
    assert len({row["id"] for row in rows}) == (1 if site.transport == "lmtp" else count)
    site.mta.assert_no_bounces()


def test_the_gateway_hears_who_the_client_was(site: Site) -> None:
    facts = {"NAME": "mail.example.com", "ADDR": "192.0.2.25", "HELO": "mail.example.com", "PROTO": "ESMTP"}
    site.mta.post("", [f"posts@{DOMAIN}"], mail("by IPv4", b"x\r\n"), **facts)
    facts = {"ADDR": "IPV6:2001:db8::25", "HELO": "[UNAVAILABLE]"}
    site.mta.post("ann@example.net", [f"posts@{DOMAIN}"], mail("by IPv6", b"x\r\n"), **facts)
    site.mta.drain()
    ids = {str(row["subject"]): str(row["id"]) for row in site.mails(2, {"by IPv4", "by IPv6"})}
    for subject, client in (("by IPv4", "192.0.2.25"), ("by IPv6", "2001:db8::25")):
        (queued,) = [line for line in site.house.log().splitlines() if "mail-queued" in line and ids[subject] in line]
        assert f"client='{client}'" in queued
    site.mta.assert_no_bounces()


def test_unknown_recipients_are_refused_at_rcpt_also_while_the_gateway_is_down(
    make_site: Callable[[str], Site],
) -> None:
    site = make_site("lmtp")
    with smtplib.SMTP("127.0.0.1", site.mta.port, local_hostname="client.example.net", timeout=60) as session:
        session.ehlo()
        session.mail("ann@example.net")
        for refused in (f"nobody@{DOMAIN}", f"post@{DOMAIN}", f"nobody+posts@{DOMAIN}"):
            code, reply = session.rcpt(refused)
            assert code == 550, reply
            assert b"User unknown in relay recipient table" in reply
        for taken in (f"posts@{DOMAIN}", f"POSTS+a+b@{DOMAIN.upper()}", f"abuse@{DOMAIN}", "x@xn--bcher-kva.example"):
            code, reply = session.rcpt(taken)
            assert code == 250, reply
