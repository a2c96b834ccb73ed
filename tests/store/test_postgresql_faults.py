"""A PostgreSQL server that goes away, stands still, cuts a connection at the worst moment, or says no: told soon, used again."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from gateway.errors import StoreUnavailable
from gateway.store import schema
from gateway.store.database import open_database
from gateway.store.postgresql import Limits, PostgresDatabase
from gateway.store.postgresql_url import parse_postgresql_url

sys.path.insert(0, str(Path(__file__).parent.parent / "fakes"))

from cut_wire import CutWire

WAIT_SECONDS = 60


def put(key: str) -> Callable[[sa.Connection], int]:
    return lambda connection: connection.execute(sa.insert(schema.meta), {"key": key, "value": "1"}).rowcount


def keys(connection: sa.Connection) -> set[str]:
    return set(connection.execute(sa.select(schema.meta.c.key).where(schema.meta.c.key != "epoch")).scalars())


def lasting(seconds: float) -> Callable[[sa.Connection], None]:
    return lambda connection: connection.execute(sa.select(sa.func.pg_sleep(seconds))).close()


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[PostgresDatabase]:
    opened = PostgresDatabase(parse_postgresql_url(postgres_url))
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def wire(postgres_server) -> AsyncIterator[CutWire]:
    async with CutWire(postgres_server.port).up() as up:
        yield up


@pytest.fixture
async def wired(postgres_url: str, wire: CutWire) -> AsyncIterator[PostgresDatabase]:
    parts = urlsplit(postgres_url)
    opened = PostgresDatabase(parse_postgresql_url(parts._replace(netloc=f"postgres@127.0.0.1:{wire.port}").geturl()))
    await opened.open()
    yield opened
    await opened.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_a_server_that_went_away_is_unavailable_soon_and_used_again_when_back(
    database: PostgresDatabase, postgres_server, how: signal.Signals
) -> None:
    await asyncio.gather(*(database.write(put(f"before {number}")) for number in range(20)))
    postgres_server.stop(how=how)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            outcomes = await asyncio.gather(
                *(database.write(put("lost")) for _ in range(20)), database.read(keys), return_exceptions=True
            )
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    finally:
        postgres_server.start()
    await database.write(put("after"))
    assert await database.read(keys) == {f"before {number}" for number in range(20)} | {"after"}


async def test_a_server_that_stands_still_is_unavailable_and_used_again_when_it_goes_on(
    postgres_url: str, postgres_server
) -> None:
    limits = Limits(lock_seconds=1, statement_seconds=1, patience_seconds=3)
    database = PostgresDatabase(parse_postgresql_url(postgres_url), limits=limits)
    await database.open()
    postgres_server.freeze()
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            with pytest.raises(StoreUnavailable):
                await database.write(put("still"))
    finally:
        postgres_server.thaw()
    async with asyncio.timeout(WAIT_SECONDS):
        await database.write(put("after"))
    assert "after" in await database.read(keys)
    await database.close()


async def test_a_restart_between_two_writes_is_not_noticed(database: PostgresDatabase, postgres_server) -> None:
    await asyncio.gather(*(database.write(put(f"{number}")) for number in range(8)))
    postgres_server.stop()
    postgres_server.start()
    await database.write(put("after"))


@pytest.mark.parametrize("heard", [False, True])
async def test_an_answer_lost_at_commit_is_told_as_unknown(wired: PostgresDatabase, wire: CutWire, heard: bool) -> None:
    wire.cut_at(b"COMMIT;", heard=heard)
    with pytest.raises(StoreUnavailable, match="may have taken place"):
        await wired.write(put("a"))
    assert wire.cuts == 1
    assert await wired.read(keys) == ({"a"} if heard else set())


async def test_work_cut_off_before_its_commit_runs_again(wired: PostgresDatabase, wire: CutWire) -> None:
    await wired.write(put("a"))
    wire.cut_at(b"looked for", heard=True)
    looked = sa.select(sa.literal("looked for"))

    def work(connection: sa.Connection) -> None:
        put("b")(connection)
        connection.execute(sa.text("/* looked for */ SELECT 1")).close()
        connection.execute(looked).close()

    await wired.write(work)
    assert wire.cuts == 1
    assert await wired.read(keys) == {"a", "b"}


async def test_a_statement_and_a_lock_are_not_waited_for_for_ever(
    postgres_url: str, database: PostgresDatabase
) -> None:
    limits = Limits(lock_seconds=0.2, statement_seconds=0.5, patience_seconds=30)
    short = PostgresDatabase(parse_postgresql_url(postgres_url), limits=limits)
    await short.open()
    with pytest.raises(StoreUnavailable, match="statement timeout"):
        await short.write(lasting(30))
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(connection: sa.Connection) -> None:
        put("a")(connection)
        loop.call_soon(begun.set)
        lasting(3)(connection)

    holding = asyncio.create_task(database.write(hold))
    await begun.wait()
    with pytest.raises(StoreUnavailable, match="lock timeout"):
        await short.write(put("a"))
    await holding
    await short.write(put("b"))
    assert await short.read(keys) == {"a", "b"}
    await short.close()


async def test_a_process_that_stops_within_a_transaction_does_not_keep_its_rows(
    postgres_url: str, database: PostgresDatabase
) -> None:
    limits = Limits(lock_seconds=1, statement_seconds=1, patience_seconds=3)
    stopped = PostgresDatabase(parse_postgresql_url(postgres_url), limits=limits)
    await stopped.open()
    async with stopped._connected(stopped._engine) as connection:
        await connection.run_sync(put("a"))  # and then nothing more is heard of it
        await database.write(put("a"))
        with pytest.raises(sa.exc.DBAPIError):
            await connection.run_sync(put("b"))
    await stopped.close()


async def test_who_waits_may_go_the_write_goes_through(database: PostgresDatabase) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(connection: sa.Connection) -> None:
        loop.call_soon(begun.set)
        lasting(0.3)(connection)
        put("a")(connection)

    waiting = asyncio.create_task(database.write(slow))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await database.close()
    await database.open()
    assert await database.read(keys) == {"a"}


async def test_a_deadlock_is_solved_by_running_one_of_the_two_again(database: PostgresDatabase) -> None:
    await database.write(lambda connection: [put("a")(connection), put("b")(connection)])
    both, arrived = asyncio.Barrier(2), []

    def crosswise(first: str, second: str) -> Callable[[sa.Connection], None]:
        def work(connection: sa.Connection) -> None:
            raise_value(connection, first)
            arrived.append(first)
            if arrived.count(first) == 1:
                meet()
            raise_value(connection, second)

        return work

    def raise_value(connection: sa.Connection, key: str) -> None:
        meta = schema.meta.c
        more = sa.cast(sa.cast(meta.value, sa.Integer) + 1, sa.Text)
        connection.execute(sa.update(schema.meta).where(meta.key == key).values(value=more))

    def meet() -> None:
        from sqlalchemy.util import await_only

        await_only(both.wait())

    await asyncio.gather(database.write(crosswise("a", "b")), database.write(crosswise("b", "a")))
    values = sa.select(schema.meta.c.value).where(schema.meta.c.key.in_(["a", "b"]))
    assert await database.read(lambda connection: connection.execute(values).scalars().all()) == ["3", "3"]
    assert len(arrived) == 3, "one of them ran twice"


async def test_a_bell_whose_connection_is_lost_says_so(
    database: PostgresDatabase, postgres_server, postgres_url
) -> None:
    async with database.bell() as bell:
        await database.write(put("a"))
        assert await bell.wait(WAIT_SECONDS)
        name = urlsplit(postgres_url).path[1:]
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gateway bell'"
        await asyncio.to_thread(postgres_server.run, kill, name)
        with pytest.raises(StoreUnavailable):
            await bell.wait(WAIT_SECONDS)
    async with database.bell() as bell:
        await database.write(put("b"))
        assert await bell.wait(WAIT_SECONDS)


async def test_a_thousand_writes_ring_but_a_few_times(database: PostgresDatabase) -> None:
    rings = 0
    send = database._ringer._send

    async def counted() -> None:
        nonlocal rings
        rings += 1
        await send()

    database._ringer._send = counted
    await asyncio.gather(*(database.write(put(f"{number}")) for number in range(1000)))
    assert 0 < rings < 500


async def test_the_clock_is_the_servers_whatever_this_machine_thinks(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)
    asked = sa.select(sa.func.clock_timestamp())
    told = await database.write(lambda connection: connection.execute(asked).scalar_one())
    assert abs((database.clock() - told).total_seconds()) < 5


async def test_a_server_that_is_not_there_and_a_database_it_lacks_are_unavailable(postgres_url: str) -> None:
    for url in ("postgresql://nobody:s3cret@127.0.0.1:1/none", postgres_url.replace("/test_", "/none_")):
        with pytest.raises(StoreUnavailable) as away:
            await open_database(url)
        assert "s3cret" not in str(away.value)


async def test_of_several_hosts_the_one_that_writes_is_used(postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    database = await open_database(parts._replace(netloc=f"postgres@127.0.0.1:1,127.0.0.1:{parts.port}").geturl())
    await database.write(put("a"))
    await database.close()


async def test_connections_that_may_only_read_are_left_for_new_ones(postgres_url: str, postgres_server) -> None:
    """A failover behind one address: whoever reconnected too early sits at the old server, which is a standby now."""
    alter = f"ALTER DATABASE {urlsplit(postgres_url).path[1:]}"
    postgres_server.run(f"{alter} SET default_transaction_read_only = on")
    try:
        standby = PostgresDatabase(parse_postgresql_url(postgres_url))
        await standby.open()
        await asyncio.gather(*(standby.read(lasting(0.05)) for _ in range(4)))
        with pytest.raises(StoreUnavailable, match="read-only"):
            await standby.write(put("a"))
        await asyncio.gather(*(standby.read(lasting(0.05)) for _ in range(4)))
    finally:
        postgres_server.run(f"{alter} RESET default_transaction_read_only")
    await standby.write(put("b"))
    assert await standby.read(keys) == {"b"}
    await standby.close()


async def test_a_pooler_that_mixes_connections_up_is_the_stores_fault_and_not_the_mails(
    database: PostgresDatabase,
) -> None:
    """In transaction mode a pooler leads to a server's connection that never heard of our prepared statements."""

    def elsewhere(connection: sa.Connection) -> None:
        put("a")(connection)
        connection.exec_driver_sql("DEALLOCATE ALL")
        put("b")(connection)

    with pytest.raises(StoreUnavailable, match="prepared statement"):
        await database.write(elsewhere)


async def test_nothing_is_asked_at_the_start_of_a_connection_that_a_pooler_refuses(
    database: PostgresDatabase,
) -> None:
    shown = "SELECT name FROM pg_settings WHERE source = 'client' AND name LIKE '%timeout%'"
    asked, limits = await database.read(
        lambda connection: (
            list(connection.exec_driver_sql(shown).scalars()),
            [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in ("lock_timeout", "statement_timeout")],
        )
    )
    assert (asked, limits) == ([], ["8s", "12s"])
