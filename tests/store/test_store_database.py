"""The seam to the database: one transaction each, no transaction control of SQLAlchemy's own, faults told soon."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.errors import SettingsError, StoreUnavailable
from gateway.store import schema
from gateway.store.database import Database, insert_absent, open_database

OWN_KEYS = ("epoch", "compatible_from")  # what the store itself keeps there


def put(key: str, value: str = "1"):
    return lambda connection: connection.execute(sa.insert(schema.meta), {"key": key, "value": value}).rowcount


def keys(connection: sa.Connection) -> set[str]:
    return set(connection.execute(sa.select(schema.meta.c.key).where(schema.meta.c.key.not_in(OWN_KEYS))).scalars())


async def test_what_is_written_is_read_back_here_and_elsewhere(database: Database, database_url: str) -> None:
    assert await database.write(put("a")) == 1
    assert await database.read(keys) == {"a"}
    other = await open_database(database_url)
    assert await other.read(keys) == {"a"}
    await other.close()


async def test_a_write_stands_in_the_sqlite_file(tmp_path: Path) -> None:
    database = await open_database(f"sqlite:///{tmp_path}/store.db")
    await database.write(put("a"))
    with sqlite3.connect(tmp_path / "store.db") as other:
        assert other.execute("SELECT value FROM meta WHERE key = 'a'").fetchone() == ("1",)
    await database.close()


async def test_work_that_raises_undoes_itself_and_not_its_neighbours(database: Database) -> None:
    def fails(connection: sa.Connection) -> None:
        put("bad")(connection)
        raise RuntimeError("on purpose")

    results = await asyncio.gather(
        database.write(put("a")), database.write(fails), database.write(put("b")), return_exceptions=True
    )
    assert results[0] == results[2] == 1
    assert str(results[1]) == "on purpose"
    assert await database.read(keys) == {"a", "b"}


async def test_a_violated_constraint_reaches_the_caller_and_the_next_write_works(database: Database) -> None:
    await database.write(put("a"))
    with pytest.raises(sa.exc.IntegrityError):
        await database.write(put("a"))
    await database.write(put("b"))
    assert await database.read(keys) == {"a", "b"}


async def test_a_mistake_in_a_statement_is_no_unavailability(database: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError):
        await database.write(lambda connection: connection.execute(sa.text("SELECT * FROM nowhere")).all())
    assert await database.write(put("a")) == 1


async def test_sqlalchemy_sends_the_sqlite_file_no_transaction_control_of_its_own(tmp_path: Path) -> None:
    database = await open_database(f"sqlite:///{tmp_path}/store.db")
    sent: list[str] = []

    def listen(connection: sa.Connection) -> None:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        raw.set_trace_callback(sent.append)

    await database.write(listen)
    sent.clear()
    await asyncio.gather(database.write(put("a")), database.write(put("b")))
    with pytest.raises(sa.exc.IntegrityError):
        await database.write(put("a"))
    control = {line.split()[0] for line in sent if line.split()[0] in {"BEGIN", "COMMIT", "ROLLBACK"}}
    assert sum(line.startswith("BEGIN") for line in sent) == sum(line == "COMMIT" for line in sent)
    assert control == {"BEGIN", "COMMIT", "ROLLBACK"}
    assert {line for line in sent if line.startswith(("BEGIN", "ROLLBACK"))} == {"BEGIN IMMEDIATE", "ROLLBACK TO offer"}
    await database.close()


async def test_foreign_keys_are_obeyed(database: Database) -> None:
    orphan = {"mail_id": "0", "octets": b""}
    with pytest.raises(sa.exc.IntegrityError):
        await database.write(lambda connection: connection.execute(sa.insert(schema.mail_octets), orphan))


async def test_insert_absent_counts_only_what_was_new(database: Database) -> None:
    rows = [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}]
    assert await database.write(lambda connection: insert_absent(connection, schema.meta, rows[0])) == 1
    assert await database.write(lambda connection: insert_absent(connection, schema.meta, *rows)) == 1


async def test_a_database_taken_away_is_unavailable_soon_and_used_again_when_back(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    database = await open_database(f"sqlite:///{home}/store.db")
    try:
        await database.write(put("before"))
        home.rename(away)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await database.write(put("lost"))
        with pytest.raises(StoreUnavailable):
            await database.read(keys)
        assert time.monotonic() - started < 2
        away.rename(home)
        await database.write(put("after"))
        assert await database.read(keys) == {"before", "after"}
    finally:
        await database.close()


async def test_the_bell_rings_after_a_commit_of_another_process_too(database: Database, database_url: str) -> None:
    other = await open_database(database_url)
    try:
        async with database.bell() as bell:
            await other.write(put("a"))
            assert await bell.wait(5)
            assert "a" in await database.read(keys)
    finally:
        await other.close()


@pytest.mark.parametrize("url", ["mysql://u:secret@h/db", "store.db", "sqlite:///", ""])
async def test_an_engine_this_version_lacks_is_refused_in_words(url: str) -> None:
    with pytest.raises(SettingsError, match=r"database_url: .*sqlite:///PATH") as refused:
        await open_database(url)
    assert "secret" not in str(refused.value)


async def test_a_read_writes_nothing(database: Database, database_url: str) -> None:
    other = await open_database(database_url)
    await database.write(put("a"))
    with pytest.raises(StoreUnavailable):
        await database.read(put("b"))
    assert await other.read(keys) == {"a"}
    await other.close()


async def test_a_folder_that_is_not_there_is_unavailability(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await open_database(f"sqlite:///{tmp_path}/missing/store.db")
