"""A ledger goes from one database to another, row for row, in both directions, and is in use in one of them at most."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.errors import PermanentFailure, SettingsError, StoreUnavailable
from gateway.store import moving, schema
from gateway.store.database import Database, open_as_it_is, open_database
from gateway.store.ledger_mark import LedgerMark, older_position, position_of

MOMENT = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
KEYS = ["b", "B", "é", "𝄞", "ß", "a", "Ａ"]  # in another order for people than by their octets
MANY = 1203


def value_of(column: sa.Column[Any], row: int) -> Any:
    if column.foreign_keys:
        return KEYS[row]
    if column.primary_key and isinstance(column.type, schema.Text):
        return KEYS[row]
    match column.type:
        case schema.UtcDateTime():
            return MOMENT + timedelta(seconds=row)
        case schema.Json():
            return {"ünïcode": [row, None, True, 1.5, "x"], "b": {}}
        case sa.LargeBinary():
            return bytes([0, 255, row]) * 7
        case sa.Boolean():
            return bool(row % 2)
        case sa.Integer() | sa.BigInteger():
            return row + 1 + 2**40 if isinstance(column.type, sa.BigInteger) else row + 1
    return f"{column.name} {KEYS[row]} \u2603"


def fill(connection: sa.Connection) -> None:
    """Some rows of every table, and more than a few pages of one."""
    for table in schema.metadata.sorted_tables:
        if table.name == "meta":
            continue
        rows = [{column.name: value_of(column, row) for column in table.columns} for row in range(len(KEYS))]
        connection.execute(sa.insert(table), rows)
    line = {"subject": "s", "recipient": "", "step": "x", "at": MOMENT, "data": {}}
    connection.execute(sa.insert(schema.timeline), [line | {"id": 2**41 + number} for number in range(MANY)])


def contents(connection: sa.Connection) -> dict[str, list[Any]]:
    tables = [table for table in schema.metadata.sorted_tables if table.name not in ("meta", "turns")]
    return {
        table.name: sorted((tuple(map(plain, row)) for row in connection.execute(sa.select(table))), key=repr)
        for table in tables
    }


def plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


@pytest.fixture(params=["to a server", "to a file"])
async def places(
    request: pytest.FixtureRequest, tmp_path: Path, bare_postgres_url: str
) -> AsyncIterator[tuple[str, str, Callable[[str], Awaitable[Database]]]]:
    """URL of the source, filled; URL of the target; and what opens one as it is."""
    urls = [f"sqlite:///{tmp_path}/store.db", bare_postgres_url]
    source, target = urls if request.param == "to a server" else urls[::-1]
    database = await open_database(source)
    await database.write(fill)
    await database.close()
    async with AsyncExitStack() as stack:

        async def opened(url: str) -> Database:
            found = await open_as_it_is(url)
            stack.push_async_callback(found.close)
            return found

        yield source, target, opened


def no_word(*_: object) -> None:
    """Nobody listens."""


class Killed(BaseException):
    """The process ends here."""


async def test_every_row_comes_along_wherever_the_move_was_ended(places, monkeypatch, tmp_path: Path) -> None:
    source_url, target_url, opened = places
    mark = LedgerMark(tmp_path / "ledger.mark")
    source = await opened(source_url)
    assert await older_position(source, mark) is None
    expected = await source.read(contents)
    await source.close()

    for place in ("move.ledger-begun", "move.copied", "move.copied-all", "move.ledger-closed"):

        def die(name: str, place: str = place) -> None:
            if name == place:
                raise Killed

        monkeypatch.setattr(moving, "failpoint", die)
        source, target = await opened(source_url), await opened(target_url)
        with pytest.raises(Killed):
            await moving.move_ledger(source, target, to="there", tell=no_word)
        assert not await moving.has_moved(source)
        await source.close()
        await target.close()
        with pytest.raises(SettingsError, match="run `gateway move` again"):
            await open_database(target_url)
    monkeypatch.setattr(moving, "failpoint", lambda name: None)
    source, target = await opened(source_url), await opened(target_url)
    lines = await moving.move_ledger(source, target, to="there", tell=no_word)

    assert {line.table: (line.found, line.carried + line.already) for line in lines} == {
        name: (len(rows), len(rows)) for name, rows in expected.items()
    }
    assert await target.read(contents) == expected
    assert await moving.has_moved(source)
    assert (await position_of(target)).epoch == (await position_of(source)).epoch
    assert await older_position(target, mark) is None, "it is the same ledger"
    with pytest.raises(SettingsError, match="has moved to there"):
        await open_database(source_url)


async def test_what_comes_next_is_numbered_behind_what_came_along(places) -> None:
    source_url, target_url, opened = places
    source, target = await opened(source_url), await opened(target_url)
    await moving.move_ledger(source, target, to="there", tell=no_word)
    line = {"subject": "s", "step": "x", "at": MOMENT, "data": {}}
    event = {"event_id": "new", "type": "t", "subject": "s", "created_at": MOMENT, "body": b"{}"}

    def go_on(connection: sa.Connection) -> list[int]:
        connection.execute(sa.insert(schema.timeline), line)
        connection.execute(sa.insert(schema.outbox), event)
        return [
            connection.execute(sa.select(sa.func.max(table.c.id))).scalar_one()
            for table in (schema.timeline, schema.outbox)
        ]

    last = await source.read(lambda c: c.execute(sa.select(sa.func.max(schema.outbox.c.id))).scalar_one())
    assert await target.write(go_on) == [2**41 + MANY, last + 1]


async def test_two_ledgers_are_never_made_one(places) -> None:
    source_url, target_url, opened = places
    other = await open_database(target_url)
    user = {"name": "ann", "password_hash": "x", "created_at": MOMENT}
    await other.write(lambda connection: connection.execute(sa.insert(schema.users), user).rowcount)
    await other.close()
    source, target = await opened(source_url), await opened(target_url)
    with pytest.raises(PermanentFailure, match="the target has users of its own, and two"):
        await moving.move_ledger(source, target, to="there", tell=no_word)


async def test_nobody_else_is_at_work_on_the_server(places, monkeypatch) -> None:
    monkeypatch.setattr(moving, "LEAVING_SECONDS", 0.0)
    source_url, target_url, opened = places
    source, target = await opened(source_url), await opened(target_url)
    server = target if target_url.startswith("postgresql") else source
    url = target_url if server is target else source_url
    other = await opened(url)
    with pytest.raises(StoreUnavailable, match="1 connections of other gateway processes"):
        await moving.move_ledger(source, target, to="there", tell=no_word)
    await other.close()


async def test_what_came_into_the_old_one_meanwhile_keeps_it_open(places, monkeypatch) -> None:
    source_url, target_url, opened = places
    source, target = await opened(source_url), await opened(target_url)
    copies = moving._copy

    async def copy_late(source: Database, target: Database, table: sa.Table, tell: moving.Tell) -> moving.Copied:
        copied = await copies(source, target, table, tell)
        if table.name == "people":
            person = dict.fromkeys(("id", "address", "address_key", "handle"), "new") | {"added_at": MOMENT}
            await source.write(lambda connection: connection.execute(sa.insert(schema.people), person).rowcount)
        return copied

    monkeypatch.setattr(moving, "_copy", copy_late)
    lines = await moving.move_ledger(source, target, to="there", tell=no_word)
    assert {line.table: line.lacking for line in lines if line.lacking} == {"people": 1}
    await (await open_database(source_url)).close()


async def test_a_copy_of_a_ledger_that_went_on_since_is_begun_anew(places, monkeypatch) -> None:
    """A move that was given up: the house went back to work on the old place, and tries again another day."""
    source_url, target_url, opened = places

    def die(name: str) -> None:
        if name == "move.copied-all":
            raise Killed

    monkeypatch.setattr(moving, "failpoint", die)
    source, target = await opened(source_url), await opened(target_url)
    with pytest.raises(Killed):
        await moving.move_ledger(source, target, to="there", tell=no_word)
    await source.close()
    await target.close()

    house = await open_database(source_url)
    sent = sa.update(schema.email_recipients).values(disposition="relayed")
    gone = sa.delete(schema.people)
    await house.write(lambda connection: connection.execute(sent).rowcount + connection.execute(gone).rowcount)
    expected = await house.read(contents)
    await house.close()

    monkeypatch.setattr(moving, "failpoint", lambda name: None)
    source, target = await opened(source_url), await opened(target_url)
    lines = await moving.move_ledger(source, target, to="there", tell=no_word)
    assert not any(line.lacking for line in lines)
    assert await target.read(contents) == expected


async def test_who_opens_the_old_one_meanwhile_is_noticed(places, monkeypatch) -> None:
    source_url, target_url, opened = places
    source, target = await opened(source_url), await opened(target_url)
    copies = moving._copy

    async def copy_late(source: Database, target: Database, table: sa.Table, tell: moving.Tell) -> moving.Copied:
        copied = await copies(source, target, table, tell)
        if table.name == "email_recipients":
            await moving.refuse_moved(source)  # as everybody who opens it
            relayed = sa.update(schema.email_recipients).values(disposition="relayed")
            await source.write(lambda connection: connection.execute(relayed).rowcount)
        return copied

    monkeypatch.setattr(moving, "_copy", copy_late)
    with pytest.raises(StoreUnavailable, match="the next run begins it anew"):
        await moving.move_ledger(source, target, to="there", tell=no_word)
    monkeypatch.setattr(moving, "_copy", copies)
    expected = await source.read(contents)
    await source.close()
    await target.close()
    source, target = await opened(source_url), await opened(target_url)
    lines = await moving.move_ledger(source, target, to="there", tell=no_word)
    assert not any(line.lacking for line in lines)
    assert await target.read(contents) == expected


async def test_a_ledger_that_went_elsewhere_is_not_called_moved_here(places, monkeypatch, tmp_path: Path) -> None:
    """Killed when the old one was closed, and then the settings name another place."""
    source_url, target_url, opened = places
    source, target = await opened(source_url), await opened(target_url)

    def die(name: str) -> None:
        if name == "move.ledger-closed":
            raise Killed

    monkeypatch.setattr(moving, "failpoint", die)
    with pytest.raises(Killed):
        await moving.move_ledger(source, target, to="there", tell=no_word)
    await source.close()
    await target.close()
    source, other = await opened(source_url), await opened(f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(PermanentFailure, match="has moved to there"):
        await moving.move_ledger(source, other, to="elsewhere", tell=no_word)
    assert not await moving.has_moved(source), "its rows are nowhere else yet"


async def test_blobs_that_doors_put_already_are_not_counted_as_ours(places) -> None:
    source_url, target_url, opened = places
    door = await open_database(target_url)
    row = {"digest": "sha256:other", "octets": b"x", "size": 1, "put_at": MOMENT}
    await door.write(lambda connection: connection.execute(sa.insert(schema.blobs), row).rowcount)
    await door.close()
    source, target = await opened(source_url), await opened(target_url)
    lines = await moving.move_ledger(source, target, to="there", tell=no_word)
    assert {line.table for line in lines if line.found != line.carried + line.already} == set()


async def test_on_the_way_back_the_closed_ledger_is_named_for_what_it_is(places) -> None:
    source_url, target_url, opened = places
    source, target = await opened(source_url), await opened(target_url)
    await moving.move_ledger(source, target, to="there", tell=no_word)
    await source.close()
    await target.close()
    source, target = await opened(source_url), await opened(target_url)
    with pytest.raises(PermanentFailure, match=r"has a ledger that moved to there, .*: put it away"):
        await moving.move_ledger(target, source, to="back", tell=no_word)
