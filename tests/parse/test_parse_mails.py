"""Parsing mails as they really come: broken, odd, and hostile."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from write_mails import tnef

from gateway.cage import Cage
from gateway.errors import JobFailed
from gateway.mail.parse import TooComplex, parse
from gateway.mail.parse.fallback import parse_octets
from gateway.mail.parse.guards import Limits, check
from gateway.mail.parse.tree import Person, from_transport, to_transport

PARTS = b"""\
From: =?utf-8?Q?J=C3=BCrgen_M?= =?utf-8?Q?=C3=BCller?= <j@example.org>\r
To: posts@localhost, "Bob, the builder" <bob@example.org>\r
Date: Thu, 1 Jan 2026 12:00:00 +0200\r
Message-ID: <one@example.org>\r
In-Reply-To: <zero@example.org>\r
References: <minus@example.org>\r
 <zero@example.org>\r
Subject: =?iso-8859-1?Q?=C4rger?=\r
 =?utf-8?B?IGFtIFNlZQ==?=\r
Content-Type: multipart/mixed; boundary="outer end"\r
\r
preamble\r
--outer end\r
Content-Type: multipart/alternative; boundary=inner\r
\r
--inner\r
Content-Type: text/plain; charset=iso-8859-1\r
Content-Transfer-Encoding: quoted-printable\r
\r
Gr=FC=DFe=\r
 vom See\r
--inner\r
Content-Type: text/html; charset=utf-8\r
\r
<p>Gr\xc3\xbc\xc3\x9fe</p>\r
--inner--\r
--outer end  \r
Content-Type: image/jpeg\r
Content-Transfer-Encoding: base64\r
Content-Disposition: attachment; filename*0*=utf-8''Stra%C3%9F; filename*1="e 1.jpg"\r
\r
aGVsbG8=\r
--outer end\r
Content-Type: message/rfc822\r
\r
Subject: the forwarded\r
Content-Type: multipart/mixed; boundary=deep\r
\r
--deep\r
\r
text of the forwarded\r
--deep--\r
\r
--outer end--\r
epilogue\r
"""


def test_a_mail_of_many_parts_is_taken_apart() -> None:
    mail = parse_octets(PARTS)
    assert mail.subject == "Ärger am See"
    assert mail.from_ == Person(name="Jürgen Müller", address="j@example.org")
    assert mail.to == (Person(address="posts@localhost"), Person(name="Bob, the builder", address="bob@example.org"))
    assert mail.date == datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert (mail.message_id, mail.in_reply_to) == ("one@example.org", "zero@example.org")
    assert mail.references == ("minus@example.org", "zero@example.org")
    assert mail.text == "Grüße vom See"
    assert mail.html == "<p>Grüße</p>"
    assert mail.defects == ()
    photo, forwarded = mail.attachments
    assert (photo.filename, photo.content_type, photo.octets) == ("Straße 1.jpg", "image/jpeg", b"hello")
    assert forwarded.content_type == "message/rfc822"
    assert forwarded.octets.startswith(b"Subject: the forwarded\r\n")
    assert forwarded.octets.endswith(b"--deep--\r\n")


def test_the_way_out_of_the_cage_changes_nothing() -> None:
    mail = parse_octets(PARTS)
    assert from_transport(*to_transport(mail)) == mail


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_both_line_ends_are_read(line_end: bytes) -> None:
    mail = parse_octets(PARTS.replace(b"\r\n", line_end))
    assert (mail.subject, mail.text, len(mail.attachments)) == ("Ärger am See", "Grüße vom See", 2)


@pytest.mark.parametrize("octets", [b"", b"\r\n", b"\r\n\r\n", b"\n", b"Subject: \r\n\r\n"])
def test_an_empty_mail_is_a_mail(octets: bytes) -> None:
    mail = parse_octets(octets)
    assert (mail.subject, mail.text, mail.html, mail.attachments) == ("", "", "", ())


def test_text_without_a_header_is_text_with_a_defect() -> None:
    mail = parse_octets(b"just words\r\nand more\r\n")
    assert mail.text == "just words\nand more"
    assert mail.defects == ("no empty line between header and body",)


def test_a_photo_alone_is_an_attachment_and_no_text() -> None:
    mail = parse_octets(
        b"Subject: \r\nContent-Type: image/png; name=a.png\r\nContent-Transfer-Encoding: base64\r\n\r\naGVsbG8=\r\n"
    )
    assert mail.text == ""
    assert [(item.filename, item.octets) for item in mail.attachments] == [("a.png", b"hello")]


def test_only_html_is_turned_into_text() -> None:
    mail = parse_octets(b"Content-Type: text/html\r\n\r\n<p>One &amp; two</p><ul><li>three</ul><script>no()</script>")
    assert mail.text == "One & two\n\n* three"
    assert mail.text_is_from_html
    assert mail.html == "<p>One &amp; two</p><ul><li>three</li></ul>"


@pytest.mark.parametrize(
    "evil",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        '<a href="javascript:alert(1)">x</a>',
        '<a href=" java\nscript:alert(1)">x</a>',
        '<img src="http://tracker.example/pixel.gif">',
        '<img src="//tracker.example/pixel.gif">',
        "<style>@import 'http://tracker.example'</style>",
        '<p style="background:url(http://tracker.example)">x</p>',
        "<form action=http://tracker.example><input name=password></form>",
        "<iframe src=http://tracker.example></iframe>",
        "<svg><script>alert(1)</script></svg>",
        "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
        "<meta http-equiv=refresh content='0;url=http://tracker.example'>",
        "<base href=http://tracker.example>",
    ],
)
def test_no_html_speaks_runs_or_tells(evil: str) -> None:
    html = parse_octets(b"Content-Type: text/html\r\n\r\n" + evil.encode()).html.lower()
    for sign in ("script", "onerror", "tracker", "style", "<form", "<input", "<iframe", "<svg", "<meta", "<base"):
        assert sign not in html


def test_pictures_of_the_mail_itself_stay() -> None:
    octets = (
        b"Content-Type: multipart/related; boundary=r\r\n\r\n--r\r\nContent-Type: text/html\r\n\r\n"
        b'<p><img src="cid:one@x" alt="a"></p>\r\n--r\r\nContent-Type: image/gif\r\nContent-ID: <one@x>\r\n\r\nGIF89a\r\n--r--\r\n'
    )
    mail = parse_octets(octets)
    assert mail.html == '<p><img src="cid:one@x" alt="a"></p>'
    assert [(item.content_id, item.inline) for item in mail.attachments] == [("one@x", True)]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b"Content-Disposition: attachment; filename=plain.pdf", "plain.pdf"),
        (b'Content-Disposition: attachment; filename="with ; and \\" in.pdf"', 'with ; and " in.pdf'),
        (b"Content-Disposition: attachment; filename*=UTF-8'de'gr%C3%BCn.pdf", "grün.pdf"),
        (b"Content-Disposition: attachment; filename*=iso-8859-1''gr%FCn.pdf", "grün.pdf"),
        (b"Content-Disposition: attachment; filename*1=b.pdf; filename*0=a", "ab.pdf"),
        (b'Content-Disposition: attachment; filename="=?utf-8?Q?gr=C3=BCn.pdf?="', "grün.pdf"),
        (b'Content-Disposition: attachment; filename="gr\xc3\xbcn.pdf"', "grün.pdf"),
        (b'Content-Disposition: attachment; filename="gr\xfcn.pdf"', "grün.pdf"),
        (b'Content-Type: application/pdf;\r\n\tname="folded\r\n name.pdf"', "folded name.pdf"),
        (b'Content-Disposition: attachment; filename="../../etc/passwd"', "passwd"),
        (b'Content-Disposition: attachment; filename="C:\\\\temp\\\\a.exe"', "a.exe"),
        (b'Content-Disposition: attachment; filename="C:\\Users\\me\\a.pdf"', "a.pdf"),
        (b'Content-Disposition: attachment filename="no semicolon.pdf"', "no semicolon.pdf"),
        (b'Content-Disposition: filename="no kind.pdf"', "no kind.pdf"),
        (b'Content-Type: application/pdf name="no semicolon.pdf"', "no semicolon.pdf"),
        (b"Content-Disposition: attachment; size=3; filename= a b.pdf ;x=y", "a b.pdf"),
        (b"Content-Disposition: attachment; filename*=utf-8''a%E2%80%AEgpj.exe", "a gpj.exe"),
        (b"Content-Disposition: attachment; filename*=utf-8''a%0D%0Ab%00.txt", "a b.txt"),
        (b"Content-Disposition: attachment; filename=" + b"x" * 500 + b".jpeg", "x" * 195 + ".jpeg"),
        (b"Content-Disposition: attachment", ""),
        (b"Content-Disposition: attachment; filename*=broken%ZZ", "broken%ZZ"),
    ],
)
def test_attachment_names_are_read_and_harmless(header: bytes, name: str) -> None:
    if not header.startswith(b"Content-Type"):
        header += b"\r\nContent-Type: application/pdf"
    (attachment,) = parse_octets(header + b"\r\n\r\nx").attachments
    assert attachment.filename == name


@pytest.mark.parametrize(
    ("raw", "subject"),
    [
        (b"plain", "plain"),
        (b"=?utf-8?B?w4Q=?=", "Ä"),
        (b"=?UTF-8?q?a_b=5F?=", "a b_"),
        (b"=?utf-8?Q?a?= =?utf-8?Q?b?=", "ab"),
        (b"=?utf-8?Q?a?= b =?utf-8?Q?c?=", "a b c"),
        (b"x=?utf-8?Q?a?=y", "xay"),
        (b"=?utf-8?B?4pi=?= =?utf-8?B?gw==?=", "☃"),
        (b"=?utf-8*de?Q?gr=C3=BCn?=", "grün"),
        (b"=?iso-2022-jp?B?GyRCRnxLXBsoQg==?=", "日本"),
        (b"=?gb2312?B?1tDOxA==?=", "中文"),
        (b"=?nonsense?Q?gr=C3=BCn?=", "grün"),
        (b"=?utf-8?Q?spaces in it?=", "spaces in it"),
        (b"=?utf-8?B?YWJj", "=?utf-8?B?YWJj"),
        (b"=?utf-8?B?YWJj!!?=", "abc"),
        (b"=?utf-8?X?abc?=", "=?utf-8?X?abc?="),
        (b"raw \xc3\xa4 utf-8", "raw ä utf-8"),
        (b"raw \xe4 latin", "raw ä latin"),
        (b"raw \x1b$BF|K\\\x1b(B jis", "raw 日本 jis"),
        (b"=?utf-8?Q?Bcc:=0D=0Aevil@example.org?=", "Bcc: evil@example.org"),
        (b"=?utf-8?B?AAAA?=", ""),
        (b"folded\r\n\tonce\r\n  more", "folded once more"),
        (b"=?utf-8?Q?=E2=80=AEevil?=", "evil"),
    ],
)
def test_subjects_are_read_whatever_their_coding(raw: bytes, subject: str) -> None:
    assert parse_octets(b"Subject: " + raw + b"\r\n\r\n").subject == subject


@pytest.mark.parametrize(
    ("declared", "octets", "text", "defects"),
    [
        (b"utf-8", "grün ☃".encode(), "grün ☃", 0),
        (b"us-ascii", "grün".encode(), "grün", 0),
        (b"iso-8859-1", "grün".encode(), "grün", 0),
        (b"iso-8859-1", b"gr\xfcn \x80 5", "grün € 5", 0),
        (b"utf-8", b"gr\xfcn", "grün", 0),
        (b"unknown-8bit", b"gr\xfcn", "grün", 0),
        (b"shift_jis", "日本語".encode("cp932"), "日本語", 0),
        (b"iso-2022-jp", "日本語".encode("iso-2022-jp"), "日本語", 0),
        (b"utf-16", "grün".encode("utf-16"), "grün", 0),
        (b"utf-8", "ä".encode() * 30 + b"\xc3", "ä" * 30 + "\ufffd", 1),
        (b"base64", b"plain", "plain", 0),
        (b"punycode", b"plain", "plain", 0),
        (b"utf-8", b"nul\0here", "nulhere", 0),
        (b"utf-8", b"\xef\xbb\xbfwith mark", "with mark", 0),
        (b"utf-8", "grün 日本".encode("utf-16"), "grün 日本", 0),
        (b"", b"\xfe\xff" + "grün 日本".encode("utf-16-be"), "grün 日本", 0),
        (b"utf-16", "big end first".encode("utf-16-be"), "big end first", 0),
        (b"utf-16", "little end first".encode("utf-16-le"), "little end first", 0),
        (b"iso-2022-jp", b"\x1b(IJ]68\x1b(B", "ﾊﾝｶｸ", 0),
        (b"iso-2022-jp", b"\x1b$B-!F|K\\\x1b(B", "①日本", 0),
        (b"iso-2022-jp-ms", "日本語".encode("iso-2022-jp"), "日本語", 0),
        (b"us-ascii", "日本語".encode("iso-2022-jp"), "日本語", 0),
        (b"euc-jp", b"\xad\xa1\xc6\xfc\xcb\xdc", "①日本", 0),
        (b"big5", "繁體中文碁".encode("cp950"), "繁體中文碁", 0),
        (b"big5", "嘅香港".encode("big5hkscs"), "嘅香港", 0),
        (b"x-mac-roman", "café".encode("mac-roman"), "café", 0),
        (b"x-mac-cyrillic", "Привет".encode("mac-cyrillic"), "Привет", 0),
    ],
)
def test_text_is_read_whatever_its_label(declared: bytes, octets: bytes, text: str, defects: int) -> None:
    mail = parse_octets(b"Content-Type: text/plain; charset=" + declared + b"\r\n\r\n" + octets)
    assert mail.text == text
    assert len(mail.defects) == defects


@pytest.mark.parametrize(
    ("body", "octets"),
    [
        (b"aGVsbG8=", b"hello"),
        (b"aGVs\r\nbG8=\r\n", b"hello"),
        (b"aGVsbG8", b"hello"),
        (b"aGV!sbG8=", b"hello"),
        (b"aGVs=bG8=", b"hello"[:3] + b"lo"),
        (b"aGVsbG8=\r\n-- \r\n", b"hello"),
        (b"aGVsbG8=\r\n--\r\na footer of a list\r\n", b"hello"),
        (b"a", b""),
    ],
)
def test_damaged_base64_gives_what_is_left(body: bytes, octets: bytes) -> None:
    mail = parse_octets(b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n" + body)
    assert mail.attachments[0].octets == octets


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"Content-Type: multipart/mixed\r\n\r\nno boundary", "no boundary"),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\nnever used", "never used"),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nno end", "no end"),
        (
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--bb\r\n--b\r\n\r\none\r\n--bx\r\ntwo\r\n--b--",
            "one\n--bx\ntwo",
        ),
        (b"Content-Type: nonsense\r\n\r\ntext", "text"),
        (b"content-type: TEXT/Plain\r\n\r\ntext", "text"),
        (b"Subject: x\r\nnot a header\r\n\r\ntext", "not a header\n\ntext"),
        (b"From someone Thu Jan  1 00:00:00 2026\nSubject: x\n\ntext\n", "text"),
        (b'Content-Type: multipart/mixed; boundary="b "\r\n\r\n--b \r\n\r\none\r\n--b --\r\nrest', "one"),
        (b'Content-Type: multipart/mixed; boundary=""\r\n\r\n--\r\n\r\none\r\n----\r\nrest', "one"),
        (b"Content-Type: multipart/mixed; boundary='b'\r\n\r\n--b\r\n\r\none\r\n--b--\r\nrest", "one"),
        (b"Content-Transfer-Encoding: quoted-printable\r\n\r\none= \r\n two=\t\r\n", "one two"),
        (b"Content-Transfer-Encoding: base64\r\n\r\nNot encoded at all.\r\n", "Not encoded at all."),
        (
            b"Content-Transfer-Encoding: base64\r\n\r\naGVsbG8K\r\n-- \r\nA footer of the list\r\n",
            "hello\n-- \nA footer of the list",
        ),
    ],
)
def test_broken_structures_give_their_text(octets: bytes, text: str) -> None:
    assert parse_octets(octets).text == text


@pytest.mark.parametrize(
    ("raw", "name", "address"),
    [
        (b"ann@example.org <ann@example.org>", "ann@example.org", "ann@example.org"),
        (b"[Shop] Ann <ann@example.org>", "[Shop] Ann", "ann@example.org"),
        (b"Doe, John <john@example.org>", "Doe, John", "john@example.org"),
        (b'"Doe, \\"J\\" John" <john@example.org>', 'Doe, "J" John', "john@example.org"),
        (b"J\xfcrgen Q. Doe <j@example.org>", "Jürgen Q. Doe", "j@example.org"),
        (b"J\xfcrgen. Doe <j@example.org>, K\xe4te <k@example.org>", "Jürgen. Doe", "j@example.org"),
        (b"Ann <mailto:ann@example.org>", "Ann", "ann@example.org"),
        (b"ann@example.org (Ann)", "Ann", "ann@example.org"),
        (b"a@example.org, Bob <b@example.org>", "", "a@example.org"),
        (b"Team: Ann <ann@example.org>, b@example.org;", "Ann", "ann@example.org"),
        (b"Bob (at work, often) <b@example.org>", "Bob (at work, often)", "b@example.org"),
    ],
)
def test_the_author_is_read_however_the_name_is_written(raw: bytes, name: str, address: str) -> None:
    author = parse_octets(b"From: " + raw + b"\r\n\r\nx").from_
    assert (author.name, author.address) == (name, address)


def test_a_title_of_a_page_is_no_part_of_the_text() -> None:
    mail = parse_octets(b"Content-Type: text/html\r\n\r\n<html><head><title>News</title></head><body><p>Hi</p></body>")
    assert (mail.text, mail.html) == ("Hi", "<p>Hi</p>")


def test_the_body_is_the_body_even_under_a_name() -> None:
    mail = parse_octets(b'Content-Type: text/plain; name="mail.txt"\r\n\r\nHi')
    assert (mail.text, mail.attachments) == ("Hi", ())
    mail = parse_octets(
        b"Content-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain; name=a.txt\r\n\r\nHi"
        b"\r\n--b\r\nContent-Type: text/html; name=a.html\r\n\r\n<p>Hi</p>\r\n--b--\r\n"
    )
    assert (mail.text, mail.html, mail.attachments) == ("Hi", "<p>Hi</p>", ())
    mail = parse_octets(b"Content-Type: text/plain\r\nContent-Disposition: attachment; filename=a.txt\r\n\r\nHi")
    assert (mail.text, mail.attachments[0].filename) == ("", "a.txt")


def test_a_mail_in_a_rarer_format_of_text_has_its_words_and_keeps_the_original() -> None:
    mail = parse_octets(b"Content-Type: text/enriched\r\n\r\n<bold>Hi</bold> <<you>\r\n<param>red</param>there\r\n")
    assert mail.text == "Hi <you> there"
    assert [item.content_type for item in mail.attachments] == ["text/enriched"]
    mail = parse_octets(b"Content-Type: text/markdown\r\n\r\n# Hi\r\n")
    assert mail.text == "# Hi"


def test_a_text_of_any_length_is_kept() -> None:
    """What is too long to be shown is an attachment, and does not count as shown text."""
    mail = parse_octets(b"Subject: log\r\n\r\n" + b"a line of a log\r\n" * 1_200_000)
    assert (mail.text, len(mail.attachments[0].octets)) == ("", 17 * 1_200_000)


def test_rtf_too_long_to_read_stays_in_its_container() -> None:
    container = tnef(rtf=b"{\\rtf1 " + b"x" * 300_000 + b"}")
    mail = parse_octets(b"Content-Type: application/ms-tnef\r\nContent-Transfer-Encoding: binary\r\n\r\n" + container)
    assert [item.octets for item in mail.attachments] == [container]
    assert mail.defects == ("1 parts of a TNEF container left inside it",)


def test_uuencode_survives_blanks_lost_at_line_ends() -> None:
    mail = parse_octets(b"Subject: x\r\n\r\nbefore\r\nbegin 644 a.bin\r\n#86)C\r\n\r\nend\r\nafter\r\n")
    assert (mail.text, mail.attachments[0].octets) == ("before\nafter", b"abc")


def test_nothing_is_thrown_away_in_silence() -> None:
    octets = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b\r\nContent-Type: text/calendar\r\n\r\nBEGIN\r\n"
        b"--b\r\nContent-Type: text/plain; name=notes.txt\r\n\r\nnotes\r\n--b\r\n\r\ntwo\r\n--b--\r\n"
    )
    mail = parse_octets(octets)
    assert mail.text == "one\n\ntwo"
    assert [(item.filename, item.octets) for item in mail.attachments] == [("", b"BEGIN"), ("notes.txt", b"notes")]


NESTED = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(40))


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (NESTED, "nested more than 30 deep"),
        (b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + b"--x\r\n\r\n\r\n" * 1_200, "more than 1000 parts"),
        (b"Content-Type: text/plain" + b"; a=b" * 300 + b"\r\n\r\n", "more than 200 parameters"),
        (b"X: y\r\n" * 3_000 + b"\r\n", "more than 2000 header lines"),
        (b"X: " + b"y" * 110_000 + b"\r\n\r\n", "a header of more than 102400 bytes"),
        (
            b"Content-Type: multipart/mixed; boundary=x\r\n\r\n"
            + (b"--x\r\nX: " + b"y" * 90_000 + b"\r\n\r\n\r\n") * 30,
            "bytes of headers",
        ),
    ],
)
def test_a_bomb_is_named_and_defused_soon(octets: bytes, reason: str) -> None:
    began = time.process_time()
    with pytest.raises(TooComplex, match=reason):
        parse_octets(octets)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "octets",
    [
        b"Subject: " + b"=?a?q?" * 16_000 + b"\r\n\r\n",
        b"Subject: " + b"=?" * 45_000 + b"\r\n\r\n",
        b"From: " + b"(" * 90_000 + b"\r\n\r\n",
        b"From: " + b'"' * 90_001 + b"\r\n\r\n",
        b"To: " + b"a@b.example," * 8_000 + b"\r\n\r\n",
        b"Content-Type: text/plain" + b';a="' * 190 + b"\\" * 90_000 + b"\r\n\r\n",
        b'Content-Type: multipart/mixed; boundary=""\r\n\r\n' + b"--\r\n" * 90_000,
        b"Content-Type: text/html\r\n\r\n" + b"<div>" * 200_000,
        b"Content-Type: text/html\r\n\r\n" + b"<" * 500_000,
        b"References: " + b"<" * 90_000 + b"\r\n\r\n",
        b"Date: " + b"9" * 90_000 + b"\r\n\r\n",
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=" * 1_000_000,
        b"Content-Transfer-Encoding: base64\r\nContent-Type: image/png\r\n\r\n" + b"=a" * 1_000_000,
    ],
    ids=range(13),
)
async def test_no_mail_costs_more_than_its_budget(octets: bytes) -> None:
    """Each is either parsed or ended by the cage, and the next mail goes on."""
    async with Cage(children=1, preload=("gateway.mail.parse.fallback",)) as cage:
        began = time.monotonic()
        try:
            await parse(octets, cage)
        except (JobFailed, TooComplex):
            pass
        assert time.monotonic() - began < 15
        assert (await parse(b"Subject: next\r\n\r\n", cage)).subject == "next"


@pytest.fixture
async def cage() -> AsyncIterator[Cage]:
    async with Cage(children=1, preload=("gateway.mail.parse.fallback",)) as opened:
        yield opened


async def test_a_mail_of_thirty_megabytes_fits_into_the_cage(cage: Cage) -> None:
    photo = b"/9j/" * 19 + b"\r\n"
    octets = b"Content-Type: image/jpeg\r\nContent-Transfer-Encoding: base64\r\n\r\n" + photo * (
        33 * 2**20 // len(photo)
    )
    mail = await parse(octets, cage)
    assert len(mail.attachments[0].octets) > 24 * 2**20


def test_the_guards_look_before_anything_parses() -> None:
    with pytest.raises(TooComplex, match="at most 10"):
        check(b"x" * 11, Limits(mail_bytes=10))
    with pytest.raises(TooComplex, match="boundaries"):
        check(b"\r\n\r\n" + b"\n--" * 11, Limits(boundary_lines=10))


def mutated(octets: bytes, dice: random.Random) -> bytes:
    data = bytearray(octets)
    for _ in range(dice.randrange(1, 12)):
        at = dice.randrange(len(data))
        match dice.randrange(4):
            case 0:
                data[at] = dice.randrange(256)
            case 1:
                del data[at : at + dice.randrange(1, 40)]
            case 2:
                data[at:at] = dice.choice(
                    [b"\r\n", b"--outer end\r\n", b"=?utf-8?B?", b'"', b";", b"\0", b"\xff", b"--"]
                )
            case _:
                data[at:at] = data[at : at + dice.randrange(1, 200)]
        if not data:
            return b""
    return bytes(data)


def assert_parses(count: int) -> None:
    dice = random.Random(count)
    for _ in range(count):
        octets = mutated(PARTS, dice)
        mail = parse_octets(octets)
        assert "\0" not in mail.text + mail.html + mail.subject
        assert not any(c in mail.subject for c in "\r\n")
        assert from_transport(*to_transport(mail)) == mail


def test_a_thousand_damaged_mails_are_read_without_a_fault() -> None:
    assert_parses(1_000)


@pytest.mark.long
def test_fifty_thousand_damaged_mails_are_read_without_a_fault() -> None:
    assert_parses(50_000)


def test_boundary_lines_are_counted_across_the_stretches_of_a_large_mail() -> None:
    for shift in range(4):
        octets = b"\r\n\r\n" + b"x" * (2**20 - 4 - shift) + b"\n--" + b"y" * 2**20 + b"\n--"
        check(octets, Limits(boundary_lines=2))
        with pytest.raises(TooComplex, match="boundaries"):
            check(octets, Limits(boundary_lines=1))
