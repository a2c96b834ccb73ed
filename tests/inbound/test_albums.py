"""Photo mails on the real queue, store, cage and blobs: albums in order, captions, refusals, renditions exactly once."""

from __future__ import annotations

import asyncio
import os
import sys
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pictures
import pytest
from conftest import House
from pictures import CORNERS, encoded, exif, stored_with, upright
from test_ingest import envelope, mail, octets_of

from gateway.cage import Cage
from gateway.errors import OverBudget, PermanentFailure, StoreUnavailable
from gateway.inbound.mailboxes.photos import PhotoAlbum
from gateway.inbound.photos import CPU_SECONDS, MEMORY_BYTES, RenderPhoto, photo_ticket
from gateway.inbound.router import MailboxRoute, Router
from gateway.queue.broker import Done
from gateway.queue.ticket import PHOTO_RENDER, Ticket
from gateway.runtime import utc_now
from gateway.store.database import open_database
from gateway.store.lists import Lists
from gateway.store.photos import Photos

ADDRESS = "photos@localhost"


def album_house(house: House) -> House:
    house.router = Router([MailboxRoute(address=ADDRESS, kind="photos")], domains=["localhost"])
    house.mailboxes = {"photos": PhotoAlbum()}
    return house


def photo_mail(*photos: tuple[str, bytes], text: str = "", subject: str = "Summer") -> bytes:
    message = mail(subject, text) if text else EmailMessage()
    if not text:
        message["From"] = "Ann <ann@example.org>"
    for filename, octets in photos:
        message.add_attachment(octets, maintype="image", subtype="jpeg", filename=filename)
    return octets_of(message)


async def taken_in(house: House, octets: bytes) -> dict[str, Any]:
    """Accepts a mail, ingests it and returns the delivery's row."""
    album_house(house)
    ingest = house.ingest or await house.open_ingest()
    await house.intake().accept(envelope(ADDRESS), octets)
    for ticket in await house.tickets():
        assert await ingest.handle(ticket) == Done()
    assert house.mails is not None
    return (await house.lists.newest("mails"))[-1]


async def photo_tickets(house: House) -> list[Ticket]:
    found: list[Ticket] = []
    ready = sum(depth.ready for depth in await house.broker.depths() if depth.name == PHOTO_RENDER)
    if ready:
        async with house.broker.consume({PHOTO_RENDER: 1}, concurrency=ready) as consumer:
            async for lease in consumer:
                found.append(lease.ticket)
                if len(found) == ready:
                    break
    return found


async def renderer(house: House, **limits: Any) -> RenderPhoto:
    assert house.database is not None
    values = {"children": 1, "cpu_seconds": CPU_SECONDS, "memory_bytes": MEMORY_BYTES} | limits
    cage = await house.stack.enter_async_context(Cage(preload=("gateway.inbound.photo_job",), **values))
    photos = Photos(house.database, clock=utc_now, hostname="mx.localhost")
    return RenderPhoto(photos=photos, blobs=house.blobs, cage=cage, log=house.log)


async def album_of(house: House, row: dict[str, Any]) -> dict[str, Any]:
    assert house.mails is not None
    story = await house.mails.post_story(row["post_id"])
    assert story is not None
    return story


async def test_a_phones_photo_mail_becomes_an_album_with_upright_renditions(house: House) -> None:
    photos = [
        ("IMG_1.jpg", encoded(stored_with(6), "JPEG", exif=exif(6), quality=95)),
        ("IMG_2.heic", encoded(stored_with(8), "HEIF", exif=exif(8))),
        ("IMG_3.heic", pictures.heic_turned_by_exif_only(3)),
    ]
    row = await taken_in(house, photo_mail(*photos, text="From the lake."))
    assert (row["disposition"], row["reason"]) == ("delivered", "")
    tickets = await photo_tickets(house)
    render = await renderer(house)
    for ticket in tickets:
        assert await render.handle(ticket) == Done()

    album = await album_of(house, row)
    assert (album["kind"], album["title"], album["text"]) == ("album", "Summer", "From the lake.")
    assert [(item["filename"], item["photo"]) for item in album["attachments"]] == [
        (name, "rendered") for name, _ in photos
    ]
    assert [ticket.id for ticket in tickets] == [item["id"] for item in album["attachments"]]
    for item, (_, original) in zip(album["attachments"], photos, strict=True):
        assert await house.blobs.get("sha256:" + item["sha256"]) == original
        assert [(made["kind"], made["width"], made["height"]) for made in item["renditions"]] == [
            ("thumb", 320, 240),
            ("web", 640, 480),
        ]
        for made in item["renditions"]:
            assert pictures.corners_of(await house.blobs.get("sha256:" + made["sha256"]))[1] == CORNERS
    assert [line["step"] for line in album["timeline"]] == ["created", *["photo_rendered"] * 3]


async def test_a_mail_of_25_mb_with_8_photos_comes_out_whole_and_in_order(house: House) -> None:
    sizes = [(890 + i, 890) for i in range(8)]
    photos = [(f"{i}.png", encoded(upright(size), "PNG", compress_level=0)) for i, size in enumerate(sizes)]
    octets = photo_mail(*photos)
    assert len(octets) > 25_000_000
    row = await taken_in(house, octets)
    assert (row["disposition"], row["reason"], row["size"]) == ("delivered", "", len(octets))
    render = await renderer(house)
    for ticket in await photo_tickets(house):
        await render.handle(ticket)
    album = await album_of(house, row)
    assert album["title"] == "8 photos from Ann"
    assert [(item["filename"], item["size"]) for item in album["attachments"]] == [
        (name, len(content)) for name, content in photos
    ]
    assert [
        (made["width"], made["height"]) for item in album["attachments"] for made in item["renditions"][1:]
    ] == sizes


async def test_100_photos_of_250_kb_in_one_mail_are_all_there_in_order(house: House) -> None:
    padding = encoded(upright((200, 150)), "JPEG") + bytes(246_000)
    photos = [(f"{i:03}.jpg", padding + i.to_bytes(2)) for i in range(100)]
    row = await taken_in(house, photo_mail(*photos))
    album = await album_of(house, row)
    assert (row["disposition"], row["reason"], album["title"]) == ("delivered", "", "100 photos from Ann")
    assert [(item["position"], item["filename"]) for item in album["attachments"]] == [
        (i, name) for i, (name, _) in enumerate(photos)
    ]
    tickets = await photo_tickets(house)
    assert [ticket.id for ticket in tickets] == [item["id"] for item in album["attachments"]]


async def test_photos_that_cannot_be_taken_are_refused_with_their_reason_and_the_rest_is_stored(house: House) -> None:
    good = encoded(upright(), "JPEG")
    photos = [
        ("a.jpg", good),
        ("cut.jpg", good[:-300]),
        ("big.png", pictures.png_of(20_000, 10_000)),
        ("no.jpg", b"words"),
    ]
    row = await taken_in(house, photo_mail(*photos, ("b.bmp", encoded(upright((9, 9)), "BMP")), text="Hello"))
    assert (row["disposition"], row["reason"]) == ("delivered", "partial")
    album = await album_of(house, row)
    assert [(item["photo"], item["refusal"]) for item in album["attachments"]] == [
        ("waiting", ""),
        ("refused", "is cut off: the JPEG file does not reach its end"),
        ("refused", "has 20000 x 10000 pixels, at most 100 million are taken"),
        ("", ""),
        ("refused", "is none of JPEG, PNG, WebP, GIF, HEIC and AVIF"),
    ]
    assert len(await photo_tickets(house)) == 1


async def test_a_photo_damaged_inside_is_marked_when_it_is_rendered(house: House) -> None:
    whole = encoded(upright(), "PNG")
    middle = whole.index(b"IDAT") + 40
    row = await taken_in(house, photo_mail(("a.png", whole[:middle] + b"damaged!" + whole[middle + 8 :])))
    assert row["reason"] == ""
    render = await renderer(house)
    for ticket in await photo_tickets(house):
        await render.handle(ticket)
        await render.handle(ticket)
    album = await album_of(house, row)
    assert album["attachments"][0]["photo"] == "refused"
    assert "cannot be decoded" in album["attachments"][0]["refusal"]
    assert [line["step"] for line in album["timeline"]] == ["created", "photo_refused"]


async def test_a_photo_over_its_budget_is_refused_and_the_next_is_rendered(house: House) -> None:
    row = await taken_in(
        house, photo_mail(("bomb.png", pictures.png_of(9000, 9000)), ("a.jpg", encoded(upright(), "JPEG")))
    )
    render = await renderer(house, memory_bytes=64 * 1024 * 1024)
    for ticket in await photo_tickets(house):
        await render.handle(ticket)
    photos = (await album_of(house, row))["attachments"]
    assert [item["photo"] for item in photos] == ["refused", "rendered"]
    assert "costs too much to decode (memory" in photos[0]["refusal"]


async def test_a_busy_machine_is_not_blamed_on_the_photo(house: House) -> None:
    row = await taken_in(house, photo_mail(("a.jpg", encoded(upright(), "JPEG"))))
    render = await renderer(house)

    class Busy:
        async def run(self, *_: Any, **__: Any) -> Any:
            raise OverBudget("wall", "more than 120 s")

    render._cage = Busy()  # type: ignore[assignment]
    (ticket,) = await photo_tickets(house)
    with pytest.raises(Exception, match="wall"):
        await render.handle(ticket)
    assert (await album_of(house, row))["attachments"][0]["photo"] == "waiting"


async def test_an_original_that_is_gone_makes_a_dead_letter_with_its_reason(house: House) -> None:
    await taken_in(house, photo_mail(("a.jpg", encoded(upright(), "JPEG"))))
    for path in (house.folder / "blobs").glob("??/*"):
        path.unlink()
    render = await renderer(house)
    (ticket,) = await photo_tickets(house)
    with pytest.raises(PermanentFailure, match="is not in the store"):
        await render.handle(ticket)
    assert await render.handle(photo_ticket("unknown")) == Done()


async def test_while_the_blob_store_is_not_there_a_photo_waits(house: House) -> None:
    row = await taken_in(house, photo_mail(("a.jpg", encoded(upright(), "JPEG"))))
    render = await renderer(house)
    (ticket,) = await photo_tickets(house)
    (house.folder / "blobs").rename(house.folder / "elsewhere")
    (house.folder / "blobs").mkdir()
    with pytest.raises(StoreUnavailable, match="the store is not there"):
        await render.handle(ticket)
    (house.folder / "blobs").rmdir()
    (house.folder / "elsewhere").rename(house.folder / "blobs")
    assert await render.handle(ticket) == Done()
    assert (await album_of(house, row))["attachments"][0]["photo"] == "rendered"


async def test_a_mail_that_died_before_its_photos_were_published_publishes_them_when_it_comes_again(
    house: House,
) -> None:
    album_house(house)
    ingest = await house.open_ingest()
    await house.intake().accept(envelope(ADDRESS), photo_mail(("a.jpg", encoded(upright(), "JPEG"))))
    (ticket,) = await house.tickets()

    async def down(tickets: Any) -> None:
        raise OSError("the process died here")

    kept, ingest._publish = ingest._publish, down
    with pytest.raises(OSError):
        await ingest.handle(ticket)
    assert await photo_tickets(house) == []
    ingest._publish = kept
    assert await ingest.handle(ticket) == Done()
    assert len(await photo_tickets(house)) == 1
    assert house.mails is not None
    assert len(await house.lists.newest("posts")) == 1


CHILD = """
import asyncio, sys
from pathlib import Path
from io import StringIO
from gateway.cage import Cage
from gateway.inbound.photos import RenderPhoto, photo_ticket
from gateway.maillog import MailLog
from gateway.runtime import utc_now
from gateway.store.blobs import FileBlobStore
from gateway.store.database import open_database
from gateway.store.photos import Photos

async def main(folder, attachment, url):
    database = await open_database(url)
    async with Cage(children=1, memory_bytes=768 * 2**20, cpu_seconds=5) as cage:
        photos = Photos(database, clock=utc_now, hostname="mx.localhost")
        log = MailLog(stream=StringIO())
        render = RenderPhoto(photos=photos, blobs=FileBlobStore(Path(folder) / "blobs"), cage=cage, log=log)
        await render.handle(photo_ticket(attachment))
    await database.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "place",
    [
        "photos.kept",
        "store.photo_rendered.after",
        pytest.param("photos.rendered", marks=pytest.mark.long),
        pytest.param("blobs.after_rename", marks=pytest.mark.long),
        pytest.param("store.photo_rendered.before", marks=pytest.mark.long),
    ],
)
async def test_killed_here_and_run_again_the_renditions_are_there_once(
    house: House, tmp_path: Path, place: str
) -> None:
    row = await taken_in(house, photo_mail(("a.jpg", encoded(upright(), "JPEG"))))
    (ticket,) = await photo_tickets(house)

    async def child(failpoint: str = "") -> int:
        environment = os.environ | ({"GATEWAY_FAILPOINT": failpoint} if failpoint else {})
        command = [sys.executable, "-c", CHILD, str(tmp_path), ticket.id, house.store_url]
        process = await asyncio.create_subprocess_exec(*command, env=environment)
        async with asyncio.timeout(30):
            return await process.wait()

    assert await child(place) == -9
    assert await child() == 0
    album = await album_of(house, row)
    (photo,) = album["attachments"]
    assert photo["photo"] == "rendered"
    assert [made["kind"] for made in photo["renditions"]] == ["thumb", "web"]
    assert [line["step"] for line in album["timeline"]] == ["created", "photo_rendered"]
    for made in photo["renditions"]:
        assert await house.blobs.exists("sha256:" + made["sha256"])


async def test_captions_come_from_descriptions_lines_and_names_that_somebody_chose(house: House) -> None:
    message = mail("Trip", "Hello!\n1. At the harbour\n2) The old town\nsunset.jpg: Last evening\n")
    picture = encoded(upright((40, 30)), "JPEG")
    for filename in ("IMG_0001.jpg", "DSC00002.JPG", "sunset.jpg", "Grandma's_birthday.jpg", "image0.jpeg"):
        message.add_attachment(picture, maintype="image", subtype="jpeg", filename=filename)
    parts = list(message.iter_attachments())
    parts[4]["Content-Description"] = "=?utf-8?q?Sch=C3=B6nes_Ende?="
    parts[3]["Content-Description"] = "Grandma's_birthday.jpg"
    row = await taken_in(house, octets_of(message))
    album = await album_of(house, row)
    assert [item["caption"] for item in album["attachments"]] == [
        "At the harbour",
        "The old town",
        "Last evening",
        "Grandma's birthday",
        "Schönes Ende",
    ]


async def test_an_album_survives_the_next_opening(house: House) -> None:
    row = await taken_in(house, photo_mail(("a.jpg", encoded(upright(), "JPEG"))))
    database = await open_database(house.store_url)
    house.stack.push_async_callback(database.close)
    (line,) = await Lists(database).newest("posts")
    assert {"id", "mailbox", "author", "title", "created_at", "attachments"} <= set(line)
    assert (line["id"], line["mailbox"], line["attachments"]) == (row["post_id"], "photos", 1)
