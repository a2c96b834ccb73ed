"""How a mail is written (RFC 5322, RFC 2045-2047): header lines, text parts and multiparts, from values to octets.

Used by `outbound.compose` for emails and by `mail.dsn` for notices.
Promises: CRLF only, no NUL, no line over 998 octets; control characters become spaces, so that no value starts a header;
no character is split between two encoded words; a boundary stands in none of its parts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence

from gateway.mail.addresses import Address, wire_mailbox

LINE = 76
MAX_LINE = 998
_WORD_OCTETS = 39  # of text in one encoded word: 64 of the 75 characters allowed, so that "Subject: " fits before it
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_PLAIN_TEXT = re.compile(r"[!-~]+(?: [!-~]+)*")
_PLAIN_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")


def neutral(text: str) -> str:
    """One line without control characters; what remains is data, however it looks."""
    return _BREAKS.sub(" ", text.encode("utf-8", "replace").decode()).strip()


def text_line(name: str, value: str) -> bytes:
    """An unstructured header: plain where plain is unambiguous, encoded words otherwise."""
    if not value:
        return f"{name}: ".encode()
    words = value.split(" ")
    if _PLAIN_TEXT.fullmatch(value) and "=?" not in value and max(map(len, words)) < LINE - len(name) - 2:
        return folded(name, words)
    return folded(name, _encoded_words(value))


def address_line(name: str, addresses: Sequence[Address]) -> bytes:
    words: list[str] = []
    for position, address in enumerate(addresses):
        mailbox = wire_mailbox(address.mailbox)
        display = neutral(address.name)
        item = [*_phrase(display), f"<{mailbox}>"] if display else [mailbox]
        if position < len(addresses) - 1:
            item[-1] += ","
        words.extend(item)
    return folded(name, words)


def _phrase(name: str) -> list[str]:
    """The display name as words that may stand on lines of their own."""
    if "=?" not in name and len(name) <= LINE - 10:
        if _PLAIN_PHRASE.fullmatch(name):
            return name.split(" ")
        if _PLAIN_TEXT.fullmatch(name):
            return ['"' + re.sub(r'(["\\])', r"\\\1", name) + '"']
    return _encoded_words(name)


def _encoded_words(text: str) -> list[str]:
    """RFC 2047 encoded words in UTF-8, none over 75 characters, no character split between two."""
    words, chunk = [], b""
    for character in text:
        octets = character.encode()
        if len(chunk) + len(octets) > _WORD_OCTETS:
            words.append(chunk)
            chunk = b""
        chunk += octets
    return [f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in [*words, chunk]]


def folded(name: str, words: Iterable[str]) -> bytes:
    """Joins words by spaces, breaking lines before a word that would pass column 76."""
    line, lines = f"{name}:", []
    for word in words:
        if len(line) + 1 + len(word.encode()) > LINE and line.strip():
            lines.append(line)
            line = ""
        line += " " + word
    return "\r\n".join([*lines, line]).encode()


def multipart(kind: str, parts: Sequence[bytes], seed: str) -> bytes:
    """Parts under a boundary that stands in none of them; a single part stays as it is."""
    if len(parts) == 1:
        return parts[0]
    number = 0
    while True:
        digest = hashlib.sha256(f"{seed} {kind} {number}".encode()).hexdigest()[:32]
        boundary = f"=_{digest}".encode()
        if not any(boundary in part for part in parts):
            break
        number += 1
    head = b"Content-Type: multipart/" + kind.encode() + b';\r\n boundary="' + boundary + b'"\r\n\r\n'
    return head + b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


def text_part(subtype: str, text: str) -> bytes:
    clean = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    octets = clean.rstrip("\n").replace("\n", "\r\n").encode("utf-8", "replace") + b"\r\n"
    charset = "us-ascii" if octets.isascii() else "utf-8"
    quoted = re.sub(rb"(?m)^From ", b"=46rom ", binascii.b2a_qp(octets, istext=True))
    encoding, coded = ("quoted-printable", quoted)
    if len(quoted) > len(octets) * 5 // 3:
        encoding, coded = ("base64", base64_lines(octets))
    head = f'Content-Type: text/{subtype}; charset="{charset}"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
    return head.encode() + coded


def base64_lines(octets: bytes) -> bytes:
    coded = base64.b64encode(octets)
    return b"\r\n".join(coded[start : start + LINE] for start in range(0, len(coded), LINE)) + b"\r\n"
