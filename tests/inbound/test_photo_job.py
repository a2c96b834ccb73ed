"""What is made of one photo: upright, small, of every format, with nothing of the original's metadata left."""

from __future__ import annotations

from io import BytesIO

import pictures
import pytest
from pictures import CORNERS, encoded, exif, stored_with, upright
from PIL import Image

from gateway.inbound.photo_job import inspect_job, render_job
from gateway.inbound.photos import MAX_PIXELS

REQUEST = {"max_pixels": MAX_PIXELS}
FORMATS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "GIF": {}, "HEIF": {}, "AVIF": {"speed": 10}}


def rendered(octets: bytes) -> dict[str, bytes]:
    answer, contents = render_job(REQUEST, octets)
    assert "refusal" not in answer, answer
    found, position = {}, 0
    for item in answer["renditions"]:
        content = contents[position : position + item["size"]]
        position += item["size"]
        image = Image.open(BytesIO(content))
        assert (image.width, image.height) == (item["width"], item["height"])
        assert Image.MIME[image.format] == item["type"]
        found[item["kind"]] = content
    assert position == len(contents)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_list_gives_a_web_size_and_a_thumbnail(name: str) -> None:
    made = rendered(encoded(upright((2400, 1800)), name, **FORMATS[name]))
    assert pictures.corners_of(made["web"]) == ((1600, 1200), CORNERS)
    assert pictures.corners_of(made["thumb"]) == ((320, 240), CORNERS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "HEIF", "AVIF"])
def test_each_orientation_is_baked(name: str, orientation: int) -> None:
    values = FORMATS[name] | {"exif": exif(orientation)}
    made = rendered(encoded(stored_with(orientation), name, **values))
    assert pictures.corners_of(made["web"]) == ((640, 480), CORNERS)
    assert pictures.corners_of(made["thumb"]) == ((320, 240), CORNERS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_upright_whether_turned_by_its_boxes_or_by_exif_only(orientation: int) -> None:
    by_boxes = encoded(stored_with(orientation), "HEIF", exif=exif(orientation))
    assert (b"irot" in by_boxes or b"imir" in by_boxes) is (orientation > 1)
    for octets in (by_boxes, pictures.heic_turned_by_exif_only(orientation)):
        assert pictures.corners_of(rendered(octets)["web"]) == ((640, 480), CORNERS)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>SECRETXMP</rdf:RDF></x:xmpmeta>'


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "HEIF", "AVIF"])
def test_no_metadata_is_left(name: str) -> None:
    values = FORMATS[name] | {"exif": exif(6), "xmp": XMP, "icc_profile": pictures.display_p3()}
    values |= {"comment": b"SECRETCOMMENT"} if name == "JPEG" else {}
    original = encoded(upright(), name, **values)
    assert b"SECRETMAKER" in original
    for content in rendered(original).values():
        assert b"SECRET" not in content
        image = Image.open(BytesIO(content))
        assert dict(image.getexif()) == {}
        assert not {"exif", "xmp", "icc_profile", "comment", "photoshop"} & set(image.info)


def test_a_picture_with_transparency_keeps_it() -> None:
    image = upright()
    image.putalpha(0)
    made = rendered(encoded(image, "PNG"))
    assert Image.open(BytesIO(made["thumb"])).convert("RGBA").getpixel((5, 5))[3] == 0


def test_a_small_picture_is_not_enlarged() -> None:
    made = rendered(encoded(upright((40, 20)), "PNG"))
    assert {pictures.corners_of(content)[0] for content in made.values()} == {(40, 20)}


def test_the_same_photo_gives_the_same_renditions() -> None:
    octets = encoded(upright(), "JPEG", exif=exif(6))
    assert render_job(REQUEST, octets) == render_job(REQUEST, octets)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("job", [inspect_job, render_job])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_file_cut_off_is_refused_with_its_reason(name: str, job, share: float) -> None:
    whole = encoded(upright().effect_spread(9), name, **FORMATS[name])
    answer, contents = job(REQUEST, whole[: max(16, int(len(whole) * share))])
    assert "is cut off" in answer["refusal"]
    assert contents == b""
    assert "refusal" not in job(REQUEST, whole)[0]


def test_a_preview_inside_exif_does_not_hide_that_the_photo_is_cut_off() -> None:
    preview = encoded(upright((40, 20)), "JPEG")
    whole = encoded(upright(), "JPEG")
    segment = b"\xff\xe1" + (2 + len(preview)).to_bytes(2) + preview
    octets = whole[:2] + segment + whole[2:-2]
    assert "is cut off" in inspect_job(REQUEST, octets)[0]["refusal"]


def test_what_a_phone_appends_to_a_photo_does_no_harm() -> None:
    octets = encoded(upright(), "JPEG") + b"\0\0\0\x18ftypmp42 a film"
    assert pictures.corners_of(rendered(octets)["web"])[1] == CORNERS


def test_200_megapixels_are_refused_before_one_is_decoded() -> None:
    octets = pictures.png_of(20_000, 10_000)
    for job in (inspect_job, render_job):
        assert job(REQUEST, octets)[0] == {"refusal": "has 20000 x 10000 pixels, at most 100 million are taken"}


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", "is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is none of"),
        (encoded(upright(), "TIFF"), "is none of"),
        (encoded(upright(), "BMP"), "is none of"),
        (b"\xff\xd8\xff\xe0" + bytes(200) + b"\xff\xd9", "cannot be read as JPEG"),
        (b"GIF89a" + bytes(7) + b";", "cannot be"),
        (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + b"\0\0\0\x10metaidatidat", "cannot be read as HEIF"),
    ],
)
def test_what_is_no_photo_is_refused_never_raised(octets: bytes, reason: str) -> None:
    assert reason in render_job(REQUEST, octets)[0]["refusal"]


@pytest.mark.parametrize("name", FORMATS)
def test_damage_anywhere_is_an_answer(name: str) -> None:
    whole = encoded(upright((120, 80)), name, **FORMATS[name])
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        damaged = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        answer, _ = render_job(REQUEST, damaged)
        assert answer.get("refusal") or answer["renditions"]
