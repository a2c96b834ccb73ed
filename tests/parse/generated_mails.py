"""Mails made by chance from a seed: real structures and odd ones, whole ones and damaged ones.

`whole(random)` makes what a mail program would write; `damaged(random)` hurts such a mail as transports, filters and bad
programs do: octets lost, doubled, exchanged, lines cut, line ends changed.
"""

from __future__ import annotations

from random import Random

from write_mails import b64, html, multi, named, part, photo, plain, tnef, uu

_TEXTS = [
    "Hello\n",
    "Grüße\n\n> quoted\n> more\n",
    "",
    "x" * 200 + "\n",
    "日本語のテキスト\n",
    "-- \nAnn\n",
    "--b\nno boundary\n",
]
_HTMLS = [
    "<p>Hi <b>you</b></p>",
    "<table><tr><td>1</td></tr></table>",
    "<div>a<br>b</div><!-- c -->",
    "<p>unclosed <i>x",
    "",
]
_SUBJECTS = [
    b"plain",
    b"=?utf-8?Q?gr=C3=BC=C3=9Fe?=",
    b"=?utf-8?B?4pi=?=\r\n =?utf-8?B?gw==?=",
    b"caf\xe9",
    b"",
    b"a\r\n\tb",
    "Ω".encode(),
]
_FROMS = [
    b"ann@example.org",
    b"Ann <ann@example.org>",
    b'"Ann, B." <ann@example.org>',
    b"=?utf-8?Q?J=C3=BCrgen?= <j@example.org>",
    b"ann@example.org (Ann)",
    b"",
    b"<>",
    b"undisclosed-recipients:;",
    b"a@b.example, Bob <c@d.example>",
]
_DISPOSITIONS = [
    b"Content-Disposition: attachment; filename=a.pdf",
    b"Content-Disposition: attachment; filename*=utf-8''gr%C3%BCn.pdf",
    b'Content-Disposition: inline; filename="=?utf-8?Q?x=2Epdf?="',
    b"Content-Disposition: attachment",
    b"Content-Disposition: attachment; filename*0=a; filename*1*=%20b; x",
    b'Content-Disposition: attachment; filename="a',
]
_CHARSETS = ["utf-8", "iso-8859-1", "windows-1252", "us-ascii", "x-none", "utf-16", "shift_jis"]
_WEEDS = [
    b"\0",
    b"\r",
    b"\n",
    b"\xff",
    b"=?",
    b'"',
    b";",
    b"--",
    b":",
    b" ",
    b"\x0b",
    b"\x0c",
    b"\x1c",
    b"\x85",
    b"(",
    b"\r\n\r\n",
    b"<",
    b"=",
]


def whole(random: Random) -> bytes:
    """A mail as some program writes it."""
    lines = [
        b"From: " + random.choice(_FROMS),
        b"To: " + random.choice(_FROMS),
        b"Subject: " + random.choice(_SUBJECTS),
    ]
    lines += [
        b"Date: Thu, 1 Jan 2026 12:00:00 +0%d00" % random.randrange(10),
        b"Message-ID: <%d@example.org>" % random.randrange(99),
    ]
    random.shuffle(lines)
    return b"\r\n".join(lines) + b"\r\n" + _part(random, depth=0)


def damaged(random: Random) -> bytes:
    """A whole mail, hurt in one to five places."""
    octets = bytearray(whole(random))
    for _ in range(random.randint(1, 5)):
        at = random.randrange(len(octets) + 1)
        how = random.randrange(6)
        if how == 0:
            octets[at:at] = random.choice(_WEEDS)
        elif how == 1:
            del octets[at : at + random.choice((1, 2, 40, 400))]
        elif how == 2:
            octets[at:at] = octets[max(0, at - random.choice((1, 80))) : at]
        elif how == 3 and at < len(octets):
            octets[at] = random.randrange(256)
        elif how == 4:
            octets = octets.replace(b"\r\n", random.choice((b"\n", b"\r\n", b"\r")), random.choice((1, -1)))
        else:
            octets[at:at] = (
                b"\r\n" + random.choice(_WEEDS) + random.choice((b"X: y", b"Content-Type: text/html", b"x")) + b"\r\n"
            )
    return bytes(octets)


def _part(random: Random, *, depth: int) -> bytes:
    if depth < 4 and random.random() < (0.75 if depth == 0 else 0.25):
        kind = random.choice(["mixed", "mixed", "alternative", "related", "signed", "report", "digest"])
        children = [_part(random, depth=depth + 1) for _ in range(random.randint(1, 4))]
        return multi(kind, *children, boundary=f"b{depth}-{random.randrange(10**6)}")
    return random.choice(_LEAVES)(random)


def _coded(random: Random) -> bytes:
    charset = random.choice(_CHARSETS)
    codec = charset if charset not in ("x-none", "us-ascii") else "utf-8"
    octets = random.choice(_TEXTS).encode(codec, "replace")
    return part(f"Content-Type: text/plain; charset={charset}; format={random.choice(('flowed', 'fixed'))}", octets)


def _octets(random: Random) -> bytes:
    return random.randbytes(random.choice((0, 1, 2, 3, 300, 7_000)))


_LEAVES = [
    lambda random: plain(random.choice(_TEXTS)),
    lambda random: plain(random.choice(_TEXTS)),
    lambda random: html(random.choice(_HTMLS)),
    lambda random: photo(octets=_octets(random), how=random.choice(("inline", "attachment"))),
    lambda random: named(random.choice(_DISPOSITIONS), _octets(random)),
    _coded,
    lambda random: part("Content-Type: message/rfc822", b"Subject: inner\r\n\r\n" + plain("inner\n")),
    lambda random: part("Content-Type: text/plain", b"x\n" + uu("a.bin", _octets(random))),
    lambda random: part("", random.choice(_TEXTS)),
]

__all__ = ["b64", "damaged", "tnef", "whole"]
