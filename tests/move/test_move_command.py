"""What `gateway move` understands, what it refuses, and what `run` says of a house that new URLs would leave behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway import commands
from gateway.app.in_use import at_work, emptied
from gateway.app.making import blob_mark
from gateway.app.moving import refuse_to_strand, what_is_left, what_moves
from gateway.errors import PermanentFailure, SettingsError, StoreUnavailable, TransientFailure
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import EMAIL_SEND, Ticket
from gateway.settings import Settings
from gateway.store import moving
from gateway.store.blobs import FileBlobStore, digest_of
from gateway.store.database import open_database
from gateway.store.schema import meta

AMQP, SERVER, BUCKET = "amqp://u:s3cret@rabbit/mail", "postgresql://u:s3cret@db/mail", "s3://bucket/blobs"


def no_word(*_: object) -> None:
    """Nobody listens."""


def grown(folder: Path, **urls: str) -> Settings:
    return Settings(data_dir=folder, **urls).filled()


def gateway(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    command = [sys.executable, "-m", "gateway.cli", *words]
    given = {"GATEWAY_DATA_DIR": str(folder), "GATEWAY_RELAY_URLS": "capture:"} | env
    return subprocess.run(command, cwd=folder.parent, env=kept | given, capture_output=True, text=True, timeout=120)


@pytest.fixture
async def house(tmp_path: Path) -> Path:
    """A data_dir with one ticket, an empty ledger and two blobs."""
    folder = tmp_path / "var"
    folder.mkdir()
    async with SqliteBroker(folder / "queue.db") as broker:
        await broker.publish([Ticket(queue=EMAIL_SEND, id="1", body=b"{}")])
    await (await open_database(f"sqlite:///{folder}/store.db")).close()
    blobs = FileBlobStore(folder / "blobs")
    for octets in (b"one", b"two"):
        await blobs.put(octets)
    return folder


async def test_run_names_what_new_urls_leave_behind_and_the_cure(house: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        await refuse_to_strand(grown(house, queue_url=AMQP, database_url=SERVER, blobs_url=BUCKET))
    told = [str(problem) for problem in refused.value.problems]
    assert [text.partition(":")[0] for text in told] == ["database_url", "blobs_url", "queue_url"]
    assert "store.db holds a ledger (0 mails, 0 emails, 0 posts)" in told[0]
    assert "queue.db still holds 1 tickets (1 email.send)" in told[2]
    assert all("stop the gateway everywhere and run `gateway move`" in text for text in told)
    await refuse_to_strand(grown(house))


async def test_the_doctor_says_so_too(house: Path, tmp_path: Path) -> None:
    findings = await commands.doctor(grown(house, blobs_url=f"file://{tmp_path}/new"))
    [found] = [item for item in findings if item.what == "blobs_url"]
    assert (found.level, "holds blobs" in found.finding, found.next_step) == ("wrong", True, "gateway move")


@pytest.mark.parametrize(
    ("word", "says"), [(moving.MOVED, "its ledger has moved to there"), (moving.MOVING, "is being moved into it")]
)
async def test_the_doctor_knows_a_ledger_that_moved(house: Path, word: str, says: str) -> None:
    database = await open_database(f"sqlite:///{house}/store.db")
    await database.write(
        lambda connection: connection.execute(sa.insert(meta), {"key": word, "value": "there"}).rowcount
    )
    await database.close()
    [found] = [item for item in await commands.doctor(grown(house)) if item.what == "store"]
    assert (found.level, says in found.finding) == ("wrong", True)


async def test_another_file_is_not_moved_but_renamed(house: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"set it back, or: .* `mv .*queue.db .*other.db` does it"):
        await refuse_to_strand(grown(house, queue_url=f"sqlite:///{tmp_path}/other.db"))


async def test_without_urls_everything_goes_the_ledger_first_and_the_queue_last(house: Path) -> None:
    moves = await what_is_left(grown(house, queue_url=AMQP, database_url=SERVER, blobs_url=BUCKET))
    assert [(move.kind, move.target) for move in moves] == [("ledger", SERVER), ("blobs", BUCKET), ("queue", AMQP)]
    assert await what_is_left(grown(house)) == []


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("sqlite:///{}/queue.db", SERVER, "are places of different things: ledger and queue"),
        ("sqlite:///{}/store.db", "sqlite:///{}/new.db", "while nothing runs `mv "),
        ("sqlite:///{}/no.db", "sqlite:///{}/new.db", "one of the two must tell what moves"),
        (AMQP, "sqlite:///{}/queue.db", "let them finish there"),
        (SERVER, SERVER, "pg_dump"),
        ("redis://somewhere", AMQP, "'redis://somewhere' is no place"),
    ],
)
async def test_what_cannot_move_is_said_without_secrets(house: Path, source: str, target: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        await what_moves(source.format(house), target.format(house))
    assert "s3cret" not in str(refused.value)


async def test_the_way_back_of_a_ledger_is_a_move_too(house: Path) -> None:
    assert (await what_moves(SERVER, f"sqlite:///{house}/new.db")).kind == "ledger"
    assert (await what_moves("database:", f"file://{house}/blobs")).kind == "blobs"


async def test_a_source_that_is_not_there_is_not_made(house: Path) -> None:
    move = await what_moves(f"sqlite:///{house}/no.db", SERVER)
    with pytest.raises(PermanentFailure, match="is not there"):
        await move.run(grown(house), no_word)
    assert not (house / "no.db").exists()


def test_a_gateway_and_a_move_keep_out_of_each_others_house(tmp_path: Path) -> None:
    with (
        at_work(tmp_path),
        at_work(tmp_path),
        pytest.raises(TransientFailure, match="a gateway, or another move, is running in"),
        emptied(tmp_path),
    ):
        """Never reached."""
    with emptied(tmp_path), pytest.raises(TransientFailure, match="`gateway move` is at work in"), at_work(tmp_path):
        """Never reached."""


def test_run_and_move_say_it_in_one_line(tmp_path: Path) -> None:
    with at_work(tmp_path):
        refused = gateway(tmp_path, "move", "--from", f"sqlite:///{tmp_path}/q.db", "--to", AMQP)
    with emptied(tmp_path):
        also = gateway(tmp_path, "run", "web", GATEWAY_WEB_LISTEN="127.0.0.1:0")
    assert (refused.returncode, also.returncode) == (75, 75)
    assert (
        refused.stderr
        == f"gateway: a gateway, or another move, is running in {tmp_path}: stop it first; try again later\n"
    )
    assert "`gateway move` is at work in" in also.stderr.splitlines()[-1]


async def test_blobs_are_copied_counted_and_then_left_in_peace(house: Path, tmp_path: Path) -> None:
    settings = grown(house, blobs_url=f"file://{tmp_path}/new")
    [move] = await what_is_left(settings)
    kept = FileBlobStore(tmp_path / "new")
    await kept.put(b"one")
    [part] = await move.run(settings, no_word)
    assert (part.found, part.carried, part.already, part.is_whole) == (2, 1, 1, True)
    assert [await kept.get(await kept.put(octets)) for octets in (b"one", b"two")] == [b"one", b"two"]
    assert await what_is_left(settings) == []


async def test_blobs_that_are_not_mounted_are_neither_left_behind_nor_moved(house: Path, tmp_path: Path) -> None:
    settings = grown(house, blobs_url=f"file://{tmp_path}/new")
    blob_mark(settings).note(f"file://{house}/blobs")
    (house / "blobs").rename(tmp_path / "elsewhere")
    (house / "blobs").mkdir()
    with pytest.raises(SettingsError, match="blobs_url"):
        await refuse_to_strand(settings)
    [move] = await what_is_left(settings)
    with pytest.raises(PermanentFailure, match="is it mounted"):
        await move.run(settings, no_word)
    (house / "blobs").rmdir()
    (tmp_path / "elsewhere").rename(house / "blobs")
    [part] = await move.run(settings, no_word)
    assert (part.found, part.is_whole) == (2, True)
    shutil.rmtree(house / "blobs")
    assert await what_is_left(settings) == [], "who moved may delete the old ones before the next start"


async def test_a_damaged_blob_is_named_and_the_others_go_on(house: Path, tmp_path: Path) -> None:
    [rotten, *_] = sorted((house / "blobs").glob("[0-9a-f][0-9a-f]/*"))
    rotten.write_bytes(b"rot")
    settings = grown(house, blobs_url=f"file://{tmp_path}/new")
    [move] = await what_is_left(settings)
    [part] = await move.run(settings, no_word)
    assert (part.found, part.carried, part.is_whole) == (2, 1, False)
    assert rotten.name in part.lacking[0]
    assert await what_is_left(settings), "it is not done with"


async def test_blobs_put_after_the_house_came_back_are_not_left_behind(house: Path, tmp_path: Path) -> None:
    settings = grown(house, blobs_url=f"file://{tmp_path}/new")
    [move] = await what_is_left(settings)
    await move.run(settings, no_word)
    assert await what_is_left(settings) == []
    await FileBlobStore(house / "blobs").put(b"three: the settings were set back for a while")
    [move] = await what_is_left(settings)
    [part] = await move.run(settings, no_word)
    assert (part.found, part.carried, part.already) == (3, 1, 2)
    assert await what_is_left(settings) == []


async def test_a_place_that_cannot_be_reached_is_told_before_anything_is_carried(
    house: Path, bare_postgres_url: str
) -> None:
    """Otherwise a wrong password of the last place would find the ledger closed in the old one."""
    nobody = "amqp://u:wrong@127.0.0.1:1/mail"
    urls = {"GATEWAY_DATABASE_URL": bare_postgres_url, "GATEWAY_QUEUE_URL": nobody}
    refused = await asyncio.to_thread(gateway, house, "move", **urls)
    assert (refused.returncode, refused.stdout.strip()) == (75, "")
    assert "RabbitMQ cannot be reached" in refused.stderr
    await (await open_database(f"sqlite:///{house}/store.db")).close()


async def test_a_bucket_that_is_not_there_is_told_before_anything_is_carried(house: Path, bucket_url: str) -> None:
    [move] = await what_is_left(grown(house, blobs_url=bucket_url.replace("s3://", "s3://no")))
    with pytest.raises(StoreUnavailable, match="there is no bucket"):
        await move.look(grown(house))


async def test_blobs_go_to_a_bucket_and_back(house: Path, bucket_url: str, tmp_path: Path) -> None:
    settings = grown(house, blobs_url=bucket_url)
    [move] = await what_is_left(settings)
    await move.look(settings)
    [part] = await move.run(settings, no_word)
    assert (part.found, part.carried, part.is_whole) == (2, 2, True)
    assert await what_is_left(settings) == []
    back = await what_moves(bucket_url, f"file://{tmp_path}/back")
    [part] = await back.run(settings, no_word)
    assert (part.found, part.carried, part.is_whole) == (2, 2, True)
    assert await FileBlobStore(tmp_path / "back").get(digest_of(b"two")) == b"two"
