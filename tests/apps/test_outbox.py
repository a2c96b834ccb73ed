"""The outbox in an app's own database: with its transaction, through every kind of connection, to a real queue."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

import gateway
from gateway import CreatePost, InvalidRequest, QueueUnavailable, SendEmail, outbox
from gateway.queue.broker import Done
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import EMAIL_SEND, POST_CREATE

Open = Callable[[], Any]


def email(**values: Any) -> SendEmail:
    return SendEmail.model_validate({"template": "invoice", "to": ["ann@example.org"], "params": {"n": 42}} | values)


class OwnSession(Session):
    """As SQLModel and Flask-SQLAlchemy have one."""


def by_name(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def sqlite_with_named_rows(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    connection.row_factory = by_name
    return connection


@pytest.fixture(params=["sqlite3", "connection", "session", "psycopg", "session on psycopg"])
def open_connection(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """The kinds of connection an app may have, to its own database, with rows of its own form where it can choose."""
    path = tmp_path / "app.db"
    url = request.getfixturevalue("bare_postgres_url") if "psycopg" in request.param else ""
    engine = sa.create_engine(
        url.replace("postgresql:", "postgresql+psycopg:") or f"sqlite:///{path}", poolclass=NullPool
    )
    kinds: dict[str, Open] = {
        "sqlite3": lambda: sqlite_with_named_rows(path),
        "connection": engine.connect,
        "session": lambda: OwnSession(engine),
        "psycopg": lambda: psycopg.connect(url, row_factory=dict_row),
        "session on psycopg": lambda: OwnSession(engine),
    }
    connection = kinds[request.param]()
    outbox.create_table(connection)
    connection.commit()
    connection.close()
    return kinds[request.param]


async def tickets_at(path: Path) -> list[tuple[str, str]]:
    found = []
    async with SqliteBroker(path) as broker:
        waiting = sum(depth.ready for depth in await broker.depths())
        async with broker.consume({EMAIL_SEND: 1, POST_CREATE: 1}, concurrency=1) as consumer:
            for _ in range(waiting):
                lease = await anext(aiter(consumer))
                found.append((lease.ticket.queue, lease.ticket.id))
                await lease.settle(Done())
    return found


async def carry(open_connection: Open, queue: Path) -> int:
    async with gateway.connect(f"sqlite:///{queue}") as client:
        return await outbox.carry_once(open_connection, client)


async def test_what_the_transaction_committed_reaches_the_queue_once(open_connection: Open, tmp_path: Path) -> None:
    connection = open_connection()
    first, post = email(), CreatePost(author="Ann", title="Hello")
    outbox.add(connection, first)
    outbox.add(connection, first)
    outbox.add(connection, post)
    connection.commit()
    connection.close()
    assert await carry(open_connection, tmp_path / "queue.db") == 2
    assert await carry(open_connection, tmp_path / "queue.db") == 0
    assert set(await tickets_at(tmp_path / "queue.db")) == {(EMAIL_SEND, first.id), (POST_CREATE, post.id)}


async def test_what_the_transaction_undid_is_never_sent(open_connection: Open, tmp_path: Path) -> None:
    connection = open_connection()
    outbox.add(connection, email())
    connection.rollback()
    connection.close()
    assert await carry(open_connection, tmp_path / "queue.db") == 0


async def test_a_waiting_id_with_other_content_is_refused(open_connection: Open) -> None:
    connection = open_connection()
    first = email()
    outbox.add(connection, first)
    with pytest.raises(InvalidRequest, match="id: waits in the outbox with other content"):
        outbox.add(connection, email(id=first.id, params={"n": 43}))
    connection.close()


async def test_a_request_nobody_can_take_is_set_aside_and_the_next_one_goes(
    open_connection: Open, tmp_path: Path
) -> None:
    connection = open_connection()
    bad, good = email(), email()
    outbox.add(connection, bad)
    outbox.add(connection, good)
    statement: Any = "UPDATE gateway_outbox SET body = replace(body, 'ann@example.org', 'nobody') WHERE number = 1"
    is_plain = isinstance(connection, sqlite3.Connection | psycopg.Connection)
    connection.execute(statement if is_plain else sa.text(statement))
    connection.commit()
    assert await carry(open_connection, tmp_path / "queue.db") == 2
    assert [ticket_id for _, ticket_id in await tickets_at(tmp_path / "queue.db")] == [good.id]
    [aside] = outbox.set_aside(connection)
    assert aside.id == bad.id
    assert "to[0]" in aside.problem
    connection.close()


class _Away:
    """A queue that is away for the first `faults` requests."""

    def __init__(self, client: Any, faults: int) -> None:
        self._client, self._faults = client, faults

    async def send(self, request: SendEmail, /) -> str:
        if self._faults:
            self._faults -= 1
            raise QueueUnavailable("away")
        return str(await self._client.send(request))

    async def create_post(self, request: CreatePost, /) -> str:
        raise AssertionError("no post here")


async def test_a_queue_that_is_away_loses_nothing_and_sends_the_others(open_connection: Open, tmp_path: Path) -> None:
    connection = open_connection()
    ids = {outbox.add(connection, email()) for _ in range(3)}
    connection.commit()
    connection.close()
    async with gateway.connect(f"sqlite:///{tmp_path / 'queue.db'}") as client:
        away = _Away(client, 1)
        with pytest.raises(QueueUnavailable):
            await outbox.carry_once(open_connection, away)
        assert await outbox.carry_once(open_connection, away) == 1
    assert {ticket_id for _, ticket_id in await tickets_at(tmp_path / "queue.db")} == ids


async def test_carry_goes_on_until_stop(open_connection: Open, tmp_path: Path) -> None:
    stop = asyncio.Event()
    async with gateway.connect(f"sqlite:///{tmp_path / 'queue.db'}") as client:
        carrying = asyncio.create_task(outbox.carry(open_connection, client, stop=stop))
        connection = open_connection()
        sent = outbox.add(connection, email())
        connection.commit()
        async with SqliteBroker(tmp_path / "queue.db") as broker, broker.consume({EMAIL_SEND: 1}, concurrency=1) as got:
            lease = await asyncio.wait_for(anext(aiter(got)), 30)
            assert lease.ticket.id == sent
            await lease.settle(Done())
        connection.close()
        stop.set()
        await asyncio.wait_for(carrying, 30)


async def test_an_async_session_adds_by_run_sync(tmp_path: Path) -> None:
    pytest.importorskip("aiosqlite", reason="SKIPPED LOUDLY: aiosqlite is not installed")
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(outbox.create_table)
        added = await connection.run_sync(outbox.add, email())
    await engine.dispose()
    open_connection = sa.create_engine(f"sqlite:///{tmp_path / 'app.db'}").connect
    await carry(open_connection, tmp_path / "queue.db")
    assert [ticket_id for _, ticket_id in await tickets_at(tmp_path / "queue.db")] == [added]


async def test_two_carriers_side_by_side_on_postgresql_carry_each_request_once(
    bare_postgres_url: str, tmp_path: Path
) -> None:
    with psycopg.connect(bare_postgres_url) as connection:
        outbox.create_table(connection)
        ids = {outbox.add(connection, email()) for _ in range(150)}
    async with gateway.connect(f"sqlite:///{tmp_path / 'queue.db'}") as client:
        carried = [outbox.carry_once(lambda: psycopg.connect(bare_postgres_url), client) for _ in range(2)]
        assert sum(await asyncio.gather(*carried)) == 150
    published = [ticket_id for _, ticket_id in await tickets_at(tmp_path / "queue.db")]
    assert sorted(published) == sorted(ids)


async def test_a_connection_the_outbox_cannot_use_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="sqlite3, psycopg or SQLAlchemy"):
        outbox.add(object(), email())
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    async with engine.connect() as connection:
        with pytest.raises(TypeError, match=r"await connection\.run_sync\(outbox\.add, email\)"):
            outbox.add(connection, email())
    await engine.dispose()
    with pytest.raises(TypeError, match="not in mysql"):
        outbox.create_table(sa.create_mock_engine("mysql+pymysql://", print))


_KILLED = """
import asyncio, os, signal, sqlite3, sys
import gateway
from gateway import outbox
class Dies:
    def __init__(self, client): self.client, self.left = client, 20
    async def send(self, request):
        sent = await self.client.send(request)
        self.left -= 1
        if not self.left: os.kill(os.getpid(), signal.SIGKILL)
        return sent
async def main(app, queue):
    async with gateway.connect(f"sqlite:///{queue}") as client:
        await outbox.carry_once(lambda: sqlite3.connect(app), Dies(client))
asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_carrier_killed_between_publish_and_delete_loses_nothing(tmp_path: Path) -> None:
    app, queue = tmp_path / "app.db", tmp_path / "queue.db"
    with sqlite3.connect(app) as connection:
        outbox.create_table(connection)
        ids = {outbox.add(connection, email()) for _ in range(50)}
    child = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", _KILLED, str(app), str(queue)], timeout=60, check=False
    )
    assert child.returncode == -9
    await carry(lambda: sqlite3.connect(app), queue)
    published = [ticket_id for _, ticket_id in await tickets_at(queue)]
    assert set(published) == ids, "each is there; those in flight at the death may be there twice, under one id"
