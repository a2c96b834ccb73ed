"""Pictures for tests, made on the spot: four corners of four colours, so that any turn shows."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import pillow_heif
from PIL import Image, ImageCms

pillow_heif.register_heif_opener(thumbnails=False)

CORNERS = ("red", "green", "blue", "white")  # left above, right above, left below, right below
ORIENTATION = 0x0112
# Where the corners of an upright picture are stored for each Exif orientation.
_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def upright(size: tuple[int, int] = (640, 480), corners: tuple[str, ...] = CORNERS) -> Image.Image:
    image = Image.new("RGB", size, "grey")
    width, height = size[0] // 2, size[1] // 2
    for i, colour in enumerate(corners):
        image.paste(colour, (width * (i % 2), height * (i // 2), width * (i % 2 + 1), height * (i // 2 + 1)))
    return image


def encoded(image: Image.Image, name: str, **values: Any) -> bytes:
    file = BytesIO()
    image.save(file, name, **values)
    return file.getvalue()


def stored_with(orientation: int) -> Image.Image:
    """The upright picture as a camera held otherwise stores it."""
    turn = _STORED[orientation]
    return upright() if turn is None else upright().transpose(turn)


def exif(orientation: int = 1) -> bytes:
    """Exif with orientation, a maker's name and a place."""
    values = Image.Exif()
    values[ORIENTATION] = orientation
    values[0x010F] = "SECRETMAKER"
    place = values.get_ifd(0x8825)
    place[1], place[2] = "N", (48.0, 8.0, 0.0)
    values[0x8825] = place
    return values.tobytes()


def heic_turned_by_exif_only(orientation: int) -> bytes:
    """HEIC without irot and imir whose Exif alone says how it was held."""
    plain = Image.Exif()
    plain[ORIENTATION] = 1
    octets = encoded(stored_with(orientation), "HEIF", exif=plain.tobytes(), quality=90)
    tag = struct.pack(">HHI", ORIENTATION, 3, 1)
    assert octets.count(tag + b"\x00\x01") == 1
    assert b"irot" not in octets
    assert b"imir" not in octets
    return octets.replace(tag + b"\x00\x01", tag + struct.pack(">H", orientation))


def png_of(width: int, height: int) -> bytes:
    """A whole PNG of that size whose pixels weigh nothing: rows of zeros."""
    rows = zlib.compressobj(9)
    row = bytes(1 + width)
    data = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def display_p3() -> bytes:
    """Some profile that is not sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def corners_of(octets: bytes) -> tuple[tuple[int, int], tuple[str, ...]]:
    """The size and the colours seen in the corners of a picture as it is shown without metadata."""
    image = Image.open(BytesIO(octets)).convert("RGB")
    places = [(x * image.width // 4, y * image.height // 4) for y in (1, 3) for x in (1, 3)]
    return image.size, tuple(_named(image.getpixel(place)) for place in places)


def _named(pixel: Any) -> str:
    known = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    return min(known, key=lambda name: sum(abs(a - b) for a, b in zip(known[name], pixel, strict=True)))
