"""The structure of a mail as ranges of its octets: which part begins and ends where, and its header.

The bodies are never copied or turned into lines.  That keeps a mail of 35 MB at its own size (the stdlib's tree takes
five times as much and a second of CPU) and an attached mail octet for octet.  Who turns a header's octets into names and
values is the caller's choice: the fallback lets compat32 do it, the fast path `split_header`.
Promises: every limit of guards is counted here; an outer boundary ends inner parts; a missing end is no error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from gateway.mail.parse import headers
from gateway.mail.parse.guards import Limits, TooComplex, header_block

_STRAY_LINE = re.compile(rb"^(?![!-9;-~]+[ \t]*:|[ \t])", re.MULTILINE)
_NO_LINE_END = bytes.maketrans(b"\x0b\x0c\x1c\x1d\x1e", b"     ")  # the stdlib ends lines there
_LONE_CR = re.compile(rb"\r(?!\n)")
_BLANK = re.compile(rb"\r?\n|\r")
_FIELD = re.compile(r"^([!-9;-~]+)[ \t]*:[ \t]*([^\r\n]*(?:(?:\r\n|[\r\n])[ \t][^\r\n]*)*)", re.MULTILINE)
# A boundary nobody declared is believed when a header follows it.
_LIKELY_BOUNDARY = re.compile(
    rb"(?:\A|(?<=\n))--([^\s-][^\r\n]{0,68}[^\s-]|=_[^\r\n]{0,68})[ \t]*\r?\nContent-[TD]", re.I
)

HeaderReader = Callable[[bytes], Iterable[tuple[str, str]]]
Base64Decoder = Callable[[bytes], bytes | None]


def without_envelope_line(octets: bytes) -> bytes:
    """The mail without the mbox line that some spools put in front."""
    return octets[octets.find(b"\n") + 1 :] if octets.startswith((b"From ", b">From ")) else octets


def _plain_lines(block: bytes) -> bytes:
    """The block, as long as before, with line ends that every reader takes for such, and no others."""
    block = block.translate(_NO_LINE_END)
    return _LONE_CR.sub(b"\n", block) if block.count(b"\r") != block.count(b"\r\n") else block


def split_header(block: bytes) -> Iterable[tuple[str, str]]:
    """Names and values of a header block; values keep their folds, raw octets are surrogate escapes."""
    return [(found[1], found[2]) for found in _FIELD.finditer(block.decode("ascii", "surrogateescape"))]


@dataclass(slots=True, kw_only=True)
class Part:
    """One node: `octets[start:end]` is its body; a multipart has children instead of a body of interest."""

    header: dict[str, str]
    content_type: str
    parameters: dict[str, str]
    disposition: str
    disposition_parameters: dict[str, str]
    start: int
    end: int
    children: list[Part] = field(default_factory=list)

    def value(self, name: str) -> str:
        """The raw value of the first header of that name, '' without one."""
        return self.header.get(name, "")


@dataclass(slots=True, kw_only=True)
class Scan:
    """The tree and what was wrong with it; counts what the limits allow."""

    octets: bytes
    limits: Limits
    read_header: HeaderReader = split_header
    clean_base64: Base64Decoder | None = None
    styled: bool = False  # whether html keeps its looks (see `html.sanitise`)
    defects: list[str] = field(default_factory=list)
    parts: int = 0
    header_bytes: int = 0

    def part(self, start: int, end: int, *, depth: int, default_type: str = "text/plain") -> Part:
        """Reads the part in `octets[start:end]` with everything below it."""
        self.parts += 1
        if self.parts > self.limits.parts:
            raise TooComplex(f"more than {self.limits.parts} parts")
        if depth > self.limits.depth:
            raise TooComplex(f"parts nested more than {self.limits.depth} deep")
        header, body = self._header(start, end)
        part = self._leaf(header, body, end, default_type)
        if part.content_type.startswith("multipart/"):
            self._children(part, depth)
        return part

    def _header(self, start: int, end: int) -> tuple[dict[str, str], int]:
        stop = header_block(self.octets, start, end, self.limits)
        block = _plain_lines(self.octets[start:stop])
        self.header_bytes += len(block)
        if self.header_bytes > self.limits.all_headers_bytes:
            raise TooComplex(f"more than {self.limits.all_headers_bytes} bytes of headers")
        if block.count(b"\n") > self.limits.header_lines:
            raise TooComplex(f"more than {self.limits.header_lines} header lines")
        stray = _STRAY_LINE.search(block)
        if stray and stray.start() < len(block):
            # A line that is no header line ends the header: the body begins there, without an empty line.
            self.defects.append("no empty line between header and body")
            return self._fields(block[: stray.start()]), start + stray.start()
        blank = _BLANK.match(self.octets, stop, end)
        return self._fields(block), blank.end() if blank else min(stop, end)

    def _fields(self, block: bytes) -> dict[str, str]:
        """The first value of each name: a second From or Content-Type is somebody's trick, or a mistake."""
        fields: dict[str, str] = {}
        for name, value in self.read_header(block):
            fields.setdefault(name.lower(), value)
        return fields

    def _leaf(self, header: dict[str, str], start: int, end: int, default_type: str) -> Part:
        part = Part(
            header=header,
            content_type=default_type,
            parameters={},
            disposition="",
            disposition_parameters={},
            start=start,
            end=end,
        )
        try:
            declared = part.value("content-type")
            part.content_type = headers.content_type(declared) or ("text/plain" if declared else default_type)
            part.parameters = headers.parameters(declared, at_most=self.limits.parameters)
            disposition = part.value("content-disposition")
            part.disposition = headers.disposition(disposition)
            part.disposition_parameters = headers.parameters(disposition, at_most=self.limits.parameters)
        except ValueError as error:
            raise TooComplex(str(error)) from None
        return part

    def _children(self, part: Part, depth: int) -> None:
        declared = part.parameters.get("boundary")
        ranges = self._declared_ranges(declared, part) if declared is not None else []
        if not ranges and (likely := _LIKELY_BOUNDARY.search(self.octets, part.start, part.end)):
            self.defects.append(f"{part.content_type} with another boundary than it says")
            ranges = list(self._ranges(likely[1], part.start, part.end))
        if not ranges:
            # Without a boundary that occurs, there is nothing to take apart: read it as text, as the stdlib does.
            self.defects.append(f"{part.content_type} without its parts")
            part.content_type = "text/plain"
            return
        default_type = "message/rfc822" if part.content_type == "multipart/digest" else "text/plain"
        for start, end in ranges:
            part.children.append(self.part(start, end, depth=depth + 1, default_type=default_type))

    def _declared_ranges(self, declared: str, part: Part) -> list[tuple[int, int]]:
        for boundary in dict.fromkeys((declared, declared.strip("'"))):
            if ranges := list(self._ranges(boundary.encode("utf-8", "surrogateescape"), part.start, part.end)):
                return ranges
        return []

    def _ranges(self, boundary: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Where the parts between the boundary lines lie; the line end before a boundary belongs to it."""
        opened: int | None = None
        for line_start, line_end, closes in self._boundary_lines(boundary, start, end):
            if opened is not None:
                yield opened, max(opened, self._before_line_end(line_start, opened))
            opened = None if closes else line_end
            if closes:
                return
        if opened is not None:
            self.defects.append("the last boundary is missing")
            yield opened, end

    def _boundary_lines(self, boundary: bytes, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        delimiter = b"--" + boundary
        position = start
        while (found := self.octets.find(delimiter, position, end)) >= 0:
            position = found + len(delimiter)
            if found > start and self.octets[found - 1 : found] not in (b"\n", b"\r"):
                continue
            line_end = self.octets.find(b"\n", position, end)
            line_end = end if line_end < 0 else line_end + 1
            rest = self.octets[position : min(line_end, position + 200)].strip(b" \t\r\n")
            if rest in (b"", b"--"):
                yield found, line_end, rest == b"--"

    def _before_line_end(self, position: int, floor: int) -> int:
        if position > floor and self.octets[position - 1 : position] == b"\n":
            position -= 1
        if position > floor and self.octets[position - 1 : position] == b"\r":
            position -= 1
        return position
