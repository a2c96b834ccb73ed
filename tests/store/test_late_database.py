"""A store that is away at the start: every use says so and why, and it works by itself once it is back."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.errors import SettingsError, StoreUnavailable
from gateway.store.database import Database, open_as_it_is, open_database
from gateway.store.late import LateDatabase

COUNT = sa.text("SELECT count(*) FROM meta WHERE key = 'epoch'")


@asynccontextmanager
async def late(url: str, known: str = "var/ledger.mark") -> AsyncIterator[tuple[LateDatabase, StoreUnavailable | None]]:
    database = LateDatabase(partial(open_database, url, known=known), retry_seconds=0.01)
    try:
        yield database, await database.open()
    finally:
        await database.close()


async def count(database: Database) -> int:
    return await database.read(lambda connection: connection.execute(COUNT).scalar_one())


async def until_back(database: Database) -> int:
    async with asyncio.timeout(60):
        while True:
            try:
                return await count(database)
            except StoreUnavailable:
                await asyncio.sleep(0.01)  # polling: it comes back by itself


async def test_it_is_used_like_any_other_where_it_is_there(tmp_path: Path) -> None:
    async with late(f"sqlite:///{tmp_path}/store.db", known="") as (database, fault):
        assert fault is None
        assert await count(database) == 1
        async with database.bell() as bell:
            await database.write(lambda connection: None)
            assert await bell.wait(10)


async def test_away_it_says_why_and_makes_nothing_and_back_it_works(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await (await open_database(f"sqlite:///{path}")).close()
    shutil.move(path, tmp_path / "away.db")
    async with late(f"sqlite:///{path}") as (database, fault):
        assert "its file is gone" in str(fault)
        for use in (database.read, database.write):
            with pytest.raises(StoreUnavailable, match="put it back, or remove var/ledger"):
                await use(lambda connection: None)
        with pytest.raises(StoreUnavailable):
            database.clock()
        with pytest.raises(StoreUnavailable):
            async with database.bell():
                pass
        assert not path.exists()
        shutil.move(tmp_path / "away.db", path)
        assert await until_back(database) == 1


async def test_another_file_in_its_place_is_told_and_waited_out(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await (await open_database(f"sqlite:///{path}")).close()
    shutil.move(path, tmp_path / "away.db")
    async with late(f"sqlite:///{path}") as (database, _):
        foreign = sqlite3.connect(tmp_path / "foreign.db")
        foreign.execute("CREATE TABLE cats (name TEXT)")
        foreign.close()
        shutil.move(tmp_path / "foreign.db", path)
        async with asyncio.timeout(60):
            said = ""
            while "tables that are not the gateway's" not in said:
                with pytest.raises(StoreUnavailable) as caught:
                    await count(database)
                said = str(caught.value)
                await asyncio.sleep(0.01)  # polling, as above
        path.unlink()
        shutil.move(tmp_path / "away.db", path)
        assert await until_back(database) == 1


async def test_at_the_start_a_foreign_file_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    foreign = sqlite3.connect(tmp_path / "store.db")
    foreign.execute("CREATE TABLE cats (name TEXT)")
    foreign.close()
    with pytest.raises(SettingsError, match="not the gateway's"):
        async with late(f"sqlite:///{tmp_path}/store.db"):
            pass


async def test_what_opens_it_is_through_before_anybody_uses_it(tmp_path: Path) -> None:
    url, is_held = f"sqlite:///{tmp_path}/store.db", asyncio.Event()

    async def open_and_wait() -> Database:
        if not is_held.is_set():
            is_held.set()
            raise StoreUnavailable("held what it could, the rest is away")
        return await open_database(url)

    database = LateDatabase(open_and_wait, retry_seconds=0.01)
    assert str(await database.open()) == "held what it could, the rest is away"
    with pytest.raises(StoreUnavailable, match="the rest is away"):
        await count(database)
    assert await until_back(database) == 1
    await database.close()


async def test_an_empty_database_is_no_home_for_a_known_ledger_on_any_engine(bare_database_url: str) -> None:
    bare = await open_as_it_is(bare_database_url)
    await bare.close()
    with pytest.raises(StoreUnavailable, match="put it back, or remove var/ledger"):
        await open_database(bare_database_url, known="var/ledger.mark")
    bare = await open_as_it_is(bare_database_url)
    try:
        assert await bare.read(lambda connection: sa.inspect(connection).get_table_names()) == []
    finally:
        await bare.close()
