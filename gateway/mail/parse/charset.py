"""Octets to text, whatever their label says: strict UTF-8, the declared charset, then detection.  Home of chardetng.

Octets that name their charset themselves (a byte order mark, the escapes of ISO-2022-JP) are believed before any label.

Promise: always text, never an exception, never a NUL; what could not be read is counted, so that a defect can be noted.
Limits: a wrong but plausible label is believed unless the octets are valid UTF-8; detection looks at the first 64 KiB,
and of a few octets it can only guess.
"""

from __future__ import annotations

import codecs
import re

REPLACEMENT = "\ufffd"
# What mailers write and what they mean; the wider sibling reads everything the narrow one does.
_MEANT = {
    "ascii": "",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "tis-620": "cp874",
    "big5": "cp950",
    "iso2022_jp": "iso2022_jp_ext",
}
# Read by these when the first one cannot: characters that makers of systems added to the standard.
_ALSO = {"cp950": "big5hkscs", "euc_jp": "euc_jis_2004"}
_SPELLED = {
    "iso-8859-8-i": "iso-8859-8",
    "iso-8859-8-e": "iso-8859-8",
    "iso-8859-6-i": "iso-8859-6",
    "ks_c_5601-1987": "cp949",
    "x-sjis": "cp932",
    "x-mac-roman": "mac_roman",
    "x-mac-cyrillic": "mac_cyrillic",
    "iso-2022-jp-ms": "iso2022_jp",
    "cp50220": "iso2022_jp",
    "cp50221": "iso2022_jp",
    "x-gbk": "gb18030",
    "cp-850": "cp850",
    "windows-874": "cp874",
    "unicode-1-1-utf-7": "utf-7",
}
# Valid ASCII (or full of NULs) on the wire, so UTF-8 would wrongly succeed: the label goes first.
_LABEL_FIRST = ("iso2022", "utf-7", "utf-16", "utf-32", "hz")
# Python calls these text encodings; in a mail they are nonsense or a bomb.
_REFUSED = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"})
_ISO_2022_JP = "iso2022_jp_ext"
_ESCAPES = (b"\x1b$B", b"\x1b$@")
_SHIFT = re.compile(rb"\x1b(\$@|\$B|\(B|\(J|\(I)")
_TOLERATED_SHARE = 0.1
_DETECT_OCTETS = 64 * 1024
_LAST_RESORT = "cp1252"


def decode(octets: bytes, declared: str = "") -> tuple[str, int]:
    """Returns the text and how many characters had to be replaced."""
    codec = codec_name(declared)
    text, replaced = _decode(octets, _named_by_itself(octets, codec) or codec)
    return text.replace("\0", ""), replaced


def codec_name(declared: str) -> str:
    """Python's name of a declared charset; '' when it is missing, unknown, refused or says nothing (us-ascii)."""
    label = declared.strip().strip("\"'").lower()
    if not label or len(label) > 64 or "\0" in label:
        return ""
    try:
        found = codecs.lookup(_SPELLED.get(label, label))
    except (LookupError, ValueError):
        return ""
    if not found._is_text_encoding or found.name in _REFUSED:
        return ""
    return _MEANT.get(found.name, found.name)


def _decode(octets: bytes, codec: str) -> tuple[str, int]:
    order = [codec, "utf-8"] if codec.startswith(_LABEL_FIRST) else ["utf-8", codec, _ALSO.get(codec, "")]
    is_iso_2022_jp = codec == _ISO_2022_JP and octets.isascii()
    if is_iso_2022_jp:
        order.remove("utf-8")  # which would read the escapes as letters
    for name in filter(None, order):
        try:
            return octets.decode(name).removeprefix("\ufeff"), 0
        except (UnicodeError, ValueError):
            continue
    if is_iso_2022_jp:
        text = _iso_2022_jp(octets)
        return text, text.count(REPLACEMENT)
    # A label that reads nearly everything is right about the rest; else bytes that are nearly UTF-8 are UTF-8.
    for name in filter(None, (codec, "utf-8")):
        try:
            text = octets.decode(name, "replace")
        except (UnicodeError, ValueError):
            continue
        replaced = text.count(REPLACEMENT)
        unusual = sum(1 for character in text if character > "\x7f")
        if replaced <= max(1, unusual * _TOLERATED_SHARE) and unusual > replaced:
            return text, replaced
    text = octets.decode(_detected(octets), "replace")
    return text, text.count(REPLACEMENT)


def _named_by_itself(octets: bytes, codec: str) -> str:
    """The codec that the octets name in spite of their label; '' where they do not."""
    if octets.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16" if not codec.startswith("utf-32") else ""
    if codec == "utf-16":  # without its mark: the zeros of Latin letters tell which octet is the high one
        high, low = octets[::2].count(0), octets[1::2].count(0)
        return "utf-16-le" if low > high else "utf-16-be" if high or not octets.isascii() else "utf-8"
    is_labelled = codec.startswith(_LABEL_FIRST)
    has_escapes = not is_labelled and any(escape in octets for escape in _ESCAPES)
    return _ISO_2022_JP if has_escapes and octets.isascii() else ""


def _iso_2022_jp(octets: bytes) -> str:
    """ISO-2022-JP with what NEC and Microsoft put into its free rows, and with half-width letters."""
    first, *shifted = _SHIFT.split(octets)
    pieces = [first.decode("ascii", "replace")]
    for shift, stretch in zip(shifted[::2], shifted[1::2], strict=True):
        if shift in (b"(B", b"(J"):
            pieces.append(stretch.decode("ascii", "replace"))
            continue
        high = bytes(octet | 0x80 if octet > 0x20 else octet for octet in stretch)
        pieces.append(high.decode("cp932" if shift == b"(I" else "euc_jis_2004", "replace"))
    return "".join(pieces)


def _detected(octets: bytes) -> str:
    """Python's name of the charset the octets look like."""
    import chardetng_py

    try:
        detector = chardetng_py.EncodingDetector()
        detector.feed(octets[:_DETECT_OCTETS], last=True)
        return codec_name(detector.guess(tld=None, allow_utf8=False)) or _LAST_RESORT
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a Rust panic (PyO3) is a BaseException; the text is readable all the same
        return _LAST_RESORT
