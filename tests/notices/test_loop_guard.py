"""Who is never answered: one mail of each kind, a hundred thousand generated ones, and some through the real doors."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from telling_desk import GUARD, HOSTNAME

from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.mail.language import language_of
from gateway.mail.loop_guard import LoopGuard, header_octets, read_headers

HOSTILE_MAILS = 100_000
HONEST = b"From: Ann <ann@example.org>\r\nSubject: Our garden\r\nMessage-ID: <1@example.org>\r\n\r\nHello\r\n"
OURS = f"<0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b12@{HOSTNAME}>"

HOSTILE_HEADERS = (
    "Auto-Submitted: auto-generated",
    "Auto-Submitted: auto-replied; owner-email=a@example.org",
    "AUTO-SUBMITTED:\r\n auto-notified",
    "auto-submitted : Yes (really)",
    "Precedence: bulk",
    "Precedence: LIST",
    "precedence: junk",
    "Precedence: auto_reply",
    "List-Id: <news.example.org>",
    "LIST-UNSUBSCRIBE: <mailto:x@example.org>",
    "List-Post: NO",
    "Mailing-List: list x@example.org; contact y@example.org",
    "X-Mailman-Version: 2.1",
    "X-BeenThere: x@example.org",
    "X-Autoreply: yes",
    "X-Autorespond: away",
    "X-Loop: x@example.org",
    "X-Auto-Response-Suppress: All",
    "X-Auto-Response-Suppress: DR, OOF",
    "Feedback-ID: 1:2:3:esp",
    "X-Failed-Recipients: x@example.org",
    "Return-Path: <>",
    "Content-Type: multipart/report; report-type=delivery-status; boundary=x",
    "content-type: Message/Delivery-Status",
    f"Message-ID: {OURS}",
    "X-Gateway-Notice: 0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b11",
)
HOSTILE_SENDERS = (
    "",
    "MAILER-DAEMON@example.org",
    "mailer_daemon@example.org",
    "postmaster@example.org",
    "noreply@example.org",
    "no-reply@example.org",
    "No.Reply@example.org",
    "no-reply-billing@example.org",
    "news-noreply+x@example.org",
    "donotreply@example.org",
    "do-not-reply@example.org",
    "bounces@example.org",
    "bounce+ann=example.com@example.org",
    "list-bounces@example.org",
    "owner-list@example.org",
    "list-owner@example.org",
    "list-request@example.org",
    "majordomo@example.org",
    "srs0=hash=tt=example.org=ann@example.net",
    "www-data@example.org",
    "photos@in.example.org",
    "ann@example.org ",
    "a@b@c",
    "<>",
)
HOSTILE_WAYS = (
    {"door": "lmtp", "client": "local"},
    {"door": "lmtp", "client": "127.0.0.1"},
    {"door": "pipe", "client": "127.0.0.1"},
    {"door": "", "client": "127.0.0.1"},
    {"door": "smtp", "client": "192.0.2.1"},
    {"door": "smtp", "client": "::ffff:192.0.2.1"},
    {"door": "smtp", "client": "2001:db8::1"},
    {"door": "smtp", "client": "127.0.0.1.example.org"},
    {"door": "smtp", "client": ""},
    # A mail server of ours on this host, whatever it says of its client: it brings the whole world's mail.
    {"door": "smtp", "client": "127.0.0.1", "by_trusted_host": True},
    {"door": "lmtp", "client": "127.0.0.1", "by_trusted_host": True},
    {"door": "smtp", "client": "unknown", "by_trusted_host": True},
)


def envelope(mail_from: str = "ann@example.org", **way: Any) -> Envelope:
    values: dict[str, Any] = {"door": "smtp", "client": "127.0.0.1"} | way
    now = datetime(2026, 3, 1, tzinfo=UTC)
    return Envelope(
        mail_id=new_id(), mail_from=mail_from, rcpt_to=("photos@in.example.org",), received_at=now, **values
    )


def with_header(line: str) -> bytes:
    return line.encode("utf-8", "surrogateescape") + b"\r\n" + HONEST.replace(b"Message-ID: <1@example.org>\r\n", b"")


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_a_person_of_this_host_may_be_told(client: str) -> None:
    telling = GUARD.judge(envelope(client=client), HONEST, "")
    assert (telling.untold, telling.message_id, telling.subject) == ("", "<1@example.org>", "Our garden")


@pytest.mark.parametrize(
    "line", ["Auto-Submitted: no", "Auto-Submitted: No (a person)", "Precedence: first-class", "X-Loopy: 1"]
)
def test_what_only_looks_like_a_machine_may_be_told(line: str) -> None:
    assert GUARD.judge(envelope(), with_header(line), "").untold == ""


@pytest.mark.parametrize(
    "mail_from", ["bob@example.org", "reply@example.org", "bouncer@example.org", "owen@example.org"]
)
def test_ordinary_names_are_people(mail_from: str) -> None:
    assert GUARD.doubt_of_address(mail_from) == ""


@pytest.mark.parametrize("line", HOSTILE_HEADERS)
def test_a_machines_header_is_enough(line: str) -> None:
    assert GUARD.judge(envelope(), with_header(line), "").untold


@pytest.mark.parametrize("mail_from", HOSTILE_SENDERS)
def test_a_machines_address_is_enough(mail_from: str) -> None:
    assert GUARD.judge(envelope(mail_from), HONEST, "").untold


@pytest.mark.parametrize("way", HOSTILE_WAYS)
def test_who_is_not_proven_is_not_told(way: dict[str, Any]) -> None:
    assert GUARD.judge(envelope(**way), HONEST, "").untold


def test_a_mail_server_nobody_named_is_not_a_person_of_this_host() -> None:
    """A Postfix that hands over to 127.0.0.1:2525 by plain smtp, without XFORWARD: the sender may be anybody's forgery."""
    relayed = b"Received: from a by mx.example.net (Postfix)\r\n" + HONEST
    assert "a mail server brought it" in GUARD.judge(envelope(), relayed, "").untold
    assert GUARD.judge(envelope(), relayed, "", is_verified=True).untold == ""


def test_a_mail_servers_own_login_proves_no_sender() -> None:
    relayed = envelope(client="192.0.2.1", by_trusted_host=True, auth="app:relay")
    assert "a mail server of ours" in GUARD.judge(relayed, HONEST, "").untold
    assert GUARD.judge(replace(relayed, by_trusted_host=False), HONEST, "").untold == ""


def test_what_our_mail_server_proves_is_told() -> None:
    handed_over = envelope(door="lmtp", client="192.0.2.1", by_trusted_host=True)
    assert GUARD.judge(handed_over, HONEST, "", is_verified=True).untold == ""


def test_nobody_is_proven_while_a_door_listens_beyond_this_host() -> None:
    open_house: LoopGuard = replace(GUARD, doors_are_local=False)
    assert "listens beyond" in open_house.judge(envelope(), HONEST, "").untold


def test_a_header_beyond_every_limit_is_not_answered() -> None:
    assert read_headers(b"X: " + b"x" * 200_000) is None
    assert read_headers(b"X: 1\r\n" * 5_000 + b"\r\n") is None
    assert GUARD.judge(envelope(), b"X: " + b"x" * 200_000, "").untold


def test_a_very_long_header_is_returned_up_to_a_whole_line() -> None:
    returned = header_octets(b"X: 1234567890\r\n" * 6_000 + b"\r\nbody")
    assert len(returned) <= 64 * 1024
    assert returned.endswith(b"\r\n")
    assert header_octets(HONEST) == HONEST.partition(b"Hello")[0].removesuffix(b"\r\n")


def hostile_mails(number: int) -> Iterator[tuple[Envelope, bytes]]:
    """Hostile in at least one way, otherwise as honest as can be; spelled, placed and combined at random."""
    chance = random.Random(20260301)
    honest = (
        b"X-Mailer: pen",
        b"Auto-Submitted: no",
        b"References: <2@example.org>",
        b"Date: Sun, 1 Mar 2026 12:00:00 +0000",
    )
    for kind in itertools.islice(itertools.cycle(("headers", "sender", "way")), number):
        line, mail_from, way = "", f"person{chance.randrange(1000)}@example.org", {}
        if kind == "headers" or chance.random() < 0.2:
            line = _spelled(chance.choice(HOSTILE_HEADERS), chance)
        if kind == "sender" or chance.random() < 0.2:
            mail_from = chance.choice(HOSTILE_SENDERS)
        if kind == "way" or chance.random() < 0.2:
            way = chance.choice(HOSTILE_WAYS)
        lines = [b"From: Ann <ann@example.org>", b"Subject: s", *chance.sample(honest, chance.randrange(4))]
        if line:
            lines.insert(chance.randrange(len(lines) + 1), line.encode())
        if "essage-i" not in line.lower():
            lines.append(b"Message-ID: <1@example.org>")
        yield envelope(mail_from, **way), b"\r\n".join(lines) + b"\r\n\r\nHello\r\n"


def _spelled(line: str, chance: random.Random) -> str:
    name, _, value = line.partition(":")
    name = chance.choice((name, name.upper(), name.lower(), name + " ", name.title()))
    return name + chance.choice((":", ": ", ":\t", ":\r\n ")) + value.strip()


def test_a_hundred_thousand_hostile_mails_are_answered_not_once() -> None:
    answered = [
        (sent, octets) for sent, octets in hostile_mails(HOSTILE_MAILS) if not GUARD.judge(sent, octets, "").untold
    ]
    assert answered == []


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Hello, this is the garden and it is not for you", "en"),
        ("Guten Tag, ich habe eine Frage und bitte um Antwort", "de"),
        ("Bonjour, le jardin est dans la ville et vous aussi", "fr"),
        ("Hola, el jardín es muy grande y no se ve con la niebla", "es"),
        ("Привіт, це наш сад і він дуже гарний", "uk"),
        ("12345", ""),
        ("", ""),
    ],
)
def test_a_language_is_known_by_its_little_words(text: str, language: str) -> None:
    assert language_of("", "", text) == language


def test_the_headers_know_better_than_the_text() -> None:
    assert language_of("de-AT", "fr", "the and of to is") == "de"
    assert language_of("", "fr;q=0.5, uk;q=0.9, *;q=0.1", "the and of to is") == "uk"
    assert language_of("x" * 10_000, "q=;;=,", "") == ""


def test_a_login_and_a_domain_that_vouches_prove_a_sender_wherever_he_connects_from() -> None:
    far = replace(envelope(), client="203.0.113.9")
    octets = b"Subject: x\r\n\r\nx\r\n"
    assert "not verified" in GUARD.judge(far, octets).untold
    assert GUARD.judge(far, octets, is_verified=True).untold == ""
    assert GUARD.judge(replace(far, auth="app:shop"), octets).untold == ""
    assert GUARD.judge(replace(far, auth=far.mail_from), octets).untold == ""
    assert GUARD.judge(replace(far, auth="bob@example.org"), octets).untold != ""
    assert "null sender" in GUARD.judge(replace(far, mail_from=""), octets, is_verified=True).untold
