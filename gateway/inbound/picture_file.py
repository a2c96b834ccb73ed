"""What a picture's file says of itself, read from its octets alone: the format, whether it is all there, who turns it.

Pure and linear; nothing is decoded, so a bomb costs no more than its own length.  Runs in the cage with `photo_job`.
Promises: a label is never asked; a file cut off anywhere before its end is no whole file.
Limits: what lies behind a picture's end (a phone's film, padding) is not looked at; a damaged middle is the decoder's to find.
"""

from __future__ import annotations

from collections.abc import Iterator

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_PNG = b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN = 0xDA
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})


def format_of(octets: bytes) -> str:
    """JPEG, PNG, WEBP, GIF, HEIF or AVIF by content; '' for anything else."""
    if octets.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if octets.startswith(_PNG):
        return "PNG"
    if octets.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if octets[:4] == b"RIFF" and octets[8:12] == b"WEBP":
        return "WEBP"
    return _brand_format(octets)


def is_whole(octets: bytes) -> bool:
    """Whether the file reaches its own end."""
    check = {"JPEG": _jpeg_ends, "PNG": _png_ends, "GIF": _gif_ends, "WEBP": _webp_ends}
    return check.get(format_of(octets), _boxes_end)(octets)


def is_turned_by_its_boxes(octets: bytes) -> bool:
    """Whether a HEIF file has irot or imir properties (ISO 23008-12): then its decoder turns it and Exif is only a copy."""
    for name, start, end in _boxes(octets, 0, len(octets)):
        if name == b"meta":
            for path in (b"iprp", b"ipco"):
                start, end = _inside(octets, path, start + (4 if path == b"iprp" else 0), end)
            return any(inner in (b"irot", b"imir") for inner, _, _ in _boxes(octets, start, end))
    return False


def _brand_format(octets: bytes) -> str:
    if octets[4:8] != b"ftyp":
        return ""
    size = min(int.from_bytes(octets[:4]), 512)
    brands = {octets[at : at + 4] for at in (8, *range(16, size, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else ""


def _jpeg_ends(octets: bytes) -> bool:
    """Walks to the first scan: an end marker before it belongs to a preview inside Exif."""
    position = 2
    while position + 4 <= len(octets) and octets[position] == 0xFF:
        marker = octets[position + 1]
        if marker in _BARE_MARKERS or marker == 0xFF:
            position += 1 if marker == 0xFF else 2
            continue
        position += 2 + int.from_bytes(octets[position + 2 : position + 4])
        if marker == _START_OF_SCAN:
            break
    return octets.find(b"\xff\xd9", position) >= 0


def _png_ends(octets: bytes) -> bool:
    position = len(_PNG)
    while position + 12 <= len(octets):
        size = int.from_bytes(octets[position : position + 4])
        if octets[position + 4 : position + 8] == b"IEND":
            return True
        position += 12 + size
    return False


def _gif_ends(octets: bytes) -> bool:
    position = 13 + _gif_colours(octets, 10)
    while position < len(octets):
        kind = octets[position]
        if kind == 0x3B:
            return True
        if kind == 0x21:
            position += 2
        elif kind == 0x2C:
            position += 11 + _gif_colours(octets, position + 9)
        else:
            return False
        while position < len(octets) and octets[position]:
            position += 1 + octets[position]
        position += 1
    return False


def _gif_colours(octets: bytes, flags_at: int) -> int:
    flags = octets[flags_at] if flags_at < len(octets) else 0
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp_ends(octets: bytes) -> bool:
    return 8 + int.from_bytes(octets[4:8], "little") <= len(octets)


def _boxes_end(octets: bytes) -> bool:
    found = {name: end for name, _, end in _boxes(octets, 0, len(octets))}
    has_pixels = b"mdat" in found or b"idat" in octets
    return b"meta" in found and has_pixels and max(found.values()) <= len(octets)


def _inside(octets: bytes, wanted: bytes, start: int, end: int) -> tuple[int, int]:
    return next(((first, last) for name, first, last in _boxes(octets, start, end) if name == wanted), (0, 0))


def _boxes(octets: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The name, the first and the last position of the content of each box (ISO 14496-12); the last may be cut off."""
    position = start
    while position + 8 <= end:
        size, head = int.from_bytes(octets[position : position + 4]), 8
        if size == 1:
            size, head = int.from_bytes(octets[position + 8 : position + 16]), 16
        size = size or end - position
        if size < head:
            return
        yield octets[position + 4 : position + 8], position + head, position + size
        position += size
