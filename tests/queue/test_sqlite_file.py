"""The shared SQLite file: groups, faults, bells, and a WAL that does not grow."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.errors import StorageFault
from gateway.sqlite_file import Connection, SqliteFile, _make_durable


def create(connection: Connection) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS notes (text TEXT UNIQUE)")


def insert(text: str):
    return lambda connection: connection.execute("INSERT INTO notes VALUES (?)", (text,)).lastrowid


def notes(connection: Connection) -> list[str]:
    return [text for (text,) in connection.execute("SELECT text FROM notes ORDER BY rowid")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notes.db"


@pytest.fixture
async def file(path: Path) -> AsyncIterator[SqliteFile]:
    async with SqliteFile(path, prepare=create) as file:
        yield file


def in_another_process(path: Path, program: str) -> subprocess.Popen[str]:
    text = f"""
import asyncio, os, signal, sys, time
from pathlib import Path
from gateway.sqlite_file import SqliteFile
async def main():
    async with SqliteFile(Path({str(path)!r})) as file:
{program}
asyncio.run(main())
"""
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


async def test_what_is_written_is_read_and_outlives_the_file(path: Path) -> None:
    async with SqliteFile(path, prepare=create) as file:
        await file.write(insert("a"))
        assert await file.read(notes) == ["a"]
    async with SqliteFile(path, prepare=create) as file:
        assert await file.read(notes) == ["a"]


async def test_writes_offered_together_share_commits(file: SqliteFile) -> None:
    commits = 0

    def count(connection: Connection) -> None:
        connection.set_trace_callback(lambda statement: note(statement))

    def note(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    await file.write(count)
    await asyncio.gather(*(file.write(insert(str(n))) for n in range(150)))
    assert len(await file.read(notes)) == 150
    assert commits < 20


async def test_one_works_exception_undoes_only_its_own(file: SqliteFile) -> None:
    def half_done(connection: Connection) -> None:
        insert("half")(connection)
        raise KeyError("mine")

    results = await asyncio.gather(
        file.write(insert("before")),
        file.write(half_done),
        file.write(insert("before")),
        file.write(insert("after")),
        return_exceptions=True,
    )
    assert isinstance(results[1], KeyError)
    assert isinstance(results[2], sqlite3.IntegrityError)
    assert await file.read(notes) == ["before", "after"]


async def test_a_write_nobody_waits_for_is_committed_by_itself(file: SqliteFile) -> None:
    future = file.write_soon(insert("soon"))
    await asyncio.wait_for(future, 1)
    assert await file.read(notes) == ["soon"]


async def test_closing_commits_what_was_offered(path: Path) -> None:
    async with SqliteFile(path, prepare=create) as file:
        future = file.write_soon(insert("last"))
    assert future.result() == 1
    async with SqliteFile(path) as file:
        assert await file.read(notes) == ["last"]


async def test_a_cancelled_offer_that_has_not_begun_is_withdrawn(file: SqliteFile) -> None:
    began, go_on = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        began.set()
        go_on.wait(5)

    holding = asyncio.create_task(file.write(hold))
    await asyncio.to_thread(began.wait, 5)
    waiting = asyncio.create_task(file.write(insert("withdrawn")))
    await asyncio.sleep(0)
    waiting.cancel()
    go_on.set()
    await holding
    await file.write(insert("kept"))
    assert await file.read(notes) == ["kept"]


async def test_readers_cannot_write(file: SqliteFile) -> None:
    with pytest.raises((StorageFault, sqlite3.OperationalError), match="readonly"):
        await file.read(insert("x"))


async def test_a_read_that_never_ends_is_ended(file: SqliteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sqlite_file.READ_SECONDS", 0.1)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(StorageFault, match="interrupted"):
        await file.read(lambda connection: connection.execute(endless).fetchone())
    assert await file.read(notes) == []


def test_less_than_durable_is_refused() -> None:
    connection = sqlite3.connect(":memory:")
    with pytest.raises(StorageFault, match="durable"):
        _make_durable(connection)
    connection.close()


async def test_commits_are_synchronous_and_checkpoints_ours_alone(file: SqliteFile) -> None:
    names = ("journal_mode", "synchronous", "wal_autocheckpoint")
    found = await file.write(lambda c: [c.execute(f"PRAGMA {name}").fetchone()[0] for name in names])
    assert found == ["wal", 2, 0]


async def test_a_full_disk_is_a_storage_fault_for_the_whole_batch_and_passes(file: SqliteFile) -> None:
    await file.write(lambda c: c.execute("PRAGMA max_page_count=8").fetchone())
    results = await asyncio.gather(
        file.write(insert("small")), file.write(insert("x" * 100_000)), return_exceptions=True
    )
    assert [type(result) for result in results] == [StorageFault, StorageFault]
    assert "full" in str(results[1])
    await file.write(insert("again"))  # the file was opened anew, without the limit
    assert await file.read(notes) == ["again"]


async def test_a_file_moved_away_is_a_storage_fault_until_it_comes_back(file: SqliteFile, path: Path) -> None:
    await file.write(insert("kept"))
    path.rename(path.with_suffix(".away"))
    for _ in range(2):
        with pytest.raises(StorageFault):
            await asyncio.wait_for(file.write(insert("lost")), 2)
        with pytest.raises(StorageFault):
            await asyncio.wait_for(file.read(notes), 2)
    assert not path.exists(), "a missing file is never made anew in silence"
    path.with_suffix(".away").rename(path)
    await file.write(insert("more"))
    assert await file.read(notes) == ["kept", "more"]


def exchange(path: Path, other: Path) -> None:
    """Puts another database into the place of one, with its WAL; the two are known by their suffixes."""
    aside = path.with_suffix(".aside")
    for suffix in ("", "-wal", "-shm"):
        names = [Path(f"{name}{suffix}") for name in (path, other, aside)]
        for source, target in ((0, 2), (1, 0), (2, 1)):
            if names[source].exists():
                names[source].rename(names[target])


async def test_a_damaged_file_is_a_storage_fault_until_it_is_mended(file: SqliteFile, path: Path) -> None:
    await file.write(insert("kept"))
    bad = path.with_suffix(".bad")
    bad.write_bytes(b"this is no database " * 1000)
    exchange(path, bad)
    for _ in range(2):
        with pytest.raises(StorageFault, match="not a database"):
            await asyncio.wait_for(file.write(insert("lost")), 2)
        with pytest.raises(StorageFault, match="not a database"):
            await asyncio.wait_for(file.read(notes), 2)
    exchange(path, bad)
    await file.write(insert("more"))
    assert await file.read(notes) == ["kept", "more"]


async def test_a_damaged_file_is_refused_at_the_start(path: Path) -> None:
    path.write_bytes(b"this is no database " * 1000)
    with pytest.raises(StorageFault, match="not a database"):
        await SqliteFile(path, prepare=create).open()


async def test_a_file_locked_by_a_stranger_is_a_storage_fault_and_passes(
    file: SqliteFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.sqlite_file.BUSY_SECONDS", 0.1)
    await file.write(lambda c: c.execute("PRAGMA busy_timeout=100").fetchone())
    stranger = sqlite3.connect(path, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageFault, match="locked"):
        await asyncio.wait_for(file.write(insert("lost")), 5)
    stranger.execute("ROLLBACK")
    stranger.close()
    await file.write(insert("kept"))
    assert await file.read(notes) == ["kept"]


async def test_a_turn_never_given_back_ends_in_a_storage_fault(
    file: SqliteFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.sqlite_file.PATIENCE_SECONDS", 0.3)
    program = """
        def hold(connection):
            print("held", flush=True)
            time.sleep(60)
        await file.write(hold)
"""
    process = in_another_process(path, program)
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "held\n"
        with pytest.raises(StorageFault, match="no answer"):
            await file.write(insert("lost"))
    finally:
        process.kill()
        process.communicate()
    monkeypatch.setattr("gateway.sqlite_file.PATIENCE_SECONDS", 5)
    await file.write(insert("kept"))
    assert await file.read(notes) == ["kept"], "what was given up is withdrawn"


async def test_a_folder_that_is_missing_is_a_storage_fault(tmp_path: Path) -> None:
    with pytest.raises(StorageFault):
        await SqliteFile(tmp_path / "missing" / "notes.db").open()


async def test_a_closed_file_takes_nothing(path: Path) -> None:
    file = SqliteFile(path, prepare=create)
    await file.open()
    await file.close()
    await file.close()
    with pytest.raises(StorageFault):
        await file.write(insert("x"))


async def test_a_bell_rings_after_commits_of_another_process(file: SqliteFile, path: Path) -> None:
    async with file.bell() as bell:
        process = in_another_process(
            path, "        await file.write(lambda c: c.execute(\"INSERT INTO notes VALUES ('b')\").rowcount)"
        )
        assert await bell.wait(10)
        assert await file.read(notes) == ["b"]
        process.communicate()
        assert process.returncode == 0


async def test_a_ring_between_look_and_wait_is_not_lost(file: SqliteFile) -> None:
    async with file.bell() as bell:
        await file.write(insert("a"))
        assert await bell.wait(1)
        assert not await bell.wait(0.01)


async def test_quiet_writes_ring_no_bell(file: SqliteFile) -> None:
    async with file.bell() as bell:
        await file.write(insert("a"), rings=False)
        await file.write_soon(insert("b"))
        assert not await bell.wait(0.05)


async def test_bells_ring_in_folders_with_long_names(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 120) / ("b" * 120)
    folder.mkdir(parents=True)
    async with SqliteFile(folder / "notes.db", prepare=create) as file, file.bell() as bell:
        await file.write(insert("a"))
        assert await bell.wait(1)


async def test_bells_of_killed_processes_are_cleared_away(file: SqliteFile, path: Path) -> None:
    program = """
        async with file.bell():
            print("hung", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
"""
    process = in_another_process(path, program)
    assert process.communicate()[0] == "hung\n"
    bells = path.with_name(path.name + ".bells")
    (stale,) = bells.iterdir()
    os.utime(stale, (1, 1))
    await file.write(insert("a"))
    while list(bells.iterdir()):
        await asyncio.sleep(0.01)


async def test_the_wal_starts_over_and_stays_small(file: SqliteFile, path: Path) -> None:
    wal = path.with_name(path.name + "-wal")
    largest = 0
    for n in range(48):
        await file.write(insert(f"{n:04}" + "x" * 1_000_000), size=1_000_000)
        await file.write(lambda c: c.execute("DELETE FROM notes").rowcount)
        largest = max(largest, wal.stat().st_size)
    assert 16 * 1024 * 1024 < largest < 24 * 1024 * 1024


async def test_a_kill_inside_a_transaction_leaves_nothing_and_the_turn_goes_on(file: SqliteFile, path: Path) -> None:
    program = """
        def die(connection):
            connection.execute("INSERT INTO notes VALUES ('dead')")
            os.kill(os.getpid(), signal.SIGKILL)
        await file.write(die)
"""
    process = in_another_process(path, program)
    await asyncio.to_thread(process.communicate)
    assert process.returncode == -signal.SIGKILL
    await asyncio.wait_for(file.write(insert("alive")), 5)
    assert await file.read(notes) == ["alive"]


async def test_opening_where_the_turn_is_never_given_back_is_told_soon(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.sqlite_file.PATIENCE_SECONDS", 2)
    turn = os.open(path.with_name(path.name + ".turn"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        start = time.monotonic()
        with pytest.raises(StorageFault, match="no answer"):
            await SqliteFile(path).open()
        assert time.monotonic() - start < 3
    finally:
        os.close(turn)


async def test_a_failed_end_of_a_read_does_not_hide_why_it_failed(file: SqliteFile) -> None:
    def end_it_and_fail(connection: Connection) -> None:
        connection.execute("ROLLBACK")
        raise ZeroDivisionError("the real fault")

    with pytest.raises(ZeroDivisionError, match="the real fault"):
        await file.read(end_it_and_fail)
    assert await file.read(notes) == []
