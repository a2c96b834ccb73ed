"""Octets to text, whatever their label says: strict UTF-8, the declared charset, then detection.  Home of chardetng.

Promise: always text, never an exception, never a NUL; what could not be read is counted, so that a defect can be noted.
Limits: a wrong but plausible label is believed unless the octets are valid UTF-8; detection looks at the first 64 KiB,
and of a few octets it can only guess.
"""

from __future__ import annotations

import codecs

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
}
_SPELLED = {
    "iso-8859-8-i": "iso-8859-8",
    "iso-8859-8-e": "iso-8859-8",
    "iso-8859-6-i": "iso-8859-6",
    "ks_c_5601-1987": "cp949",
    "x-sjis": "cp932",
    "x-gbk": "gb18030",
    "cp-850": "cp850",
    "windows-874": "cp874",
    "unicode-1-1-utf-7": "utf-7",
}
# Valid ASCII (or full of NULs) on the wire, so UTF-8 would wrongly succeed: the label goes first.
_LABEL_FIRST = ("iso2022", "utf-7", "utf-16", "utf-32", "hz")
# Python calls these text encodings; in a mail they are nonsense or a bomb.
_REFUSED = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"})
_TOLERATED_SHARE = 0.1
_DETECT_OCTETS = 64 * 1024
_LAST_RESORT = "cp1252"


def decode(octets: bytes, declared: str = "") -> tuple[str, int]:
    """Returns the text and how many characters had to be replaced."""
    text, replaced = _decode(octets, codec_name(declared))
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
    order = [codec, "utf-8"] if codec.startswith(_LABEL_FIRST) else ["utf-8", codec]
    for name in filter(None, order):
        try:
            return octets.decode(name).removeprefix("\ufeff"), 0
        except (UnicodeError, ValueError):
            continue
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
