"""Every blob store keeps the same promises: files, a bucket (moto's server), rows of each database engine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.errors import SettingsError, StoreUnavailable
from gateway.store import schema
from gateway.store.blobs import BlobStore, FileBlobStore, digest_of
from gateway.store.blobs_database import DatabaseBlobStore
from gateway.store.blobs_s3 import S3BlobStore
from gateway.store.database import open_database

PNG = b"\x89PNG\r\n\x1a\n" * 1000
LARGE = os.urandom(6 * 1024 * 1024)  # more than one part of an S3 upload
DAYS = timedelta(days=1)


class Shelf:
    """A blob store, and a way to make what it holds older."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store

    async def age(self, digest: str, by: timedelta) -> None:
        raise NotImplementedError


class FileShelf(Shelf):
    def __init__(self, folder: Path) -> None:
        super().__init__(FileBlobStore(folder))
        self._folder = folder

    async def age(self, digest: str, by: timedelta) -> None:
        bare = digest.removeprefix("sha256:")
        then = time.time() - by.total_seconds()
        os.utime(self._folder / bare[:2] / bare, (then, then))


class DatabaseShelf(Shelf):
    def __init__(self, database: object) -> None:
        super().__init__(DatabaseBlobStore(database))
        self._database = database

    async def age(self, digest: str, by: timedelta) -> None:
        older = sa.update(schema.blobs).where(schema.blobs.c.digest == digest).values(put_at=datetime.now(UTC) - by)
        await self._database.write(lambda connection: connection.execute(older).rowcount)


class BucketShelf(Shelf):
    """moto's memory is in this process, so that an object's age can be set."""

    def __init__(self, store: S3BlobStore, bucket: str) -> None:
        super().__init__(store)
        self._bucket = bucket

    async def age(self, digest: str, by: timedelta) -> None:
        from moto.s3.models import s3_backends

        bare = digest.removeprefix("sha256:")
        for backend in (account["aws"] for account in s3_backends.values()):
            for name, bucket in backend.buckets.items():
                for key, item in bucket.keys.items():
                    if name == self._bucket and key.endswith(bare):
                        item.last_modified = datetime.now(UTC).replace(tzinfo=None) - by


@pytest.fixture(params=["files", "s3", "database on sqlite", "database on postgresql"])
def blobs_at(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A kind of store, and where it is."""
    wanted = {"s3": "bucket_url", "database on postgresql": "postgres_url"}.get(request.param)
    return request.param, request.getfixturevalue(wanted) if wanted else f"sqlite:///{tmp_path}/store.db"


@pytest.fixture
async def shelf(blobs_at: tuple[str, str], tmp_path: Path) -> AsyncIterator[Shelf]:
    kind, url = blobs_at
    if kind == "files":
        yield FileShelf(tmp_path / "deep" / "blobs")
    elif kind == "s3":
        yield BucketShelf(S3BlobStore(url), url.split("/")[2])
    else:
        database = await open_database(url)
        yield DatabaseShelf(database)
        await database.close()


async def old_ones(store: BlobStore, *, days: float) -> list[str]:
    before = datetime.now(UTC) - days * DAYS
    return sorted([digest async for batch in store.old(before=before) for digest in batch])


async def discard(store: BlobStore, digest: str, *, days: float = 30) -> bool:
    return await store.discard(digest, before=datetime.now(UTC) - days * DAYS)


@pytest.mark.parametrize("octets", [b"", b"x", PNG, LARGE])
async def test_what_was_put_is_got_under_its_digest(shelf: Shelf, octets: bytes) -> None:
    digest = await shelf.store.put(octets)
    assert digest == digest_of(octets)
    assert await shelf.store.get(digest) == octets
    assert await shelf.store.size(digest) == len(octets)
    assert await shelf.store.exists(digest)
    assert await shelf.store.is_there()


async def test_what_was_never_put_is_not_there(shelf: Shelf) -> None:
    await shelf.store.begin()
    assert await shelf.store.is_there()
    digest = digest_of(PNG)
    assert not await shelf.store.exists(digest)
    assert await shelf.store.size(digest) is None
    assert not await discard(shelf.store, digest)
    with pytest.raises(StoreUnavailable):
        await shelf.store.get(digest)


async def test_many_puts_of_the_same_octets_at_once_agree(shelf: Shelf) -> None:
    digests = await asyncio.gather(*(shelf.store.put(PNG) for _ in range(10)))
    assert set(digests) == {digest_of(PNG)}
    assert await shelf.store.get(digests[0]) == PNG


@pytest.mark.parametrize("name", ["sha256:../../etc/passwd", "../x", "sha256:" + "A" * 64, "sha256:", "", "md5:1"])
async def test_what_is_no_digest_names_nothing(shelf: Shelf, name: str) -> None:
    for look in (shelf.store.get, shelf.store.exists, shelf.store.size):
        with pytest.raises(ValueError, match="not a digest"):
            await look(name)


async def test_age_is_counted_from_the_last_put(shelf: Shelf) -> None:
    old, fresh, renewed = [await shelf.store.put(octets) for octets in (b"old", b"fresh", b"renewed")]
    await shelf.age(old, 31 * DAYS)
    await shelf.age(renewed, 31 * DAYS)
    await shelf.store.put(b"renewed")
    assert await old_ones(shelf.store, days=30) == [old]
    assert await old_ones(shelf.store, days=-1) == sorted([old, fresh, renewed])


async def test_what_is_not_old_is_never_discarded(shelf: Shelf) -> None:
    digest = await shelf.store.put(PNG)
    await shelf.age(digest, 29 * DAYS)
    assert not await discard(shelf.store, digest)
    assert await shelf.store.get(digest) == PNG
    assert await old_ones(shelf.store, days=30) == []


async def test_what_is_old_is_discarded_and_can_be_put_again(shelf: Shelf) -> None:
    digest = await shelf.store.put(PNG)
    await shelf.age(digest, 31 * DAYS)
    if not await discard(shelf.store, digest):  # a bucket sets aside first
        assert await shelf.store.get(digest) == PNG
        await shelf.age(digest, 31 * DAYS)
        assert await discard(shelf.store, digest)
    assert not await shelf.store.exists(digest)
    assert await old_ones(shelf.store, days=-1) == []
    assert await shelf.store.put(PNG) == digest
    assert await shelf.store.get(digest) == PNG


async def test_puts_and_discards_that_race_leave_what_was_put_last(shelf: Shelf) -> None:
    digest = await shelf.store.put(PNG)
    for _ in range(15):
        await shelf.age(digest, 31 * DAYS)
        await asyncio.gather(shelf.store.put(PNG), discard(shelf.store, digest), discard(shelf.store, digest))
        assert await shelf.store.get(digest) == PNG
        assert await shelf.store.exists(digest)


async def test_a_put_between_the_collectors_look_and_its_deletion_wins_in_a_bucket(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = BucketShelf(S3BlobStore(bucket_url), bucket_url.split("/")[2])
    digest = await shelf.store.put(PNG)
    await shelf.age(digest, 31 * DAYS)
    other, head, put = S3BlobStore(bucket_url), shelf.store._head, []

    async def look_then_put(key: str) -> object:
        found = await head(key)
        if not put:
            put.append(await other.put(PNG))
        return found

    monkeypatch.setattr(shelf.store, "_head", look_then_put)
    assert not await discard(shelf.store, digest)
    assert put == [digest]
    assert await other.get(digest) == PNG
    assert await other.size(digest) == len(PNG)
    assert await old_ones(other, days=30) == []


async def test_a_put_waits_while_the_collector_looks_and_deletes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = FileShelf(tmp_path / "blobs")
    digest = await shelf.store.put(PNG)
    await shelf.age(digest, 31 * DAYS)
    other, unlink, putting = FileBlobStore(tmp_path / "blobs"), Path.unlink, []
    loop = asyncio.get_running_loop()

    def put_before_unlink(path: Path) -> None:
        putting.append(asyncio.run_coroutine_threadsafe(other.put(PNG), loop))
        with pytest.raises(TimeoutError):
            putting[0].result(0.2)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", put_before_unlink)
    assert await discard(shelf.store, digest)
    assert await asyncio.wrap_future(putting[0]) == digest
    assert await other.get(digest) == PNG


async def test_damage_is_never_handed_out(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = await shelf.store.put(PNG)
    import gateway.store.blobs as blobs

    monkeypatch.setattr(blobs, "digest_of", lambda octets: "sha256:" + "0" * 64)
    with pytest.raises(StoreUnavailable, match="damaged"):
        await shelf.store.get(digest)


async def test_a_bucket_that_is_not_there_is_no_store(bucket_url: str) -> None:
    store = S3BlobStore(bucket_url.replace("s3://b", "s3://gone"))
    assert not await store.is_there()
    with pytest.raises(StoreUnavailable):
        await store.put(PNG)


async def test_a_bucket_that_does_not_answer_is_unavailable(bucket_url: str, s3_endpoint: str) -> None:
    store = S3BlobStore(bucket_url.replace(s3_endpoint, "http://127.0.0.1:1"))
    for asked in (store.put(PNG), store.get(digest_of(PNG)), store.exists(digest_of(PNG)), store.is_there()):
        with pytest.raises(StoreUnavailable):
            await asked


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///prefix", "s3://key:secret@bucket", "s3://bucket?acl=public", "http://b"]
)
def test_a_url_that_names_no_bucket_is_refused_in_words(url: str) -> None:
    with pytest.raises(SettingsError, match="blobs_url"):
        S3BlobStore(url)
