"""Writes tests/parse/mails/*.eml, each with a .json beside it that says what must be read out of it.

The expectations are stated here by whoever wrote the mail; nothing is asked of the parser.  Run it after a change:
`python tests/parse/write_mails.py`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import quopri
import random
import struct
import zlib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "mails"
JPEG = (
    b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x48\x00\x48\x00\x00"
    + random.Random(1).randbytes(9_000)
    + b"\xff\xd9"
)
PNG = b"\x89PNG\r\n\x1a\n" + random.Random(2).randbytes(2_000)
PDF = b"%PDF-1.4\n" + random.Random(3).randbytes(3_000) + b"\n%%EOF\n"
ZIP = b"PK\x05\x06" + b"\0" * 18

HEAD = (
    "Received: from mail.example.org (mail.example.org [192.0.2.25]) by mx.example.net; Thu, 1 Jan 2026 12:00:01 +0000\n"
    "Date: Thu, 1 Jan 2026 12:00:00 +0000\nFrom: Ann Example <ann@example.org>\nTo: posts@localhost\n"
    "Message-ID: <{name}@example.org>\nMIME-Version: 1.0\n"
)
written: list[str] = []


def b64(octets: bytes) -> bytes:
    return base64.encodebytes(octets).replace(b"\n", b"\r\n")


def qp(text: str, charset: str = "utf-8") -> bytes:
    return quopri.encodestring(text.encode(charset)).replace(b"\n", b"\r\n")


def uu(name: str, octets: bytes) -> bytes:
    lines = b"".join(binascii.b2a_uu(octets[at : at + 45]) for at in range(0, len(octets), 45))
    return b"begin 644 " + name.encode() + b"\n" + lines + b"`\nend\n"


def crlf(value: str | bytes) -> bytes:
    octets = value.encode() if isinstance(value, str) else value
    return octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def part(header: str | bytes, body: bytes | str = b"") -> bytes:
    return crlf(header) + b"\r\n\r\n" + (crlf(body) if isinstance(body, str) else body)


def multi(kind: str, *parts: bytes, boundary: str = "", extra: str = "") -> bytes:
    boundary = boundary or f"b-{kind}-{len(parts)}"
    mark = b"\r\n--" + boundary.encode()
    body = b"".join(mark + b"\r\n" + one for one in parts)
    head = f'Content-Type: multipart/{kind}; boundary="{boundary}"{extra}'
    return head.encode() + b"\r\n\r\n" + body.removeprefix(b"\r\n") + mark + b"--\r\n"


def photo(name: str = "IMG_0001.jpg", octets: bytes = JPEG, how: str = "attachment") -> bytes:
    head = f'Content-Type: image/jpeg; name="{name}"\nContent-Transfer-Encoding: base64\n'
    return part(head + f'Content-Disposition: {how}; filename="{name}"', b64(octets))


def named(disposition: str | bytes, octets: bytes = PDF) -> bytes:
    line = disposition.encode() if isinstance(disposition, str) else disposition
    return part(b"Content-Type: application/pdf\nContent-Transfer-Encoding: base64\n" + line, b64(octets))


def plain(text: str, charset: str = "utf-8") -> bytes:
    return part(
        f"Content-Type: text/plain; charset={charset}\nContent-Transfer-Encoding: quoted-printable", qp(text, charset)
    )


def html(text: str) -> bytes:
    return part("Content-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: quoted-printable", qp(text))


def mail(
    name: str,
    rest: bytes,
    *,
    subject: str | bytes = "",
    head: str = HEAD,
    text: str = "",
    files: list[tuple[str, bytes]] | None = None,
    defects: list[str] | None = None,
    raw: bool = False,
    **more: Any,
) -> None:
    """`rest` begins with the last header lines; `files` are (name, octets) in order; `more` are other fields to compare."""
    line = b"Subject: " + (subject.encode() if isinstance(subject, str) else subject) + b"\r\n" if subject else b""
    octets = rest if raw else crlf(head.format(name=name)) + line + rest
    expected = {
        "text": text,
        "attachments": [
            {"filename": given, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for given, content in files or []
        ],
        "defects": defects or [],
        **more,
    }
    (FOLDER / f"{name}.eml").write_bytes(octets)
    (FOLDER / f"{name}.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")
    written.append(name)


def compressed_rtf(rtf: bytes) -> bytes:
    """MS-OXRTFCP with literals only: eight after each control byte, and the mark of the end (the place it stands at)."""
    pieces = [rtf[at : at + 8] for at in range(0, len(rtf) - len(rtf) % 8, 8)]
    rest = rtf[len(rtf) - len(rtf) % 8 :]
    end = struct.pack(">H", ((207 + len(rtf)) % 4096) << 4)
    content = b"".join(b"\0" + piece for piece in pieces) + bytes([1 << len(rest)]) + rest + end
    crc = zlib.crc32(content, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return struct.pack("<II4sI", len(content) + 12, len(rtf), b"LZFu", crc) + content


def tnef(*files: tuple[str, bytes], body: bytes = b"", rtf: bytes = b"") -> bytes:
    def one(level: int, name: int, kind: int, data: bytes) -> bytes:
        return struct.pack("<BHHI", level, name, kind, len(data)) + data + struct.pack("<H", sum(data) & 0xFFFF)

    octets = b"\x78\x9f\x3e\x22\x01\x00" + one(1, 0x9006, 8, struct.pack("<I", 0x10000))
    octets += one(1, 0x9007, 6, struct.pack("<II", 1252, 0))
    octets += one(1, 0x800C, 2, body + b"\0") if body else b""
    if rtf:
        value = compressed_rtf(rtf)
        head = struct.pack("<IHHII", 1, 0x0102, 0x1009, 1, len(value))
        octets += one(1, 0x9003, 6, head + value + b"\0" * (-len(value) % 4))
    for name, data in files:
        octets += one(2, 0x9002, 6, b"\x01\x00\xff\xff\xff\xff\x20\x00\x20\x00\x00\x00\x00\x00")
        octets += one(2, 0x8010, 1, name.encode("cp1252") + b"\0") + one(2, 0x800F, 6, data)
    return octets


def people_write() -> None:
    """Ordinary mail of ordinary programs."""
    mail(
        "plain",
        part("Content-Type: text/plain; charset=us-ascii", "Hello,\n\nall is well.\n\nAnn\n"),
        subject="Hello",
        text="Hello,\n\nall is well.\n\nAnn",
    )
    mail(
        "no_mime",
        b"\r\nJust words.\r\n",
        head="From: ann@example.org\nTo: posts@localhost\n",
        subject="old",
        text="Just words.",
    )
    mail("empty", b"\r\n", subject="nothing")
    mail(
        "german", plain("Grüße aus Köln\n"), subject="=?utf-8?Q?Gr=C3=BC=C3=9Fe?=", text="Grüße aus Köln", title="Grüße"
    )
    both = multi("alternative", plain("One two\n"), html("<p>One <b>two</b></p>"))
    mail("alternative", both, text="One two", html="<p>One <b>two</b></p>")
    mail(
        "html_only",
        html("<html><body><p>Only &amp; html</p></body></html>"),
        text="Only & html",
        html="<p>Only &amp; html</p>",
    )
    shown = '<p>See <img src="cid:logo@x" alt="logo"></p>'
    logo = part(
        "Content-Type: image/png; name=logo.png\nContent-Transfer-Encoding: base64\nContent-ID: <logo@x>", b64(PNG)
    )
    mail("related", multi("related", html(shown), logo), text="See", html=shown, files=[("logo.png", PNG)])
    inner = multi("alternative", plain("See\n"), multi("related", html(shown), logo))
    mail(
        "thunderbird",
        multi("mixed", inner, photo()),
        text="See",
        html=shown,
        files=[("logo.png", PNG), ("IMG_0001.jpg", JPEG)],
    )
    inner = multi(
        "related", multi("alternative", plain("See\n"), html(shown)), logo, extra=';\r\n type="multipart/alternative"'
    )
    mail(
        "outlook",
        multi("mixed", inner, named("Content-Disposition: attachment; filename=a.pdf")),
        text="See",
        html=shown,
        files=[("logo.png", PNG), ("a.pdf", PDF)],
    )
    iphone = multi(
        "mixed",
        plain("Look at this!\n"),
        photo("IMG_4711.jpeg", how="inline"),
        plain("\n\nSent from my iPhone"),
        boundary="Apple-Mail-0B1C-4D",
    )
    mail(
        "phone_photo",
        iphone,
        subject="Holiday",
        text="Look at this!\n\n\n\nSent from my iPhone",
        files=[("IMG_4711.jpeg", JPEG)],
    )
    mail(
        "phone_photo_only",
        multi("mixed", plain("\n"), photo("20260101_120000.jpg")),
        files=[("20260101_120000.jpg", JPEG)],
    )
    mail("photo_is_the_mail", photo(), files=[("IMG_0001.jpg", JPEG)])
    apple = multi(
        "alternative", plain("before after\n"), multi("mixed", html("<p>before</p>"), photo(), html("<p>after</p>"))
    )
    mail(
        "apple_pictures_between",
        apple,
        text="before after",
        html="<p>before</p>\n<p>after</p>",
        files=[("IMG_0001.jpg", JPEG)],
    )
    mail(
        "text_then_html",
        multi("mixed", plain("plain first\n"), html("<p>then html</p>")),
        text="plain first\n\nthen html",
        html="<p>plain first</p>\n<p>then html</p>",
    )
    mail(
        "eight_photos",
        multi("mixed", plain("Eight\n"), *[photo(f"IMG_{n}.jpg", JPEG + bytes([n])) for n in range(8)]),
        text="Eight",
        files=[(f"IMG_{n}.jpg", JPEG + bytes([n])) for n in range(8)],
    )
    mail(
        "same_name_twice",
        multi("mixed", photo("a.jpg", JPEG), photo("a.jpg", PNG)),
        files=[("a.jpg", JPEG), ("a.jpg", PNG)],
    )
    mail("list_footer", multi("mixed", plain("Body\n"), plain("-- \nlist footer\n")), text="Body\n\n-- \nlist footer")
    flowed = "Content-Type: text/plain; charset=utf-8; format=flowed"
    mail(
        "flowed",
        part(flowed, "One long \nparagraph \nhere.\n\n> quoted \n> text\n From space\n-- \nAnn\n"),
        text="One long paragraph here.\n\n> quoted text\nFrom space\n-- \nAnn",
    )
    mail("flowed_delsp", part(flowed + "; delsp=yes", "日本 \n語\n"), text="日本語")
    calendar = part("Content-Type: text/calendar; method=REQUEST; name=invite.ics", "BEGIN:VCALENDAR\nEND:VCALENDAR\n")
    mail(
        "invitation",
        multi("mixed", plain("Meet\n"), calendar),
        text="Meet",
        files=[("invite.ics", b"BEGIN:VCALENDAR\r\nEND:VCALENDAR\r\n")],
    )


def charsets() -> None:
    """Texts as the world writes them."""
    words = {
        "iso-8859-1": "Déjà vu à Genève",
        "iso-8859-2": "Příliš žluťoučký kůň",
        "iso-8859-15": "Prix 5 €",
        "koi8-r": "Привет, мир",
        "windows-1251": "Привет, мир",
        "windows-1252": "“Smart” – quotes",
        "iso-8859-7": "Καλημέρα κόσμε",
        "shift_jis": "日本語テスト",
        "iso-2022-jp": "日本語テスト",
        "euc-kr": "한국어 시험",
        "gb2312": "中文测试",
        "big5": "中文測試",
        "utf-16": "wide Ω",
        "windows-1255": "שלום עולם",
        "tis-620": "สวัสดี",
        "utf-7": "Hi Ω",
    }
    for charset, text in words.items():
        body = b64(text.encode(charset))
        mail(
            f"charset_{charset}",
            part(f"Content-Type: text/plain; charset={charset}\nContent-Transfer-Encoding: base64", body),
            text=text,
        )
    russian = "Здравствуйте, это письмо без указания кодировки."
    mail("charset_missing", part("Content-Type: text/plain", russian.encode("koi8-r")), text=russian)
    mail("charset_wrong_utf8", part("Content-Type: text/plain; charset=us-ascii", "schön".encode()), text="schön")
    mail(
        "charset_unknown",
        part("Content-Type: text/plain; charset=x-unknown", "schön und größer".encode("cp1252")),
        text="schön und größer",
    )
    mail(
        "charset_cut",
        part("Content-Type: text/plain; charset=utf-8", "ä".encode() * 20 + b"\xc3"),
        text="ä" * 20 + "\ufffd",
        defects=["1 unreadable characters in text/plain"],
    )
    mail("subject_split_character", b"\r\n", subject="=?utf-8?B?4pi=?= =?utf-8?B?gw==?=", title="☃")
    mail("subject_raw_latin", b"\r\n", subject=b"caf\xe9", title="café")


def names() -> None:
    """Names of attachments, however broken."""
    for number, (line, name) in enumerate(
        [
            ("Content-Disposition: attachment; filename*=utf-8''gr%C3%BCn.pdf", "grün.pdf"),
            ("Content-Disposition: attachment; filename=plain.pdf; filename*=utf-8''gr%C3%BCn.pdf", "grün.pdf"),
            ("Content-Disposition: attachment; filename*0*=iso-8859-1''gr%FC;\n filename*1=\"n 1.pdf\"", "grün 1.pdf"),
            ('Content-Disposition: attachment; filename="=?utf-8?B?Z3LDvG4=?=\n =?utf-8?Q?=2Epdf?="', "grün.pdf"),
            ("Content-Disposition: attachment; filename==?iso-8859-1?Q?gr=FCn=2Epdf?=", "grün.pdf"),
            ("Content-Disposition: attachment; filename=with space and (1).pdf", "with space and (1).pdf"),
            ('Content-Disposition: attachment; filename="half quoted.pdf', "half quoted.pdf"),
            ("Content-Disposition: attachment; filename=\"utf-8''gr%C3%BCn.pdf\"", "grün.pdf"),
            (b'Content-Disposition: attachment; filename="gr\xfcn.pdf"', "grün.pdf"),
            ('Content-Disposition: attachment; filename="../../etc/passwd.pdf"', "passwd.pdf"),
            ('Content-Disposition : attachment ; FileName = "spaced.pdf"', "spaced.pdf"),
            ("Content-Disposition: attachment; filename*2=c.pdf; filename*0=a; filename*1=b", "abc.pdf"),
        ],
        1,
    ):
        mail(f"name_{number}", multi("mixed", plain("See\n"), named(line)), text="See", files=[(name, PDF)])


def containers() -> None:
    """Mails in mails, and what other programs wrap."""
    letter = crlf(
        "Subject: =?utf-8?Q?Offer_3/4_f=C3=BCr_Sie?=\nFrom: bob@example.org\nContent-Type: text/plain\n\nThe offer\n"
    )
    attached = b"Content-Type: message/rfc822\r\n\r\n" + letter
    mail(
        "forward_attached",
        multi("mixed", plain("FYI\n"), attached),
        text="FYI",
        files=[("Offer 3-4 für Sie.eml", letter)],
    )
    encoded = part("Content-Type: message/rfc822\nContent-Transfer-Encoding: base64", b64(letter))
    mail(
        "forward_base64", multi("mixed", plain("FYI\n"), encoded), text="FYI", files=[("Offer 3-4 für Sie.eml", letter)]
    )
    untitled = b"Content-Type: message/rfc822\r\n\r\n" + crlf("From: x@example.org\n\nhi\n")
    mail(
        "forward_untitled", multi("mixed", untitled), files=[("attached mail.eml", crlf("From: x@example.org\n\nhi\n"))]
    )
    nested = multi("mixed", plain("inner\n"), photo(), boundary="inner")
    letter2 = b"Subject: Album\r\n" + nested
    mail(
        "forward_with_parts",
        multi("mixed", plain("outer\n"), b"Content-Type: message/rfc822\r\n\r\n" + letter2),
        text="outer",
        files=[("Album.eml", letter2)],
    )
    outlook = '<div><b>From:</b> Bob<br><b>Sent:</b> Monday<br><b>Subject:</b> Offer</div><p><img src="cid:image001.png@01DB"></p>'
    picture = part(
        'Content-Type: image/png; name="image001.png"\nContent-Description: image001.png\nContent-Disposition: inline; '
        'filename="image001.png"; size=2008\nContent-ID: <image001.png@01DB>\nContent-Transfer-Encoding: base64',
        b64(PNG),
    )
    forwarded = multi(
        "related", multi("alternative", plain("From: Bob\nSent: Monday\nSubject: Offer\n"), html(outlook)), picture
    )
    mail(
        "forward_outlook",
        multi("mixed", forwarded, photo()),
        subject="FW: Offer",
        text="From: Bob\nSent: Monday\nSubject: Offer",
        html=outlook,
        files=[("image001.png", PNG), ("IMG_0001.jpg", JPEG)],
    )
    digest = multi("digest", b"\r\n" + letter, b"\r\nSubject: two\r\n\r\n2\r\n")
    mail("digest", digest, files=[("Offer 3-4 für Sie.eml", letter), ("two.eml", b"Subject: two\r\n\r\n2\r\n")])
    dat = tnef(("contract.pdf", PDF), ("Foto.jpg", JPEG))
    winmail = part('Content-Type: application/ms-tnef; name="winmail.dat"\nContent-Transfer-Encoding: base64', b64(dat))
    mail(
        "winmail",
        multi("mixed", plain("Attached.\n"), winmail),
        text="Attached.",
        files=[("contract.pdf", PDF), ("Foto.jpg", JPEG)],
    )
    dat = tnef(("a.zip", ZIP), body=b"Only in TNEF")
    winmail = part(
        "Content-Type: application/octet-stream; name=winmail.dat\nContent-Transfer-Encoding: base64", b64(dat)
    )
    mail("winmail_body", winmail, text="Only in TNEF", files=[("a.zip", ZIP)])
    rtf = (
        rb"{\rtf1\ansi\ansicpg1252\deff0{\fonttbl{\f0\fswiss Arial;}}{\colortbl;\red0\green0\blue255;}\pard\f0\fs20 "
        rb"Gr\'fc\'dfe aus {\b M\u252\'fcnchen},\par\par Ann\par}"
    )
    html_in_rtf = (
        rb"{\rtf1\ansi\ansicpg1252\fromhtml1 \deff0{\fonttbl{\f0\fswiss Arial;}}{\*\htmltag19 <html>}"
        rb"{\*\htmltag64 <p>}\htmlrtf {\htmlrtf0 Hello {\*\htmltag84 <b>}\htmlrtf {\b \htmlrtf0 you\htmlrtf }\htmlrtf0 "
        rb"{\*\htmltag92 </b>}{\*\htmltag72 </p>}\htmlrtf\par}\htmlrtf0 }"
    )
    for number, (source, words) in enumerate(((rtf, "Grüße aus München,\n\nAnn"), (html_in_rtf, "Hello you")), 1):
        dat = tnef(("contract.pdf", PDF), rtf=source)
        winmail = part(
            'Content-Type: application/ms-tnef; name="winmail.dat"\nContent-Transfer-Encoding: base64', b64(dat)
        )
        mail(f"winmail_rtf_{number}", winmail, text=words, files=[("contract.pdf", PDF)])
    dat = tnef(("a.zip", ZIP), body=b"Only in TNEF")
    broken = part("Content-Type: application/ms-tnef\nContent-Transfer-Encoding: base64", b64(dat[:5]))
    mail(
        "winmail_broken",
        multi("mixed", plain("x\n"), broken),
        text="x",
        files=[("winmail.dat", dat[:5])],
        defects=["a damaged TNEF container kept as it is"],
    )
    mail(
        "uuencode",
        part("Content-Type: text/plain", b"See below\n\n" + uu("photo 1.jpg", JPEG) + b"\nBye\n"),
        text="See below\n\n\nBye",
        files=[("photo 1.jpg", JPEG)],
    )
    mail(
        "uuencode_encoding",
        multi(
            "mixed",
            plain("x\n"),
            part("Content-Type: application/pdf; name=a.pdf\nContent-Transfer-Encoding: x-uuencode", uu("a.pdf", PDF)),
        ),
        text="x",
        files=[("a.pdf", PDF)],
    )
    mail(
        "begin_is_a_word",
        part("Content-Type: text/plain", "begin 644 times over\nand never end\n"),
        text="begin 644 times over\nand never end",
    )
    signed = multi(
        "signed",
        plain("signed\n"),
        part("Content-Type: application/pkcs7-signature\nContent-Transfer-Encoding: base64", b64(ZIP)),
    )
    mail("smime_signed", signed, text="signed", files=[("smime.p7s", ZIP)])
    mail(
        "smime_opaque",
        part(
            "Content-Type: application/pkcs7-mime; smime-type=enveloped-data\nContent-Transfer-Encoding: base64",
            b64(PDF),
        ),
        files=[("smime.p7m", PDF)],
    )
    pgp = multi(
        "encrypted",
        part("Content-Type: application/pgp-encrypted", b"Version: 1"),
        part("Content-Type: application/octet-stream", b"-----BEGIN PGP MESSAGE-----"),
    )
    mail(
        "pgp_encrypted",
        pgp,
        files=[("pgp-version.txt", b"Version: 1"), ("encrypted.asc", b"-----BEGIN PGP MESSAGE-----")],
    )
    bounce = multi(
        "report",
        plain("Could not deliver\n"),
        part("Content-Type: message/delivery-status", b"Status: 5.1.1\r\n"),
        part("Content-Type: text/rfc822-headers", b"Subject: x\r\n"),
    )
    mail(
        "bounce",
        bounce,
        text="Could not deliver",
        files=[("delivery-status.txt", b"Status: 5.1.1\r\n"), ("headers.txt", b"Subject: x\r\n")],
    )


def broken() -> None:
    """What programs get wrong."""
    cut = multi("mixed", plain("here\n"), photo()).rpartition(b"\r\n--")[0]
    mail("end_missing", cut, text="here", files=[("IMG_0001.jpg", JPEG)], defects=["the last boundary is missing"])
    mail("epilogue", multi("mixed", plain("here\n")) + b"an epilogue\r\n--b-mixed-1\r\n\r\nnot a part\r\n", text="here")
    other = multi("mixed", plain("here\n"), photo()).replace(b'boundary="b-mixed-2"', b'boundary="another"')
    mail(
        "boundary_wrong",
        other,
        text="here",
        files=[("IMG_0001.jpg", JPEG)],
        defects=["multipart/mixed with another boundary than it says"],
    )
    undeclared = multi("mixed", plain("here\n"), photo()).replace(b'; boundary="b-mixed-2"', b"")
    mail(
        "boundary_undeclared",
        undeclared,
        text="here",
        files=[("IMG_0001.jpg", JPEG)],
        defects=["multipart/mixed with another boundary than it says"],
    )
    mail(
        "boundary_prefix",
        multi("mixed", multi("alternative", plain("in\n"), boundary="x1"), plain("out\n"), boundary="x"),
        text="in\n\nout",
    )
    mail(
        "inner_end_missing",
        multi("mixed", multi("alternative", plain("in\n"), boundary="deep").replace(b"\r\n--deep--\r\n", b""), photo()),
        text="in",
        files=[("IMG_0001.jpg", JPEG)],
        defects=["the last boundary is missing"],
    )
    mail(
        "bare_lf",
        multi("mixed", plain("here\n"), photo()).replace(b"\r\n", b"\n"),
        text="here",
        files=[("IMG_0001.jpg", JPEG)],
    )
    mail(
        "mbox_line",
        b"From ann Thu Jan  1 12:00:00 2026\nSubject: spool\n\ntext\n",
        raw=True,
        text="text",
        title="spool",
    )
    mail(
        "no_blank_line",
        b"Subject: x\r\nthis is the body\r\n",
        raw=True,
        text="this is the body",
        defects=["no empty line between header and body"],
    )
    pictured: dict[str, Any] = {"text": "here", "files": [("IMG_0001.jpg", JPEG)]}
    damaged = part("Content-Type: image/png; name=a.png\nContent-Transfer-Encoding: base64", b"!" + b64(PNG))
    mail("base64_damaged", damaged, files=[("a.png", PNG)], defects=["damaged base64"])
    trailing = part(
        "Content-Type: image/png; name=a.png\nContent-Transfer-Encoding: base64", b64(PNG[:1998]) + b"--\r\nlist\r\n"
    )
    mail(
        "base64_footer",
        multi("mixed", plain("x\n"), trailing.replace(b"--\r\nlist\r\n", b"")),
        text="x",
        files=[("a.png", PNG[:1998])],
    )
    mail(
        "blank_before_colon",
        b"Subject : spaced\r\nContent-Type : text/html\r\n\r\n<p>x</p>",
        text="x",
        html="<p>x</p>",
        title="spaced",
    )
    mail("two_subjects", b"Subject: one\r\nSubject: two\r\n\r\nx\r\n", text="x", title="one")
    mail("type_without_semicolon", part("Content-Type: text/html charset=utf-8", "<p>x</p>"), text="x", html="<p>x</p>")
    mail("long_lines", part("Content-Type: text/plain", b"word " * 3_000), text=("word " * 3_000).rstrip())
    mail(
        "encoding_with_comment",
        part(
            "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64 (really)", b64("für".encode())
        ),
        text="für",
    )
    mail(
        "encoding_unknown",
        part("Content-Type: text/plain\nContent-Transfer-Encoding: 7bits", "as it is"),
        text="as it is",
        defects=["unknown transfer encoding '7bits'"],
    )
    mail(
        "html_title",
        html("<html><head><title>Newsletter 7</title></head><body><p>News</p></body></html>"),
        text="News",
        html="<p>News</p>",
    )
    footer = b64("Grüße\r\n".encode()) + b"_______________\r\nthe list and how to leave it\r\n"
    mail(
        "base64_list_footer",
        part("Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64", footer),
        text="Grüße\n_______________\nthe list and how to leave it",
        defects=["damaged base64"],
    )
    mail(
        "base64_in_name_only",
        part("Content-Type: text/plain\nContent-Transfer-Encoding: base64", "Nobody encoded this.\nNor this.\n"),
        text="Nobody encoded this.\nNor this.",
        defects=["damaged base64"],
    )
    mail(
        "quoted_printable_padded",
        part("Content-Type: text/plain\nContent-Transfer-Encoding: quoted-printable", "one= \ntwo=\t \n three"),
        text="onetwo three",
    )
    mail("charset_utf-16_unlabelled", part("Content-Type: text/plain", "Grün 日本".encode("utf-16")), text="Grün 日本")
    mail(
        "charset_iso-2022-jp_unlabelled",
        part("Content-Type: text/plain", "日本語".encode("iso-2022-jp")),
        text="日本語",
    )
    jis = part("Content-Type: text/plain; charset=iso-2022-jp", b"\x1b$B-!F|K\\\x1b(I1\x1b(B")
    mail("charset_iso-2022-jp_of_windows", jis, text="①日本ｱ")
    mail("boundary_empty", multi("mixed", plain("here\n"), photo()).replace(b"b-mixed-2", b""), **pictured)
    mail(
        "boundary_in_apostrophes",
        multi("mixed", plain("here\n"), photo()).replace(b'"b-mixed-2"', b"'b-mixed-2'"),
        **pictured,
    )
    mail(
        "body_with_a_name",
        multi(
            "alternative",
            part('Content-Type: text/plain; name="mail.txt"', "Hi"),
            part('Content-Type: text/html; name="mail.html"\nContent-Disposition: inline', "<p>Hi</p>"),
        ),
        text="Hi",
        html="<p>Hi</p>",
    )
    mail(
        "enriched",
        part("Content-Type: text/enriched", "<bold>Hi</bold>,\nall is << well >.\n\nAnn\n"),
        text="Hi, all is < well >.\nAnn",
        files=[("", b"<bold>Hi</bold>,\r\nall is << well >.\r\n\r\nAnn\r\n")],
    )
    mail(
        "html_hostile",
        html('<p onclick="x()">Hi<script>steal()</script><img src="http://t.example/p.gif"></p>'),
        text="Hi",
        html="<p>Hi<img></p>",
    )
    mail(
        "html_unclosed",
        multi("mixed", html("<p>one <b>bold <!-- open"), html("<p>two</p>")),
        text="one bold\n\ntwo",
        html="<p>one <b>bold </b></p>\n<p>two</p>",
    )


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for group in (people_write, charsets, names, containers, broken):
        group()


if __name__ == "__main__":
    write()
