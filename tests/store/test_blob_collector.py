"""The collector: takes what is forgotten, never what a row names, whatever table that row is in."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.contract.email_send import Attachment, SendEmail
from gateway.errors import StoreUnavailable
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.runtime import utc_now
from gateway.store import schema
from gateway.store.blob_collector import NAMING_COLUMNS, Collector, named_of
from gateway.store.blobs import FileBlobStore, digest_of
from gateway.store.database import Database
from gateway.store.emails import DatabaseLedger
from gateway.store.mails import Mails
from gateway.store.photos import NewRendition, Photos
from gateway.store.posts import NewAttachment, NewPost

LARGE = os.urandom(300 * 1024)
# Columns of digests that name no blob by themselves: the octets' own name, and the names of what is kept in the table.
NAMES_NO_BLOB = {("mails", "sha256"), ("blobs", "digest"), ("mails", "content_key"), ("posts", "content_hash")}
NAMES_NO_BLOB |= {("emails", "content_hash"), ("rejections", "fingerprint")}
NAMES_NO_BLOB |= {("users", "password_hash"), ("api_keys", "secret_hash"), ("sessions", "token_hash")}


@pytest.fixture
def collector(database: Database, blobs: FileBlobStore) -> Collector:
    return Collector(database, blobs, clock=utc_now)


def age(blobs: FileBlobStore, folder: Path, *, days: float = 31) -> None:
    then = time.time() - days * 86400
    for path in folder.glob("blobs/??/*"):
        os.utime(path, (then, then))


def test_every_column_that_names_a_digest_is_asked() -> None:
    words = ("blob", "sha256", "digest", "hash", "fingerprint", "content_key")
    found = {
        (table.name, column.name)
        for table in schema.metadata.sorted_tables
        for column in table.columns
        if any(word in column.name for word in words)
    }
    asked = {(column.table.name, column.name) for column in NAMING_COLUMNS}
    assert found - NAMES_NO_BLOB == asked


def post(*attachments: NewAttachment) -> NewPost:
    now = datetime.now(UTC)
    facts = dict.fromkeys(("author", "author_address", "title", "text"), "")
    return NewPost(mailbox="a@localhost", kind="posts", html=None, created_at=now, attachments=attachments, **facts)


async def fill(database: Database, blobs: FileBlobStore) -> dict[str, str]:
    """Lets the verbs name a blob in every way there is; returns the digests by the way."""
    facts = {"clock": utc_now, "hostname": "mx.test"}
    ledger, mails = DatabaseLedger(database, blobs, **facts), Mails(database, blobs, **facts)
    photos = Photos(database, **facts)
    attached, rendered, shown, small = [await blobs.put(b"%d" % number + LARGE) for number in range(4)]
    arrived = Envelope(mail_id=new_id(), mail_from="", rcpt_to=("a@localhost",), received_at=utc_now(), door="smtp")
    await mails.record_received(arrived, LARGE, len(LARGE), hashlib.sha256(LARGE).hexdigest())
    item = NewAttachment(
        position=0,
        filename="",
        content_type="",
        sniffed="",
        size=1,
        sha256=shown.removeprefix("sha256:"),
        photo="waiting",
    )
    await mails.record_delivered(arrived.mail_id, "a@localhost", "a@localhost", post(item))
    [photo_id] = await mails.waiting_photos(arrived.mail_id)
    photo = await photos.waiting(photo_id)
    assert photo is not None
    made = NewRendition(kind="thumb", sha256=small.removeprefix("sha256:"), content_type="", size=1, width=1, height=1)
    await photos.record_rendered(photo, [made])
    email = SendEmail(
        id=new_id(),
        to=("a@example.org",),
        subject="s",
        text="t" * len(LARGE),
        attachments=(Attachment(filename="f", content_type="text/plain", blob=attached),),
    )
    await ledger.record_accepted(
        email, app="", content_hash="h", ticket_id="t", stream="normal", message_id="<1@mx.test>"
    )
    await ledger.record_rendered(email.id, b"1" + LARGE)
    assert rendered == digest_of(b"1" + LARGE)
    return {
        "octets of a mail": digest_of(LARGE),
        "a request": digest_of(email.to_json()),
        "what an email attaches": attached,
        "octets of an email": rendered,
        "an attachment of a post": shown,
        "a rendition": small,
    }


async def test_what_the_verbs_name_is_kept_and_what_nobody_names_is_taken(
    collector: Collector, database: Database, blobs: FileBlobStore, tmp_path: Path
) -> None:
    named = await fill(database, blobs)
    forgotten = [await blobs.put(b"forgotten %d" % number) for number in range(5)]
    age(blobs, tmp_path)
    young = await blobs.put(b"young")
    collected = await collector.collect(limit=100)
    assert (collected.old, collected.deleted) == (len(named) + 5, 5)
    assert {way: await blobs.exists(digest) for way, digest in named.items()} == dict.fromkeys(named, True)
    assert await blobs.exists(young)
    assert [await blobs.exists(digest) for digest in forgotten] == [False] * 5
    assert (await collector.collect(limit=100)).deleted == 0


async def test_each_naming_column_matters(collector: Collector, database: Database, blobs, tmp_path: Path) -> None:
    named = await fill(database, blobs)
    await collector.note_dead_tickets([("t", digest_of(b"dead"))])
    digests = [*named.values(), digest_of(b"dead")]
    assert await database.read(lambda connection: named_of(connection, digests)) == set(digests)
    for column in NAMING_COLUMNS:
        held = sa.select(sa.func.count()).where(column.is_not(None))
        assert await database.read(lambda connection, held=held: connection.execute(held).scalar_one()) > 0, column


async def test_what_a_dead_letter_carries_is_kept_while_it_is_seen(
    database: Database, blobs: FileBlobStore, tmp_path: Path
) -> None:
    now = utc_now()
    collector = Collector(database, blobs, clock=lambda: now)
    digest = await blobs.put(b"in a dead letter")
    await collector.note_dead_tickets([("ticket", digest)])
    age(blobs, tmp_path, days=400)
    assert (await collector.collect(limit=9)).deleted == 0
    now += timedelta(days=29)
    await collector.note_dead_tickets([("ticket", digest)])
    now += timedelta(days=29)
    await collector.note_dead_tickets([])
    assert (await collector.collect(limit=9)).deleted == 0
    now += timedelta(days=2)
    await collector.note_dead_tickets([])
    assert (await collector.collect(limit=9)).deleted == 1


async def test_a_round_takes_no_more_than_it_may(collector: Collector, blobs: FileBlobStore, tmp_path: Path) -> None:
    for number in range(7):
        await blobs.put(b"%d" % number)
    age(blobs, tmp_path)
    assert [(await collector.collect(limit=3)).deleted for _ in range(4)] == [3, 3, 1, 0]


async def test_a_put_and_a_row_that_come_after_the_look_keep_the_blob(
    database: Database, blobs: FileBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector(database, blobs, clock=utc_now)
    digest = await blobs.put(LARGE)
    age(blobs, tmp_path)
    nameless = collector._nameless
    mails = Mails(database, blobs, clock=utc_now, hostname="mx.test")
    arrived = Envelope(mail_id=new_id(), mail_from="", rcpt_to=("a@localhost",), received_at=utc_now(), door="smtp")

    async def look_then_receive(digests: list[str]) -> list[str]:
        found = await nameless(digests)
        await mails.record_received(arrived, LARGE, len(LARGE), "0")  # puts, then records
        return found

    monkeypatch.setattr(collector, "_nameless", look_then_receive)
    assert (await collector.collect(limit=9)).deleted == 0
    assert await blobs.exists(digest)
    assert await mails.octets(arrived.mail_id) == LARGE


async def test_a_store_that_is_away_deletes_nothing(
    collector: Collector, database: Database, blobs: FileBlobStore, tmp_path: Path
) -> None:
    digest = await blobs.put(b"x")
    age(blobs, tmp_path)
    await database.close()
    with pytest.raises(StoreUnavailable):
        await collector.collect(limit=9)
    assert await blobs.exists(digest)
