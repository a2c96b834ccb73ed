"""What the writer writes, octet by octet where it matters."""

from __future__ import annotations

import email
from datetime import UTC, datetime
from email.message import Message

import pytest

from gateway.contract.email_send import Attachment, SendEmail
from gateway.errors import PermanentFailure
from gateway.outbound.compose import Rendered, Stamp, compose, verify

STAMP = Stamp(message_id="<1@gw.example>", date=datetime(2026, 11, 21, 7, tzinfo=UTC), default_from="gw@gw.example")
PLAIN = Rendered(subject="Hello", text="Hello\n")


def request(**fields: object) -> SendEmail:
    return SendEmail.model_validate({"to": ["ann@example.org"], "subject": "x", "text": "x"} | fields)


def written(wanted: SendEmail, rendered: Rendered = PLAIN) -> bytes:
    return compose(
        wanted,
        rendered,
        message_id=STAMP.message_id,
        date=STAMP.date,
        default_from=STAMP.default_from,
        blobs={},
    )


def payload(part: Message) -> bytes:
    octets = part.get_payload(decode=True)
    assert isinstance(octets, bytes)
    return octets


def test_a_plain_email_is_written_plainly() -> None:
    assert written(request(to=["Ann Example <ann@example.org>"], headers={"X-Order": "42"})) == (
        b"From: gw@gw.example\r\n"
        b"To: Ann Example <ann@example.org>\r\n"
        b"Subject: Hello\r\n"
        b"Date: Sat, 21 Nov 2026 07:00:00 +0000\r\n"
        b"Message-ID: <1@gw.example>\r\n"
        b"MIME-Version: 1.0\r\n"
        b"X-Order: 42\r\n"
        b'Content-Type: text/plain; charset="us-ascii"\r\n'
        b"Content-Transfer-Encoding: quoted-printable\r\n"
        b"\r\n"
        b"Hello\r\n"
    )


def test_bcc_is_never_written() -> None:
    octets = written(request(bcc=["hidden@example.org"]))
    assert b"hidden" not in octets
    assert b"bcc" not in octets.lower()


def test_an_email_to_hidden_recipients_only_says_so() -> None:
    octets = written(request(to=[], bcc=["hidden@example.org"]))
    assert b"\r\nTo: undisclosed-recipients:;\r\n" in octets
    assert b"hidden@" not in octets


def test_domains_are_a_labels_and_only_local_parts_may_stay_utf8() -> None:
    plain = written(request(to=["Jörg <joerg@müller.example>"]))
    assert b"<joerg@xn--mller-kva.example>" in plain
    assert plain.partition(b"\r\n\r\n")[0].isascii()
    utf8 = written(request(cc=["jörg@müller.example"]))
    assert "Cc: jörg@xn--mller-kva.example\r\n".encode() in utf8


def test_ascii_that_looks_like_an_encoded_word_is_encoded_itself() -> None:
    octets = written(request(headers={"X-Trick": "=?utf-8?q?=0d=0aBcc:_x?="}))
    assert b"X-Trick: =?utf-8?b?PT91dGYtOD9xPz0wZD0wYUJjYzpfeD89?=\r\n" in octets


def test_encoded_words_are_short_and_split_no_character() -> None:
    head = written(request(), Rendered(subject="漢字😀" * 200, text="x")).partition(b"\r\n\r\n")[0]
    words = [word for word in head.split() if word.startswith(b"=?")]
    assert len(words) > 20
    for word in words:
        assert len(word) <= 75
        [(octets, charset)] = email.header.decode_header(word.decode())
        assert octets.decode(charset)
    assert max(map(len, head.split(b"\r\n"))) <= 78


@pytest.mark.parametrize("word", ["x" * 900, "xyz " * 400, "x  y", " x "])
def test_long_and_odd_values_are_folded_or_encoded(word: str) -> None:
    head = written(request(headers={"X-Long": word})).partition(b"\r\n\r\n")[0]
    assert max(map(len, head.split(b"\r\n"))) <= 78


def test_bodies_keep_every_line_and_never_start_one_with_from_or_a_bare_dot() -> None:
    text = "From me\n.\n..x\ntrailing \ttab\t\n" + "x" * 2000 + "\n=\n\x1b[31m\nüñ\r\nold mac\rend"
    octets = written(request(), Rendered(subject="x", text=text, html="<p>ü</p>" * 50))
    assert b"\r\nFrom " not in octets
    parts = [part for part in email.message_from_bytes(octets).walk() if not part.is_multipart()]
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert payload(parts[0]).decode().removesuffix("\r\n").split("\r\n") == lines
    assert payload(parts[1]).decode() == "<p>ü</p>" * 50 + "\r\n"


def test_much_that_is_not_ascii_goes_as_base64() -> None:
    octets = written(request(), Rendered(subject="x", text="漢字" * 500))
    assert b"Content-Transfer-Encoding: base64\r\n" in octets
    assert payload(email.message_from_bytes(octets)).decode() == "漢字" * 500 + "\r\n"


def test_inline_images_stand_beside_the_html_and_files_outside() -> None:
    files = [
        Attachment.of("plan.png", b"png", "image/png", inline=True).model_dump(),
        Attachment.of("mail.eml", b"x", "message/rfc822").model_dump(),
    ]
    message = email.message_from_bytes(
        written(request(attachments=files), Rendered(subject="x", text="x", html='<img src="cid:plan.png">'))
    )
    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/mixed",
        "multipart/related",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "image/png",
        "application/octet-stream",
    ]
    image = next(part for part in message.walk() if part.get_content_type() == "image/png")
    assert (image["Content-ID"], image.get_content_disposition()) == ("<plan.png>", "inline")


def test_without_html_an_inline_image_is_a_file() -> None:
    files = [Attachment.of("plan.png", b"png", "image/png", inline=True).model_dump()]
    message = email.message_from_bytes(written(request(attachments=files)))
    assert [part.get_content_type() for part in message.walk()] == ["multipart/mixed", "text/plain", "image/png"]


def test_a_file_name_beyond_ascii_has_its_true_form_and_a_likeness() -> None:
    octets = written(request(attachments=[Attachment.of("Plän 1.pdf", b"x").model_dump()]))
    assert b"filename*=utf-8''Pl%C3%A4n%201.pdf\r\n" in octets
    assert b'name="Plan 1.pdf"\r\n' in octets


@pytest.mark.parametrize(
    "change",
    [
        (b"Subject: Hello", b"Subject: Hello\r\nBcc: eve@evil.example"),
        (b"Subject: Hello", b"Subject: Hallo"),
        (b"Subject: Hello", b"Subject: Hello\nX: y"),
        (b"To: ann@example.org", b"To: ann@example.org, eve@evil.example"),
        (b"To: ann@example.org\r\n", b""),
        (b"Cc: =?utf-8?b?SsO2cmc=?= <j@example.org>", b"Cc: =?utf-8?b?SsO2cmcK?= <j@example.org>"),
        (b"<1@gw.example>", b"<2@gw.example>"),
        (b'filename="a.pdf"', b'filename="a.exe"'),
        (b"Content-Disposition: attachment", b"X-Evil: 1\r\nContent-Disposition: attachment"),
        (b"Hello\r\n\r\n--", b"Hello" + b"o" * 1000 + b"\r\n\r\n--"),
        (b"MIME-Version: 1.0", b"MIME-Version: 1.0\r\nMIME-Version: 1.0"),
        (b"Hello\r\n\r\n--", b"Hel\0lo\r\n\r\n--"),
    ],
)
def test_whatever_reads_back_differently_is_never_sent(change: tuple[bytes, bytes]) -> None:
    wanted = request(cc=["Jörg <j@example.org>"], attachments=[Attachment.of("a.pdf", b"x").model_dump()])
    octets = written(wanted)
    verify(octets, wanted, PLAIN, STAMP)
    assert change[0] in octets
    with pytest.raises(PermanentFailure, match="does not read back"):
        verify(octets.replace(*change), wanted, PLAIN, STAMP)


def test_a_message_id_must_look_like_one() -> None:
    with pytest.raises(ValueError):
        compose(request(), PLAIN, message_id="<x>\r\nBcc: a@b", date=STAMP.date, default_from="a@b", blobs={})
