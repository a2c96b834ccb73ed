"""Every notice in every language: whole words, safe html, and a report that somebody else's parser understands."""

from __future__ import annotations

import email
import email.policy
import re
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from flufl.bounce import all_failures
from telling_desk import HOUSE, TEMPLATES

from gateway.cage import Cage
from gateway.mail.addresses import Address
from gateway.mail.dsn import Head, Report, write_notice
from gateway.mail.ids import new_id
from gateway.notices.words import params_of
from gateway.notices.writer import NoticeWriter
from gateway.outbound.compose import Rendered
from gateway.outbound.render import fill
from gateway.outbound.templates import TemplateSet
from gateway.store.notice_plans import State
from gateway.store.notices import Notice, Written

LANGUAGES = ["en", "de", "fr", "es", "uk"]
KEYS = ["delayed-1", "delayed-2", "failed", "partial", "held", "digest"]
ENDS = ["failed", "expired", "suppressed", "dead", "unknown"]
NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
HEADER = (
    b"Received: from [127.0.0.1] by gateway.example.org; Sun, 1 Mar 2026 12:00:00 +0000\r\n"
    b"From: =?utf-8?q?Ann?= <ann@example.org>\r\nSubject: Our garden\r\n\r\nThe secret body.\r\n"
)
FACTS = {
    "received_at": NOW.isoformat(),
    "last_attempt_at": NOW.isoformat(),
    "subject": "Our <b>garden</b> & yours",
    "message_id": "<garden@example.org>",
    "language": "",
}


def notice(stage: str, language: str = "en", **facts: Any) -> Notice:
    more: dict[str, Any] = {
        "failed": {"because": "takes no mail <i>any more</i>", "reply": "554 5.7.1 takes no mail any more"},
        "partial": {"refused": [{"filename": "tulips.tiff", "reason": "has 120 megapixels"}], "refused_count": 3},
        "digest": {
            "gathered": [
                {
                    "stage": "failed",
                    "subject": f"Mail {number}",
                    "recipient": "photos@in.example.org",
                    "received_at": NOW.isoformat(),
                    "accepted_at": None,
                    "id": new_id(),
                }
                for number in range(3)
            ],
            "count": 5,
        },
    }.get(stage, {})
    return Notice(
        id=new_id(),
        subject=new_id(),
        kind="mail",
        recipient="photos@in.example.org",
        addressee="ann@example.org",
        stage=stage,
        facts=FACTS | {"language": language} | more | facts,
        state=State.CHOSEN,
        due_at=NOW,
        told_at=NOW,
    )


def of_an_email(disposition: str, language: str) -> Notice:
    facts = {"disposition": disposition, "accepted_at": NOW.isoformat(), "template": "invoice", "reply": "550 5.1.1 no"}
    return replace(notice("asked", language), kind="email", facts=facts | {"language": language})


async def write(item: Notice, cage: Cage, source: bytes = HEADER) -> Written:
    templates = TemplateSet([TEMPLATES])

    async def filled(template: str, params: dict[str, Any], locale: str) -> Rendered:
        return await fill(template, params, locale, cage=cage, templates=templates)

    return await NoticeWriter(HOUSE, filled).write(item, b"" if item.stage in ("digest", "asked") else source)


def read(octets: bytes) -> EmailMessage:
    message = email.message_from_bytes(octets, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def words(language: str) -> str:
    name = "words.txt" if language == "en" else f"words.{language}.txt"
    return (TEMPLATES / "notices" / name).read_text()


def shape(text: str) -> list[str]:
    """What a language must not change: names, keys and placeholders."""
    found = re.findall(r'set (\w+) =|"([\w-]+)": "|(%\(\w+\)s)', text)
    return sorted("".join(item) for item in found)


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_every_language_has_every_sentence_with_its_placeholders(language: str) -> None:
    def placed(text: str) -> list[tuple[str, list[str]]]:
        lines = [line for line in text.splitlines() if not line.startswith("{% set date")]
        return [
            (line.partition(":")[0].strip(), sorted(re.findall(r"%\(\w+\)s", line))) for line in lines if '": "' in line
        ]

    assert shape(words(language)) == shape(words("en"))
    for mine, english in zip(placed(words(language)), placed(words("en")), strict=True):
        if not mine[0].startswith("{%"):
            assert mine == english


@pytest.mark.parametrize("language", LANGUAGES)
async def test_every_notice_reads_whole_in_every_language(cage: Cage, language: str) -> None:
    items = [notice(stage, language) for stage in KEYS] + [of_an_email(end, language) for end in ENDS]
    for item in items:
        written = await write(item, cage)
        message = read(written.octets)
        plain, html = message.get_body(("plain",)), message.get_body(("html",))
        assert plain is not None
        assert html is not None
        assert message["Subject"] == written.subject
        for text in (plain.get_content(), html.get_content()):
            assert "%(" not in text
            assert "{{" not in text
        assert f'lang="{language}"' in html.get_content()
        assert "<b>garden" not in html.get_content()
        assert "<i>any more" not in html.get_content()
        assert "secret body" not in str(message)


async def test_a_language_without_words_gets_the_english_ones(cage: Cage) -> None:
    written = await write(notice("failed", "ja"), cage)
    assert written.subject.startswith("Not delivered:")


async def test_a_house_says_in_which_language_it_speaks_to_who_shows_none(cage: Cage) -> None:
    item = notice("failed", "")
    params = params_of(item, HOUSE)
    assert params["n"]["key"] == "failed"
    assert (await write(item, cage)).subject.startswith("Not delivered:")


async def test_a_failure_is_found_by_an_independent_parser(cage: Cage) -> None:
    written = await write(notice("failed"), cage)
    temporary, permanent = all_failures(email.message_from_bytes(written.octets))
    assert (temporary, permanent) == (set(), {b"photos@in.example.org"})


@pytest.mark.parametrize("stage", ["delayed-1", "delayed-2", "held"])
async def test_a_delay_is_no_failure_to_an_independent_parser(cage: Cage, stage: str) -> None:
    written = await write(notice(stage), cage)
    temporary, permanent = all_failures(email.message_from_bytes(written.octets))
    assert (temporary, permanent) == ({b"photos@in.example.org"}, set())


@pytest.mark.parametrize(
    ("stage", "action", "status"),
    [
        ("delayed-1", "delayed", "4.3.0"),
        ("failed", "failed", "5.7.1"),
        ("partial", "delivered", "2.6.4"),
        ("held", "delayed", "4.2.0"),
    ],
)
async def test_a_report_has_the_fields_of_rfc_3464(cage: Cage, stage: str, action: str, status: str) -> None:
    item = notice(stage)
    message = read((await write(item, cage)).octets)
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    human, status_part, headers = message.iter_parts()
    assert human.get_content_type() == "multipart/alternative"
    assert status_part.get_content_type() == "message/delivery-status"
    of_mail, of_recipient = status_part.get_payload()
    assert of_mail["Reporting-MTA"] == "dns; gateway.example.org"
    assert of_mail["Arrival-Date"] == "Sun, 01 Mar 2026 12:30:00 +0000"
    assert of_recipient["Final-Recipient"] == "rfc822; photos@in.example.org"
    assert (of_recipient["Action"], of_recipient["Status"]) == (action, status)
    assert of_recipient["Final-Log-ID"] == item.subject
    assert ("Will-Retry-Until" in of_recipient) == (action == "delayed" and stage != "held")
    assert ("Diagnostic-Code" in of_recipient) == (stage == "failed")
    assert headers.get_content_type() == "text/rfc822-headers"
    assert headers.get_payload(decode=True).strip() == HEADER.partition(b"\r\n\r\n")[0]


def report(**fields: Any) -> EmailMessage:
    head = Head(
        id=new_id(),
        from_=Address(mailbox="postmaster@example.org", name="gateway"),
        to="ann@example.org",
        subject="s\r\nX-Evil: 1",
        date=NOW,
        hostname="gateway.example.org",
    )
    values = {
        "recipient": "a@example.org",
        "action": "failed",
        "status": "5.0.0",
        "arrived_at": NOW,
        "log_id": "1",
        "headers": b"Subject: x\r\n",
    }
    octets = write_notice(head, text="t", html="<p>h</p>", report=Report(**values | fields))
    assert octets.isascii()
    assert octets.count(b"\n") == octets.count(b"\r\n") == octets.count(b"\r")
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    return read(octets)


def test_no_value_of_a_peer_starts_a_line() -> None:
    message = report(diagnostic="554 no\r\nAction: delivered", headers=b"Subject: x\n\n--=_\r\nX: y\r\n")
    assert "X-Evil" not in message
    *_, status, _ = message.iter_parts()
    assert status.get_payload()[1].get_all("Action") == ["failed"]


def test_an_international_recipient_is_named_as_rfc_6533_has_it() -> None:
    message = report(recipient="grüße@example.org")
    *_, status, _ = message.iter_parts()
    assert status.get_payload()[1]["Final-Recipient"] == r"utf-8; gr\x{FC}\x{DF}e@example.org"


@pytest.mark.parametrize(
    "header", [b"Subject: gr\xc3\xbc\xc3\x9fe\r\n", b"Subject: " + b"x" * 2000 + b"\r\n", b"\xff\x00:\r\n"]
)
def test_any_header_comes_back_readable(header: bytes) -> None:
    *_, part = report(headers=header).iter_parts()
    assert part.get_payload(decode=True) == header.replace(b"\0", b"")


def test_the_notices_are_shipped() -> None:
    assert Path(TEMPLATES / "notices" / "subject.txt").is_file()
