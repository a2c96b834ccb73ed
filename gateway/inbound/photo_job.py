"""Photos taken apart and made small, inside the cage only.  Home of Pillow and pillow-heif.

Two jobs: `inspect_job` reads the header (what ingest wants to know before it stores a photo), `render_job` decodes it and
makes the renditions.  Promises: formats by content, from an allow-list; the cap on pixels is checked before one is decoded;
orientation is baked, colours are sRGB, and nothing of the original's metadata (Exif, GPS, XMP, comments, profiles) is left;
the same octets always give the same renditions.  What cannot be a photo is an answer with its reason, never a raise.
Limits: of an animation the first frame; 16 bits a channel become 8.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pillow_heif
from PIL import AvifImagePlugin, GifImagePlugin, Image, ImageCms, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from gateway.inbound.picture_file import format_of, is_turned_by_its_boxes, is_whole

# Opened by name, so that Pillow does not go and import its fifty other formats.
PLUGINS = (AvifImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin)
RENDITIONS = {"web": (1600, 85), "thumb": (320, 80)}
FORMATS = "JPEG, PNG, WebP, GIF, HEIC and AVIF"
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESIZABLE = frozenset({"L", "RGB", "RGBA", "CMYK"})

pillow_heif.register_heif_opener(thumbnails=False)
Image.MAX_IMAGE_PIXELS = None  # ours is checked first, and it refuses with a reason instead of a warning


class _Refused(Exception):
    """The octets are no photo for us; the text is the reason."""


def inspect_job(request: dict[str, Any], octets: bytes) -> tuple[dict[str, Any], bytes]:
    """Answers `width`, `height`, or `refusal`; `request` has `max_pixels`."""
    try:
        picture = _opened(octets, request["max_pixels"])
    except _Refused as refusal:
        return {"refusal": str(refusal)}, b""
    return {"width": picture.width, "height": picture.height}, b""


def render_job(request: dict[str, Any], octets: bytes) -> tuple[dict[str, Any], bytes]:
    """Answers `renditions` with their octets end to end, the largest first, or `refusal`; `request` has `max_pixels`."""
    try:
        image = _developed(octets, _opened(octets, request["max_pixels"]))
    except _Refused as refusal:
        return {"refusal": str(refusal)}, b""
    facts, contents = [], []
    for kind, (edge, quality) in RENDITIONS.items():
        image = _within(image, edge)
        content_type, content = _encoded(image, quality)
        size = len(content)
        facts.append({"kind": kind, "width": image.width, "height": image.height, "type": content_type, "size": size})
        contents.append(content)
    return {"renditions": facts}, b"".join(contents)


def _opened(octets: bytes, max_pixels: int) -> Image.Image:
    """The picture with its header read."""
    name = format_of(octets)
    if not name:
        raise _Refused(f"is none of {FORMATS}" if octets else "is empty")
    if not is_whole(octets):
        raise _Refused(f"is cut off: the {name} file does not reach its end")
    try:
        picture = Image.open(BytesIO(octets), formats=[name])
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on broken files; the reason is kept
        raise _Refused(f"cannot be read as {name}: {_said(error)}") from None
    pixels = picture.width * picture.height
    if pixels > max_pixels:
        raise _Refused(
            f"has {picture.width} x {picture.height} pixels, at most {max_pixels // 1_000_000} million are taken"
        )
    return picture


def _developed(octets: bytes, picture: Image.Image) -> Image.Image:
    """Decodes a picture, shrinks it to the largest rendition, turns it upright and brings it to sRGB."""
    edge = max(edge for edge, _ in RENDITIONS.values())
    try:
        picture.draft(None, (edge, edge))  # a JPEG is decoded no larger than needed
        picture.load()
        orientation = _orientation(octets, picture)
        image = _in_srgb(_within(_resizable(picture), edge), picture.info.get("icc_profile"))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on broken files; the reason is kept
        raise _Refused(f"cannot be decoded: {_said(error)}") from None
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _orientation(octets: bytes, picture: Image.Image) -> int:
    if picture.format == "HEIF":
        # The decoder obeys irot and imir; Exif counts where a writer used nothing else.
        return 1 if is_turned_by_its_boxes(octets) else int(picture.info.get("original_orientation") or 1)
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - broken Exif does not make a broken photo
        return 1


def _resizable(picture: Image.Image) -> Image.Image:
    """The pixels in a mode that can be resized well: palettes, bitmaps and 16 bits are not."""
    if picture.mode in _RESIZABLE and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):
        return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    has_alpha = "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info
    return picture.convert("RGBA" if has_alpha else "RGB")


def _within(image: Image.Image, edge: int) -> Image.Image:
    """The image made to fit a square; never enlarged."""
    if max(image.size) <= edge:
        return image
    scale = edge / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    if profile:
        try:
            ours = ImageCms.createProfile("sRGB")
            theirs = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(image, theirs, ours, outputMode=mode)
            return converted if converted is not None else image
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a broken or unfitting profile: the plain conversion shows the photo all the same
    return image if image.mode == mode else image.convert(mode)


def _encoded(image: Image.Image, quality: int) -> tuple[str, bytes]:
    """The media type and the file; the pixels move into a fresh image, because encoders copy from `info`."""
    fresh = Image.new(image.mode, image.size)
    fresh.paste(image)
    file = BytesIO()
    if fresh.mode == "RGBA":
        fresh.save(file, "WEBP", quality=quality)
        return "image/webp", file.getvalue()
    fresh.save(file, "JPEG", quality=quality, progressive=True)
    return "image/jpeg", file.getvalue()


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]
