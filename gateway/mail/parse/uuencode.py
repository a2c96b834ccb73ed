"""Files written into a text between `begin 644 name` and `end`, as mailers did before MIME.

Promises: only a complete block is taken out of the text; anything else stays text, word for word.  Linear in the text.
"""

from __future__ import annotations

import binascii
import re

_BEGIN = re.compile(r"^begin [0-7]{3,4} (\S[^\n]{0,300})\n", re.MULTILINE)
# No line of a block has a small letter, so the search for its end stops where another begins.  The line before the end is
# empty where a transport took the blank that it was.
_BLOCK = re.compile(r"((?:[ -`]{1,90}\n)+\n?)end[ \t]*$", re.MULTILINE)


def looks_uuencoded(text: str) -> bool:
    """Whether there may be a file inside; cheap."""
    return text.startswith("begin") or "\nbegin" in text


def take_out(text: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Returns the text (lines end in LF) without its files, and the files in order with their names."""
    files: list[tuple[str, bytes]] = []
    kept: list[str] = []
    position = 0
    for begin in _BEGIN.finditer(text):
        block = _BLOCK.match(text, begin.end())
        octets = _decoded(block[1]) if block else None
        if block is None or octets is None:
            continue
        kept.append(text[position : begin.start()])
        files.append((begin[1].strip(), octets))
        position = block.end() + 1
    kept.append(text[position:])
    return "".join(kept), files


def _decoded(block: str) -> bytes | None:
    """The octets of the lines between begin and end; None when a line is none of uuencode's."""
    pieces = [_line_octets(line) for line in block.split("\n") if line]
    return None if None in pieces else b"".join(filter(None, pieces))


def _line_octets(line: str) -> bytes | None:
    try:
        return binascii.a2b_uu(line)
    except binascii.Error:
        # Some encoders pad the last group too much: the length letter is what counts.
        wanted = ((ord(line[0]) - 32) & 63) * 4 // 3 + 4
        try:
            return binascii.a2b_uu(line[:wanted])
        except binascii.Error:
            return None
