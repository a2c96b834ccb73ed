"""The captured folder is read whatever lies in it: the newest first, broken and strange files among them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gateway.outbound.capture import Capture
from gateway.outbound.captured import MAX_READ_BYTES, CapturedFolder
from gateway.outbound.letter import Letter
from gateway.runtime import utc_now

ID = "0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b1"


def name(second: int) -> str:
    return f"20260301T1200{second:02}000000-{ID}{second % 10}"


def put(folder: Path, second: int, octets: bytes, envelope: object = None) -> str:
    folder.mkdir(exist_ok=True)
    (folder / f"{name(second)}.eml").write_bytes(octets)
    if envelope is not None:
        (folder / f"{name(second)}.json").write_text(json.dumps(envelope))
    return name(second)


async def test_what_capture_wrote_is_listed_newest_first_and_read_back_exactly(tmp_path: Path) -> None:
    octets = b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nFrom: Shop <s@example.org>\r\n\r\nhello\r\n"
    capture = Capture(tmp_path, clock=utc_now)

    async def before_dot() -> None:
        return None

    for recipient in ("ann@example.org", "ben@example.org"):
        letter = Letter(mail_from="s@example.org", recipient=recipient, octets=octets, stream="normal")
        await capture.transact(letter, before_dot)
    folder = CapturedFolder(tmp_path)
    found, more = await folder.page(limit=10)
    assert [mail.recipient for mail in found] == ["ben@example.org", "ann@example.org"]
    assert (found[0].subject, found[0].from_, found[0].size, more) == (
        "Grüße",
        "Shop <s@example.org>",
        len(octets),
        None,
    )
    assert await folder.read(found[0].name) == octets


async def test_pages_go_on_behind_a_name_and_words_narrow_them(tmp_path: Path) -> None:
    for second in range(5):
        put(tmp_path, second, f"Subject: mail {second}\r\n\r\n".encode(), {"recipient": "a@b.org"})
    folder = CapturedFolder(tmp_path)
    first, more = await folder.page(limit=2)
    assert ([mail.subject for mail in first], more) == (["mail 4", "mail 3"], name(3))
    rest, end = await folder.page(limit=3, before=str(more))
    assert ([mail.subject for mail in rest], end) == (["mail 2", "mail 1", "mail 0"], None)
    only, _ = await folder.page(limit=2, matching="MAIL 1")
    assert [mail.subject for mail in only] == ["mail 1"]


async def test_broken_files_are_listed_with_what_is_wrong(tmp_path: Path) -> None:
    put(tmp_path, 1, b"")
    put(tmp_path, 2, b"\x00\xff" * 100_000, ["no", "object"])
    os.mkfifo(tmp_path / f"{name(3)}.eml")
    (tmp_path / f"{name(4)}.eml").symlink_to("/etc/passwd")
    (tmp_path / f"{name(5)}.eml").mkdir()
    (tmp_path / "notes.eml").write_bytes(b"Subject: not ours\r\n\r\n")
    found, _ = await CapturedFolder(tmp_path).page(limit=10)
    assert [mail.name for mail in found] == [name(second) for second in (5, 4, 3, 2, 1)]
    assert all(mail.fault for mail in found)
    for mail in found[:3]:
        assert await CapturedFolder(tmp_path).read(mail.name) is None


async def test_a_huge_file_is_listed_and_not_read(tmp_path: Path) -> None:
    huge = put(tmp_path, 1, b"Subject: huge\r\n\r\n", {})
    with (tmp_path / f"{huge}.eml").open("r+b") as file:
        file.truncate(MAX_READ_BYTES + 1)
    found = await CapturedFolder(tmp_path).find(huge)
    assert found is not None
    assert (found.subject, found.size) == ("huge", MAX_READ_BYTES + 1)
    assert await CapturedFolder(tmp_path).read(huge) is None


@pytest.mark.parametrize(
    "bad", ["../x", f"../{name(1)}", "/etc/passwd", "", "\x00", name(1) + "/..", "20260301T120000000000-x"]
)
async def test_a_name_that_capture_does_not_make_is_nothing(tmp_path: Path, bad: str) -> None:
    put(tmp_path / "captured", 1, b"Subject: x\r\n\r\n")
    folder = CapturedFolder(tmp_path / "captured")
    assert (await folder.find(bad), await folder.read(bad)) == (None, None)


async def test_no_folder_is_an_empty_one(tmp_path: Path) -> None:
    folder = CapturedFolder(tmp_path / "nowhere")
    assert await folder.page(limit=5) == ([], None)


async def test_a_search_looks_at_so_many_and_says_where_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.outbound.captured.SEARCHED_AT_ONCE", 3)
    wanted = put(tmp_path, 1, b"Subject: wanted\r\n\r\n")
    names = [put(tmp_path, second, b"Subject: other\r\n\r\n") for second in range(2, 6)]
    folder = CapturedFolder(tmp_path)
    assert await folder.page(limit=10, matching="wanted") == ([], names[1])
    found, more = await folder.page(limit=10, before=names[1], matching="wanted")
    assert ([mail.name for mail in found], more) == ([wanted], None)
