"""A ledger moves from one database to another, whole: every table, row for row, and the numbers that go on from there.

Both say in their table `meta` where the move is, so that the ledger is in use in one place at most:

    target `moving`   it is being filled: nobody may work with it; the same move goes on, whenever it was killed
    both   `copy`     the name of what was copied so far; whoever opens the source for work takes it away there, for what was
                      copied may be stale from then on: the target is emptied, and the copy begun anew
    source `moved`    its rows are all there: nobody may work with it any more; `ended`: the target may be worked with

The epoch goes along: to `store.ledger_mark` it is the same ledger.  Rows are copied by page in the order of their keys; what
is there already stays as it is, so that a page may come twice.
Limits: nobody else may work on either one: who had it open before is seen on a server only, who opens it meanwhile at the end;
what a row holds is not changed, so the blobs it names have to be moved, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sqlalchemy as sa

from gateway.errors import PermanentFailure, Problem, SettingsError, StoreUnavailable
from gateway.mail.ids import new_id
from gateway.runtime import failpoint
from gateway.store import schema
from gateway.store.database import Database, absent_insert
from gateway.store.migrations import upgrade

MOVING, COPY, MOVED, ENDED = "moving", "copy", "moved", "move_ended"
_OWN_WORDS = (MOVING, COPY, MOVED, ENDED, "compatible_from")
_LEFT = frozenset({schema.meta.name, schema.turns.name})  # `meta` goes by itself; a turn is of a process that runs
_MAY_BE_THERE = frozenset({schema.blobs.name, *_LEFT})  # doors may be putting blobs already
_PAGES = {schema.blobs.name: 2, schema.mail_octets.name: 50, schema.email_octets.name: 50, schema.outbox.name: 200}
_PAGE_ROWS = 500
LEAVING_SECONDS = 5.0
_LOOK_SECONDS = 0.1

Tell = Callable[[str, int, int], None]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """One table: the rows the source has, those copied now, those that were there before; `lacking` is what is not there."""

    table: str
    found: int
    carried: int
    already: int

    @property
    def lacking(self) -> int:
        return max(0, self.found - self.carried - self.already)


async def move_ledger(source: Database, target: Database, *, to: str, tell: Tell) -> list[Copied]:
    """Copies all there is, proves the counts equal and closes the old place; raises PermanentFailure where it must not.

    `to` is how the source will name its ledger's new place; a source that was moved before gives no lines.
    """
    for database in (source, target):
        await _refuse_company(database)
        await upgrade(database)
    if await _begin(source, target, to):
        await source.write(lambda connection: _set(connection, ENDED, "yes"))
        return []
    tables = [table for table in schema.metadata.sorted_tables if table.name not in _LEFT]
    copied = [await _copy(source, target, table, tell) for table in tables]
    # Once more, all at one moment: what somebody wrote into the old one meanwhile must not be closed in with it.
    found = await source.read(lambda connection: {table.name: _count(connection, table) for table in tables})
    await _refuse_stale(source, target)
    copied = [replace(line, found=found[line.table]) for line in copied]
    if not any(item.lacking for item in copied):
        await target.write(_set_numbers)
        failpoint("move.copied-all")
        await source.write(lambda connection: _set(connection, MOVED, to))
        failpoint("move.ledger-closed")
        await target.write(lambda connection: _unset(connection, MOVING, COPY))
        await source.write(lambda connection: _set(connection, ENDED, "yes"))
    return copied


async def refuse_moved(database: Database) -> None:
    """Raises SettingsError for a ledger that is being moved in, or has moved away; a copy of any other is stale from now on."""
    words = await database.read(_words)
    if why := _why_not(words):
        raise SettingsError([Problem("database_url", why)])
    if COPY in words:
        await database.write(lambda connection: _unset(connection, COPY))


async def why_not_here(database: Database) -> str:
    """Why nobody may work with this ledger; '' where they may."""
    return _why_not(await database.read(_words))


def _why_not(words: dict[str, str]) -> str:
    if MOVING in words:
        return "a ledger is being moved into it: run `gateway move` again until it says that all is there"
    if MOVED in words:
        return f"its ledger has moved to {words[MOVED]}: set that, or `gateway move --from` it into an empty database"
    return ""


async def has_moved(database: Database) -> bool:
    """Whether the ledger is in use elsewhere, and this one done with."""
    return ENDED in await database.read(_words)


async def count_rows(database: Database) -> dict[str, int]:
    """How many mails, emails and posts the ledger has."""
    tables = (schema.mails, schema.emails, schema.posts)
    return await database.read(lambda connection: {table.name: _count(connection, table) for table in tables})


async def _begin(source: Database, target: Database, to: str) -> bool:
    """Marks the target as one that is being filled; True when the source was moved before, and nothing is left to do."""
    here, there = await source.read(_words), await target.read(_words)
    epoch = here["epoch"]
    if MOVED in here and there.get(MOVING) != epoch:
        if there["epoch"] != epoch and not (ENDED in here and here[MOVED] == to):
            raise PermanentFailure(
                f"the source's ledger has moved to {here[MOVED]}: that is where it can be taken from"
            )
        return True
    if MOVING in here:
        raise PermanentFailure("the source is itself being filled by a move that has not ended: end that one first")
    if MOVING in there and there[MOVING] != epoch:
        raise PermanentFailure("the target is being filled with another ledger: give this one a database of its own")
    if MOVING in there and there.get(COPY) == here.get(COPY):
        return False
    rows = await target.read(_first_rows)
    if rows and MOVING not in there:
        whose = f"a ledger that moved to {there[MOVED]}" if MOVED in there else f"{', '.join(rows)} of its own"
        text = f"the target has {whose}, and two ledgers cannot be one: put it away, or name an empty database"
        raise PermanentFailure(text)
    await _begin_copy(source, target, {key: value for key, value in here.items() if key not in _OWN_WORDS})
    failpoint("move.ledger-begun")
    return False


async def _begin_copy(source: Database, target: Database, words: dict[str, str]) -> None:
    """Names a new copy in both, the target first: killed between the two, this one is stale, too."""
    name = new_id()

    def begin(connection: sa.Connection) -> None:
        for table in reversed(schema.metadata.sorted_tables):
            if table.name not in _MAY_BE_THERE:
                connection.execute(sa.delete(table))
        for key, value in (words | {MOVING: words["epoch"], COPY: name}).items():
            _set(connection, key, value)

    await target.write(begin)
    await source.write(lambda connection: _set(connection, COPY, name))


async def _refuse_stale(source: Database, target: Database) -> None:
    """Who opened the source since the copy began may have changed what was copied before."""
    here, there = await source.read(_words), await target.read(_words)
    if here.get(COPY) != there.get(COPY):
        raise StoreUnavailable(
            "somebody opened the old ledger meanwhile, so the copy may be stale: the next run begins it anew"
        )


async def _copy(source: Database, target: Database, table: sa.Table, tell: Tell) -> Copied:
    found = await source.read(lambda connection: _count(connection, table))
    before = await target.read(lambda connection: _count(connection, table))
    last: Key | None = None
    done = 0
    while rows := await source.read(partial(_page, table=table, last=last)):
        await target.write(partial(_insert, table=table, rows=rows), rings=False)
        failpoint("move.copied")
        last = tuple(rows[-1][column.name] for column in table.primary_key)
        done += len(rows)
        tell(table.name, done, found)
    after = await target.read(lambda connection: _count(connection, table))
    carried = after - before
    return Copied(table=table.name, found=found, carried=carried, already=max(0, min(after, found) - carried))


def _page(connection: sa.Connection, table: sa.Table, last: Key | None) -> list[dict[str, Any]]:
    key = list(table.primary_key)
    query = sa.select(table).order_by(*key).limit(_PAGES.get(table.name, _PAGE_ROWS))
    if last is not None:
        bound = sa.tuple_(*(sa.literal(value, column.type) for value, column in zip(last, key, strict=True)))
        query = query.where(sa.tuple_(*key) > bound)
    return [dict(row) for row in connection.execute(query).mappings()]


def _insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    connection.execute(absent_insert(connection, table), rows)


def _set_numbers(connection: sa.Connection) -> None:
    """A server's counters go on behind the rows that came with numbers of their own."""
    if connection.dialect.name != "postgresql":
        return
    for table in (schema.timeline, schema.outbox):
        last = connection.execute(sa.select(sa.func.max(table.c.id))).scalar_one()
        if last is not None:
            sequence = sa.func.pg_get_serial_sequence(table.name, "id")
            connection.execute(sa.select(sa.func.setval(sequence, last)))


def _count(connection: sa.Connection, table: sa.Table) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def _first_rows(connection: sa.Connection) -> list[str]:
    tables = [table for table in schema.metadata.sorted_tables if table.name not in _MAY_BE_THERE]
    return [
        table.name
        for table in tables
        if connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first()
    ]


def _words(connection: sa.Connection) -> dict[str, str]:
    rows = connection.execute(sa.select(schema.meta.c.key, schema.meta.c.value))
    return {row.key: row.value for row in rows}


def _set(connection: sa.Connection, key: str, value: str) -> None:
    _unset(connection, key)
    connection.execute(sa.insert(schema.meta), {"key": key, "value": value})


def _unset(connection: sa.Connection, *keys: str) -> None:
    connection.execute(sa.delete(schema.meta).where(schema.meta.c.key.in_(keys)))


async def _refuse_company(database: Database) -> None:
    """A server knows who else is there, for a moment also who was killed; who has a file open is known by `data_dir`."""
    deadline = asyncio.get_running_loop().time() + LEAVING_SECONDS
    while others := await database.read(_company):
        if asyncio.get_running_loop().time() > deadline:
            text = f"{others} connections of other gateway processes are open to the database"
            raise StoreUnavailable(f"{text}: stop them on every host first")
        await asyncio.sleep(_LOOK_SECONDS)


def _company(connection: sa.Connection) -> int:
    if connection.dialect.name != "postgresql":
        return 0
    activity = sa.table("pg_stat_activity", sa.column("datname"), sa.column("application_name"), sa.column("pid"))
    query = (
        sa.select(sa.func.count())
        .select_from(activity)
        .where(
            activity.c.datname == sa.func.current_database(),
            activity.c.application_name == "gateway",
            activity.c.pid != sa.func.pg_backend_pid(),
        )
    )
    return int(connection.execute(query).scalar_one())
