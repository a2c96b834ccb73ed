"""Header values to text: encoded words (RFC 2047), parameters (RFC 2045, RFC 2231), addresses, dates, message ids.

Values come in as the compat32 parser keeps them: unfolded by us, raw octets as surrogate escapes.
Promise: nothing here raises on hostile input, and no control or line-breaking character leaves (an encoded word can
hide CR LF, so characters are cleaned after decoding).  Linear but for bounded look-ahead.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import getaddresses, parsedate_to_datetime
from urllib.parse import unquote_to_bytes

from gateway.mail.parse.charset import decode
from gateway.mail.parse.tree import Person

# Longer words than the 75 characters allowed are common; the bound keeps a header of openings without ends linear.
_WORD = re.compile(r"=\?([^?\s]{1,60})\?([bBqQ])\?(.{0,4000}?)\?=")
_BETWEEN = re.compile(r"(\?=)[ \t]+(?==\?[^?\s]{1,60}\?[bBqQ]\?)")
_QUOTED_PAIR = re.compile(r"_|=([0-9A-Fa-f]{2})")
_PARAMETER = re.compile(r';\s*([^\s=;"]{1,80})\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
# "attachment filename=a" and "filename=a": somebody forgot the semicolon, or the kind with it.
_NO_SEMICOLON = re.compile(r'^\s*(?:[^\s;="]+\s+)?(?=[^\s;="/]{1,80}\s*=)')
_CONTINUED = re.compile(r"^(.+?)(?:\*(\d{1,3}))?(\*)?$")
_CONTENT_TYPE = re.compile(r"^\s*([A-Za-z0-9!#$&^_.+-]{1,80}/[A-Za-z0-9!#$&^_.+-]{1,120})(?:[\s;,]|$)")
# One mailbox, with or without a name: what most headers hold.  What stands before the only <…> is its name, however it is
# written: the grammar would take `Doe, John <j@example.org>` for two and `[Shop] Ann <…>` for an address Shop.
_MAILBOX = r"""[^\s"\\()<>\[\]:;,@]{1,64}@[A-Za-z0-9.-]{1,250}"""
_ONE_MAILBOX = re.compile(rf"(?:([^<>]{{0,500}})<\s*(?:mailto:)?({_MAILBOX})\s*>|({_MAILBOX}))")
_IN_QUOTES = re.compile(r'"((?:[^"\\]|\\.)*)"', re.S)
_EXTENDED = re.compile(r"^([A-Za-z0-9_-]{2,20})'[A-Za-z-]{0,8}'(?=.*%[0-9A-Fa-f]{2})", re.S)
_MESSAGE_ID = re.compile(r"<([^<>\s]{1,990})>")
_FOLD = re.compile(r"\r?\n[ \t]?|\r")
# Controls, line and paragraph separators; and direction overrides, which make "exe.jpg" out of "gpj.exe".
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
_MAX_TEXT = 10_000
Piece = tuple[int | None, bool, str]  # number, marked with a star, text
_MAX_PEOPLE = 1_000


def clean(text: str) -> str:
    """One line of printable text."""
    return " ".join(_UNSEEN.sub(" ", text).split())[:_MAX_TEXT]


def decode_text(value: str) -> tuple[str, int]:
    """An unstructured value (Subject, display name) as text, and how many characters were replaced."""
    if "=?" not in value and value.isascii() and "\x1b" not in value:
        return clean(_unfold(value)), 0
    value = _BETWEEN.sub(r"\1", _unfold(value))
    pieces: list[str] = []
    replaced = 0
    position = 0
    pending, pending_charset = b"", ""
    for word in _WORD.finditer(value):
        between = value[position : word.start()]
        charset = word[1].partition("*")[0].lower()
        if between or charset != pending_charset:
            # Neighbours of one charset are joined first: mailers cut characters in two between words.
            text, count = decode(pending, pending_charset)
            raw, raw_count = _raw_text(between)
            pieces += [text, raw]
            replaced += count + raw_count
            pending = b""
        pending, pending_charset = pending + _word_octets(word[2], word[3]), charset
        position = word.end()
    text, count = decode(pending, pending_charset)
    raw, raw_count = _raw_text(value[position:])
    return clean("".join([*pieces, text, raw])), replaced + count + raw_count


def content_type(value: str) -> str:
    """The media type in lower case, '' when there is none to read."""
    found = _CONTENT_TYPE.match(_unfold(value))
    return found[1].lower() if found else ""


def disposition(value: str) -> str:
    """The kind of a Content-Disposition in lower case, '' when there is none to read."""
    word = re.split(r"[\s;]", clean(value))[0].strip('"').lower()
    return "" if "=" in word else word


def parameters(value: str, *, at_most: int) -> dict[str, str]:
    """The parameters by lower-case name, RFC 2231 pieces joined and decoded; raises ValueError beyond `at_most`."""
    pieces: dict[str, list[Piece]] = {}
    unfolded = _unfold(value)
    if unfolded.count(";") > at_most:
        raise ValueError(f"more than {at_most} parameters in one header")
    for found in _PARAMETER.finditer(_NO_SEMICOLON.sub("; ", unfolded)):
        name = _CONTINUED.match(found[1].lower())
        if name:
            text = found[2].strip()
            whole = len(text) > 1 and text[0] == text[-1] == '"'  # else somebody forgot the other one
            # Only these two need a backslash; before anything else it is a folder's of Windows.
            text = re.sub(r'\\(["\\])', r"\1", text[1:-1]) if whole else text.strip('"')
            number = None if name[2] is None else int(name[2])
            pieces.setdefault(name[1], []).append((number, bool(name[3]), text))
    return {name: _join(_chosen(found)) for name, found in pieces.items()}


def people(value: str) -> tuple[Person, ...]:
    """The addresses of an address header, in order; what is no address is left out."""
    one = _ONE_MAILBOX.fullmatch(value.strip())
    if one and not ("@" in (name := one[1] or "") and set(name) & {",", ";"}):  # else the name holds mailboxes itself
        bare = _IN_QUOTES.sub(lambda quoted: re.sub(r"\\(.)", r"\1", quoted[1]), name)
        return (Person(name=decode_text(bare)[0], address=clean(one[2] or one[3])),)
    try:
        pairs = getaddresses([decode(_unfold(value).encode("utf-8", "surrogateescape"))[0]])
    except (ValueError, IndexError, RecursionError, TypeError):
        return ()
    found = (Person(name=decode_text(name)[0], address=clean(address)) for name, address in pairs[:_MAX_PEOPLE])
    return tuple(person for person in found if person.address or person.name)


def date(value: str) -> datetime | None:
    """The time of a Date header in UTC, None when it cannot be read."""
    try:
        moment = parsedate_to_datetime(clean(value))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def message_ids(value: str, *, at_most: int = 100) -> tuple[str, ...]:
    """The ids in <>, without the brackets."""
    return tuple(clean(found) for found in _MESSAGE_ID.findall(_unfold(value))[:at_most])


def filename(content_type_parameters: Mapping[str, str], disposition_parameters: Mapping[str, str]) -> str:
    """The name of an attachment without folders, controls or direction tricks; '' when it has none."""
    given = disposition_parameters.get("filename") or content_type_parameters.get("name") or ""
    return bare_name(given)


def bare_name(name: str) -> str:
    """A file name from anywhere, made harmless: no folders, controls or direction tricks, at most 200 characters."""
    name = clean(name).replace("\\", "/").rpartition("/")[2].strip(" .")
    stem, dot, suffix = name.rpartition(".")
    if len(name) > 200 and dot and len(suffix) <= 20:
        return f"{stem[: 199 - len(suffix)]}.{suffix}"
    return name[:200]


def _unfold(value: str) -> str:
    return _FOLD.sub(" ", value)


def _raw_text(value: str) -> tuple[str, int]:
    """A stretch outside encoded words: ASCII, or raw octets that somebody did not encode."""
    if value.isascii() and "\x1b" not in value:
        return value, 0
    return decode(value.encode("utf-8", "surrogateescape"))


def _word_octets(encoding: str, text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    if encoding in "qQ":
        swapped = _QUOTED_PAIR.sub(lambda pair: chr(int(pair[1], 16)) if pair[1] else " ", raw.decode("latin-1"))
        return swapped.encode("latin-1")
    letters = re.sub(rb"[^A-Za-z0-9+/]", b"", raw)
    letters = letters[: len(letters) - 1] if len(letters) % 4 == 1 else letters
    try:
        return base64.b64decode(letters + b"=" * (-len(letters) % 4))
    except binascii.Error:
        return b""


def _chosen(pieces: list[Piece]) -> list[Piece]:
    """The pieces that make the value: an extended whole before numbered pieces, before a plain one (RFC 2231, 4.1)."""
    for piece in pieces:
        if piece[0] is None and piece[1]:
            return [piece]
    numbered: dict[int, Piece] = {}
    for piece in pieces:
        if piece[0] is not None:
            numbered.setdefault(piece[0], piece)
    return [numbered[number] for number in sorted(numbered)] if numbered else pieces[:1]


def _join(parts: list[Piece]) -> str:
    """Joins the pieces of one parameter; only marked pieces carry a charset and percent signs (RFC 2231, section 4)."""
    if not any(marked for _, marked, _ in parts):
        whole = "".join(text for _, _, text in parts)
        if not (extended := _EXTENDED.match(whole)):
            return decode_text(whole)[0]
        # Marked, but the star was forgotten.
        return clean(
            decode(unquote_to_bytes(whole[extended.end() :].encode("utf-8", "surrogateescape")), extended[1])[0]
        )
    charset = ""
    octets = b""
    for number, (_, marked, text) in enumerate(parts):
        if marked and number == 0 and text.count("'") >= 2:
            charset, _, text = text.split("'", 2)
        raw = text.encode("utf-8", "surrogateescape")
        octets += unquote_to_bytes(raw) if marked else raw
    return clean(decode(octets, charset)[0])
