"""Blobs: what was put is what is got, durable under its own digest, and nothing else can be named."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.errors import StoreUnavailable
from gateway.store.blobs import FileBlobStore, digest_of

PNG = b"\x89PNG\r\n\x1a\n" * 1000


def _file(folder: Path, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return folder / name[:2] / name


async def test_what_was_put_is_got_under_its_digest(tmp_path: Path) -> None:
    store = FileBlobStore(tmp_path / "deep" / "blobs")
    digest = await store.put(PNG)
    assert digest == digest_of(PNG)
    assert await store.get(digest) == PNG
    assert await store.size(digest) == len(PNG)
    assert await store.exists(digest)
    assert not await store.exists(digest_of(b"never put"))
    assert os.listdir(tmp_path / "deep" / "blobs" / "tmp") == []


async def test_a_put_syncs_file_and_folders_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(number: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{number}"))
        fsync(number)

    monkeypatch.setattr(os, "fsync", watched)
    folder = tmp_path / "blobs"
    digest = await FileBlobStore(folder).put(PNG)
    home = str(_file(folder, digest).parent)
    assert synced[:2] == [str(tmp_path), str(folder)], "a new folder is in its parent first"
    assert any(name.startswith(str(folder / "tmp")) for name in synced)
    assert synced[-1] == home
    synced.clear()
    await FileBlobStore(folder).put(PNG)
    assert synced == [home], "another process may have renamed it a moment ago"


async def test_a_put_of_what_is_there_renews_its_age(tmp_path: Path) -> None:
    store = FileBlobStore(tmp_path)
    path = _file(tmp_path, await store.put(PNG))
    os.utime(path, (1, 1))
    await store.put(PNG)
    assert path.stat().st_mtime > 1_000_000


async def test_a_damaged_blob_is_never_handed_out_and_is_mended_by_a_put(tmp_path: Path) -> None:
    store = FileBlobStore(tmp_path)
    digest = await store.put(PNG)
    _file(tmp_path, digest).write_bytes(PNG[:-1])
    with pytest.raises(StoreUnavailable, match="damaged"):
        await store.get(digest)
    await store.put(PNG)
    assert await store.get(digest) == PNG


@pytest.mark.parametrize(
    "name", ["sha256:../../etc/passwd", "../x", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "", "md5:1"]
)
async def test_what_is_no_digest_names_nothing(tmp_path: Path, name: str) -> None:
    store = FileBlobStore(tmp_path)
    with pytest.raises(ValueError, match="not a digest"):
        await store.get(name)
    with pytest.raises(ValueError, match="not a digest"):
        await store.exists(name)


async def test_a_missing_blob_and_a_broken_disk_are_unavailability(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await FileBlobStore(tmp_path).get(digest_of(PNG))
    (tmp_path / "blobs").write_text("a file where the folder should be")
    with pytest.raises(StoreUnavailable):
        await FileBlobStore(tmp_path / "blobs").put(PNG)


async def test_what_a_killed_put_left_goes_with_what_is_old_and_a_put_at_work_stays(tmp_path: Path) -> None:
    store = FileBlobStore(tmp_path / "blobs")
    await store.put(PNG)
    unfinished = tmp_path / "blobs" / "tmp"
    for name in ("left", "at-work"):
        (unfinished / name).write_bytes(PNG)
    os.utime(unfinished / "left", (0, 0))
    assert [batch async for batch in store.old(before=datetime.now(UTC) - timedelta(days=30)) if batch] == []
    assert os.listdir(unfinished) == ["at-work"]


async def test_many_puts_of_the_same_octets_at_once_agree(tmp_path: Path) -> None:
    store = FileBlobStore(tmp_path)
    digests = await asyncio.gather(*(store.put(PNG) for _ in range(20)))
    assert set(digests) == {digest_of(PNG)}
    assert await store.get(digests[0]) == PNG


@pytest.mark.parametrize(("place", "is_kept"), [("blobs.before_rename", False), ("blobs.after_rename", True)])
async def test_a_kill_leaves_a_whole_blob_or_none(tmp_path: Path, run_child, place: str, is_kept: bool) -> None:
    assert await run_child("put", tmp_path, failpoint=place) == -9
    store = FileBlobStore(tmp_path)
    assert await store.exists(digest_of(b"octets")) is is_kept
    assert await store.get(await store.put(b"octets")) == b"octets"
