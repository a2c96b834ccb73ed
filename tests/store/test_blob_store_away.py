"""A blob store that is not there is told from one that lacks a blob, and an empty mount point never becomes a second store."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.errors import BlobDamaged, StoreUnavailable
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.runtime import utc_now
from gateway.store.blob_mark import BlobMark, begin_blobs
from gateway.store.blobs import FileBlobStore, digest_of, is_lacking, octets_of, open_blob_store
from gateway.store.blobs_database import DatabaseBlobStore
from gateway.store.blobs_s3 import S3BlobStore
from gateway.store.database import Database, open_database
from gateway.store.mails import Mails

PNG = b"\x89PNG\r\n\x1a\n" * 1000


@contextlib.contextmanager
def unmounted(folder: Path, *, leaves_folder: bool = True) -> Any:
    """The folder's place without what lay in it."""
    aside = folder.with_name("elsewhere")
    folder.rename(aside)
    if leaves_folder:
        folder.mkdir()
    try:
        yield
    finally:
        if leaves_folder:
            folder.rmdir()  # nothing may have been written here
        aside.rename(folder)


@pytest.mark.parametrize("leaves_folder", [True, False])
async def test_while_a_folder_is_not_mounted_nothing_is_lacking(tmp_path: Path, leaves_folder: bool) -> None:
    store = FileBlobStore(tmp_path / "blobs")
    digest, never_put = await store.put(PNG), digest_of(b"never put")
    assert await octets_of(store, never_put) is None
    assert await is_lacking(store, never_put)
    with unmounted(tmp_path / "blobs", leaves_folder=leaves_folder):
        assert not await store.is_there()
        for name in (digest, never_put):
            with pytest.raises(StoreUnavailable, match="the store is not there"):
                await octets_of(store, name)
            with pytest.raises(StoreUnavailable, match="the store is not there"):
                await is_lacking(store, name)
        assert not await store.discard(digest, before=datetime.now(UTC))
    assert await octets_of(store, digest) == PNG


async def test_while_a_bucket_is_gone_nothing_is_lacking(bucket_url: str, s3_endpoint: str) -> None:
    import boto3

    client, bucket = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1"), urlsplit(bucket_url).netloc
    store = S3BlobStore(bucket_url)
    await store.begin()
    assert await store.is_there()
    assert await octets_of(store, digest_of(PNG)) is None
    await asyncio.to_thread(client.delete_bucket, Bucket=bucket)
    assert not await store.is_there()
    with pytest.raises(StoreUnavailable, match="the store is not there"):
        await octets_of(store, digest_of(PNG))
    with pytest.raises(StoreUnavailable):
        await store.put(PNG)
    await asyncio.to_thread(client.create_bucket, Bucket=bucket)
    assert await octets_of(store, await store.put(PNG)) == PNG


async def test_while_the_database_is_away_nothing_is_lacking(tmp_path: Path) -> None:
    database = await open_database(f"sqlite:///{tmp_path}/store.db")
    store = DatabaseBlobStore(database)
    assert await octets_of(store, digest_of(PNG)) is None
    await database.close()
    (tmp_path / "store.db").rename(tmp_path / "elsewhere.db")
    with pytest.raises(StoreUnavailable):
        await octets_of(store, digest_of(PNG))


async def test_a_damaged_blob_is_not_lacking(tmp_path: Path) -> None:
    store = FileBlobStore(tmp_path)
    digest = await store.put(PNG)
    [path] = tmp_path.glob("??/*")
    path.write_bytes(b"x")
    with pytest.raises(BlobDamaged):
        await octets_of(store, digest)


async def test_a_store_that_was_begun_or_whose_last_blob_was_collected_is_there(tmp_path: Path) -> None:
    store = FileBlobStore(tmp_path / "blobs")
    assert not await store.is_there()
    await store.begin()
    assert await store.is_there()
    assert await store.discard(await store.put(PNG), before=datetime.now(UTC) + timedelta(days=1))
    assert await store.is_there()
    assert await octets_of(store, digest_of(PNG)) is None


async def test_blobs_copied_by_hand_are_a_store(tmp_path: Path) -> None:
    digest = await FileBlobStore(tmp_path / "first").put(PNG)
    path = Path(digest[7:9]) / digest[7:]
    (tmp_path / "second" / path.parent).mkdir(parents=True)
    (tmp_path / "second" / path).write_bytes(PNG)
    store = FileBlobStore(tmp_path / "second", was_begun=lambda: True)
    assert await octets_of(store, digest) == PNG
    assert await store.put(PNG) == digest
    assert await octets_of(store, digest_of(b"never put")) is None


class _House:
    """A ledger, a folder of blobs and the mark, as a gateway opens them at each start."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder, self.database = folder / "blobs", database
        self.url, self.mark = f"file://{self.folder}", BlobMark(folder / "blobs.mark")
        self.blobs = open_blob_store(self.url, database, was_begun=lambda: self.mark.knows(self.url))

    async def start(self) -> None:
        await begin_blobs(self.blobs, self.mark, url=self.url, database=self.database)

    async def record(self, blob: str) -> None:
        mails = Mails(self.database, self.blobs, clock=utc_now, hostname="mx.test")
        arrived = Envelope(
            mail_id=new_id(),
            mail_from="ann@example.org",
            rcpt_to=("posts@localhost",),
            received_at=utc_now(),
            door="smtp",
        )
        await mails.record_received(arrived, blob, len(PNG), blob[7:])


async def chunks() -> Any:
    yield PNG


async def test_where_a_store_was_begun_an_empty_folder_takes_no_put(tmp_path: Path, database: Database) -> None:
    house = _House(tmp_path, database)
    await house.start()
    digest = await house.blobs.put(PNG)
    with unmounted(house.folder):
        await house.start()
        with pytest.raises(StoreUnavailable, match="is it mounted"):
            await house.blobs.put(PNG)
        with pytest.raises(StoreUnavailable, match="is it mounted"):
            await house.blobs.put_stream(chunks())
    assert await house.blobs.put(PNG) == digest


async def test_a_new_house_begins_its_store_so_that_what_was_never_put_is_lacking(
    tmp_path: Path, database: Database
) -> None:
    house = _House(tmp_path, database)
    with pytest.raises(StoreUnavailable):
        await octets_of(house.blobs, digest_of(PNG))
    await house.start()
    assert await octets_of(house.blobs, digest_of(PNG)) is None
    assert house.mark.knows(house.url)
    assert not house.mark.knows("s3://another/one")


async def test_where_the_ledger_names_blobs_a_store_that_is_not_there_is_not_begun(
    tmp_path: Path, database: Database
) -> None:
    house = _House(tmp_path, database)
    digest = await house.blobs.put(PNG)
    await house.record(digest)
    with unmounted(house.folder):
        await house.start()
        assert not await house.blobs.is_there()
        assert not house.mark.knows(house.url)
    await house.start()
    assert house.mark.knows(house.url)


async def test_whoever_lost_the_store_for_good_deletes_the_mark_and_the_next_put_begins_anew(
    tmp_path: Path, database: Database
) -> None:
    house = _House(tmp_path, database)
    await house.start()
    house.folder.rename(tmp_path / "lost")
    (tmp_path / "blobs.mark").unlink()
    digest = await house.blobs.put(PNG)
    assert await octets_of(house.blobs, digest) == PNG
    await house.start()
    assert house.mark.knows(house.url)
