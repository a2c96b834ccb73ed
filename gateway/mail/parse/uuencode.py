"""Files written into a text between `begin 644 name` and `end`, as mailers did before MIME.

Promises: only a complete block is taken out of the text; anything else stays text, word for word.
Limit: the first hundred beginnings are tried.
"""

from __future__ import annotations

import binascii
import re

_BEGIN = re.compile(r"^begin [0-7]{3,4} (\S[^\n]{0,300})\n", re.MULTILINE)
_END = re.compile(r"^end[ \t]*$", re.MULTILINE)
_LINE = re.compile(r"[ -`]{1,90}[ \t]*")
_MAX_FILES = 100


def looks_uuencoded(text: str) -> bool:
    """Whether there may be a file inside; cheap."""
    return text.startswith("begin") or "\nbegin" in text


def take_out(text: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Returns the text (lines end in LF) without its files, and the files in order with their names."""
    files: list[tuple[str, bytes]] = []
    kept: list[str] = []
    position = 0
    for _ in range(_MAX_FILES):
        begin = _BEGIN.search(text, position)
        end = begin and _END.search(text, begin.end())
        if begin is None or end is None:
            break
        octets = decode(text[begin.end() : end.start()])
        if octets is None:
            kept.append(text[position : begin.end()])
            position = begin.end()
            continue
        kept.append(text[position : begin.start()])
        files.append((begin[1].strip(), octets))
        position = end.end() + 1
    kept.append(text[position:])
    return "".join(kept), files


def decode(block: str) -> bytes | None:
    """The octets of the lines between begin and end; None when a line is none of uuencode's."""
    pieces = []
    for line in block.split("\n"):
        line = line.rstrip("\r")
        if not line:
            continue
        if not _LINE.fullmatch(line):
            return None
        piece = _line_octets(line)
        if piece is None:
            return None
        pieces.append(piece)
    return b"".join(pieces)


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
