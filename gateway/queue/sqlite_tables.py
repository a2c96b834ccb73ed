"""The tables of the SQLite queue, and what is done to them: one function per fact, each inside a transaction.

Called by `queue.sqlite` only, in the writer's or the reader's thread of its file.  A row in `tickets` is ready (no token)
or leased: token, holder and `lease_until` say by whom and how long.  Bodies lie in a table of their own, so that leasing
a ticket does not write its body again.  Dead letters are rows of the dead queues that remember where they died.
Every statement on a lease says `WHERE number = ? AND token = ?`: whoever lost it changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.queue import receipt_table
from gateway.queue.broker import DELIVERY_LIMIT, Dead, DeadTicket, Depth, Done, Event, Later, Outcome, Suspect
from gateway.queue.receipt_table import Promise
from gateway.queue.receipts import Name, dropped_of, kind_of
from gateway.queue.ticket import (
    DEAD_CRASHED,
    DEAD_FAILED,
    EMAIL_SEND_SERIAL,
    HOME_QUEUE,
    SUSPECT,
    WORK_QUEUES,
    Ticket,
    fresh_queue,
    home_queue,
    retry_queue,
)
from gateway.queue.topics import topic_matches
from gateway.sqlite_file import Connection

REPLY_KEPT_SECONDS = 3600
_EVENT_TYPE = "application/cloudevents+json"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# Times are whole microseconds since 1970.
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS tickets (
        number INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, id TEXT NOT NULL, content_type TEXT NOT NULL,
        headers TEXT NOT NULL, attempt INTEGER NOT NULL, due_at INTEGER, reply_to TEXT, correlation_id TEXT,
        app TEXT NOT NULL, published_at INTEGER NOT NULL, ready_at INTEGER NOT NULL,
        deliveries INTEGER NOT NULL DEFAULT 0, token TEXT, holder TEXT, lease_until INTEGER,
        died_in TEXT, reason TEXT) STRICT""",
    "CREATE TABLE IF NOT EXISTS bodies (number INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT",
    "CREATE INDEX IF NOT EXISTS tickets_ready ON tickets (queue, ready_at) WHERE token IS NULL",
    "CREATE INDEX IF NOT EXISTS tickets_leased ON tickets (holder, lease_until) WHERE token IS NOT NULL",
    """CREATE TRIGGER IF NOT EXISTS tickets_gone AFTER DELETE ON tickets
        BEGIN DELETE FROM bodies WHERE number = OLD.number; END""",
    "CREATE TABLE IF NOT EXISTS consumed (queue TEXT PRIMARY KEY, youngest INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS subscriptions (queue TEXT NOT NULL, pattern TEXT NOT NULL,
        PRIMARY KEY (queue, pattern)) STRICT, WITHOUT ROWID""",
)
_INSERT = """INSERT INTO tickets (queue, id, content_type, headers, attempt, due_at, reply_to, correlation_id, app,
    published_at, ready_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
COLUMNS = """number, queue, id, content_type, headers, attempt, due_at, reply_to, correlation_id, app, published_at,
    deliveries, body"""
_DEAD_COLUMNS = """number, died_in, id, content_type, headers, attempt, due_at, reply_to, correlation_id, app, published_at,
    deliveries, {body}, reason, ready_at, queue"""
_LARGEST = 2**63 - 1
_SELECT = f"SELECT {COLUMNS} FROM tickets JOIN bodies USING (number) "
_UNLEASED = "token = NULL, holder = NULL, lease_until = NULL"
_MINE = "WHERE number = ? AND token = ?"
_GOES_HOME = f"headers = json_remove(headers, '$.{HOME_QUEUE}')"
_HOME = f"CASE queue WHEN '{SUSPECT}' THEN coalesce(json_extract(headers, '$.{HOME_QUEUE}'), queue) ELSE queue END"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A ticket as it lay in the file when it was leased; `deliveries` counts the leases before this one."""

    number: int
    ticket: Ticket
    published_at: int
    deliveries: int
    token: str = ""
    lease_until: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What the leases of one batch have in common."""

    token: str
    holder: str
    until: int


Fields = tuple[tuple[Any, ...], bytes]


def micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def create_schema(connection: Connection) -> None:
    for statement in _SCHEMA:
        connection.execute(statement)
    receipt_table.create(connection)


def fields(ticket: Ticket, now: int) -> Fields:
    """A ticket ready to be inserted: columns and body; raises TypeError when its headers are no JSON."""
    due_at = None if ticket.due_at is None else micros(ticket.due_at)
    headers = json.dumps(dict(ticket.headers), ensure_ascii=True, separators=(",", ":"))
    ready_at = now if due_at is None else due_at
    what = (ticket.queue, ticket.id, ticket.content_type, headers, ticket.attempt, due_at)
    return (*what, ticket.reply_to, ticket.correlation_id, ticket.app, now, ready_at), ticket.body


def insert(connection: Connection, rows: Iterable[Fields]) -> None:
    for row, body in rows:
        number = connection.execute(_INSERT, row).lastrowid
        connection.execute("INSERT INTO bodies (number, body) VALUES (?, ?)", (number, body))


def keep(connection: Connection, rows: Iterable[Fields], promises: Iterable[Promise], now: int) -> None:
    """Tickets and the receipts for them, together."""
    insert(connection, rows)
    receipt_table.keep(connection, promises, moment(now))


def insert_events(connection: Connection, events: Iterable[Event], now: int) -> None:
    bindings = connection.execute("SELECT queue, pattern FROM subscriptions").fetchall()
    for event in events:
        for queue in dict.fromkeys(queue for queue, pattern in bindings if topic_matches(pattern, event.key)):
            copy = Ticket(
                queue=queue, id=event.id, body=event.body, content_type=_EVENT_TYPE, headers={"key": event.key}
            )
            insert(connection, [fields(copy, now)])


def subscribe(connection: Connection, queue: str, patterns: Iterable[str]) -> None:
    connection.execute("DELETE FROM subscriptions WHERE queue = ?", (queue,))
    for pattern in dict.fromkeys(patterns):
        connection.execute("INSERT INTO subscriptions VALUES (?, ?)", (queue, pattern))


def first_body(connection: Connection, queue: str) -> bytes | None:
    row = connection.execute(_SELECT + "WHERE queue = ? AND token IS NULL LIMIT 1", (queue,)).fetchone()
    return None if row is None else read_row(row).ticket.body


def delete_queue(connection: Connection, queue: str) -> None:
    connection.execute("DELETE FROM tickets WHERE queue = ? AND token IS NULL", (queue,))


def read_row(values: tuple[Any, ...], *, token: str = "", lease_until: int = 0) -> Row:
    number, queue, id, content_type, headers, attempt, due_at, reply_to, correlation_id, app = values[:10]
    published_at, deliveries, body = values[10:]
    ticket = Ticket(
        queue=queue,
        id=id,
        body=body,
        content_type=content_type,
        headers=json.loads(headers),
        attempt=attempt,
        due_at=None if due_at is None else moment(due_at),
        reply_to=reply_to,
        correlation_id=correlation_id,
        app=app,
    )
    return Row(
        number=number,
        ticket=ticket,
        published_at=published_at,
        deliveries=deliveries,
        token=token,
        lease_until=lease_until,
    )


def ready_numbers(connection: Connection, queue: str, now: int, wanted: int) -> list[int]:
    """The tickets of a queue that may be leased, the oldest first."""
    if queue == EMAIL_SEND_SERIAL:
        wanted = 0 if _has_one_out(connection, queue) else 1
    statement = "SELECT number FROM tickets WHERE queue = ? AND token IS NULL AND ready_at <= ? ORDER BY ready_at, number LIMIT ?"
    return [number for (number,) in connection.execute(statement, (queue, now, wanted))]


def _has_one_out(connection: Connection, queue: str) -> bool:
    statement = "SELECT 1 FROM tickets WHERE token IS NOT NULL AND queue = ? LIMIT 1"
    return connection.execute(statement, (queue,)).fetchone() is not None


def make_ready(connection: Connection, queues: Iterable[str], now: int) -> None:
    """Makes ready what was to be worked at once and is not yet due: the clock was set back since it was published."""
    statement = "UPDATE tickets SET ready_at = ? WHERE queue = ? AND token IS NULL AND ready_at > ? AND due_at IS NULL"
    for queue in queues:
        if queue == fresh_queue(queue):  # a retry queue is full of what waits for its time
            connection.execute(statement, (now, queue, now))


def next_ready_at(connection: Connection, queues: Iterable[str]) -> int | None:
    """When the next ticket may be leased; what waits for a lease to end is not foreseen."""
    statement = "SELECT min(ready_at) FROM tickets WHERE queue = ? AND token IS NULL"
    free = [queue for queue in queues if queue != EMAIL_SEND_SERIAL or not _has_one_out(connection, queue)]
    found = [connection.execute(statement, (queue,)).fetchone()[0] for queue in free]
    return min((moment for moment in found if moment is not None), default=None)


def lease(connection: Connection, number: int, claim: Claim) -> Row:
    values = connection.execute(_SELECT + "WHERE number = ?", (number,)).fetchone()
    connection.execute(
        "UPDATE tickets SET deliveries = deliveries + 1, token = ?, holder = ?, lease_until = ? WHERE number = ?",
        (claim.token, claim.holder, claim.until, number),
    )
    return read_row(values, token=claim.token, lease_until=claim.until)


def settle(connection: Connection, row: Row, outcome: Outcome, now: int) -> bool:
    """Writes down how a lease ended; False when it was no longer ours."""
    if isinstance(outcome, Done):
        return done(connection, row)
    if isinstance(outcome, Later):
        return _later(connection, row, outcome, now)
    if isinstance(outcome, Dead):
        return _bury(connection, row, outcome, now)
    if isinstance(outcome, Suspect):
        return _suspect(connection, row, now)
    return release(connection, row)


def done(connection: Connection, row: Row) -> bool:
    mine = (row.number, row.token)
    if connection.execute(f"DELETE FROM tickets {_MINE}", mine).rowcount != 1:
        return False
    _note_consumed(connection, row)
    return True


def _later(connection: Connection, row: Row, outcome: Later, now: int) -> bool:
    """The retry is a new publish of the same ticket, as it is on every engine."""
    at = micros(outcome.at)
    cursor = connection.execute(
        f"""UPDATE tickets SET queue = ?, attempt = attempt + ?, due_at = ?, ready_at = ?, published_at = ?,
            deliveries = 0, {_GOES_HOME}, {_UNLEASED} {_MINE}""",
        (retry_queue(home_queue(row.ticket)), int(outcome.climbs), at, at, now, row.number, row.token),
    )
    if cursor.rowcount != 1:
        return False
    _note_consumed(connection, row)
    return True


def _bury(connection: Connection, row: Row, dead: Dead, now: int) -> bool:
    box = DEAD_CRASHED if dead.crashed else DEAD_FAILED
    cursor = connection.execute(
        f"UPDATE tickets SET died_in = {_HOME}, queue = ?, reason = ?, ready_at = ?, {_GOES_HOME}, {_UNLEASED} {_MINE}",
        (box, dead.reason, now, row.number, row.token),
    )
    if cursor.rowcount != 1:
        return False
    _note_consumed(connection, row)
    return True


def _suspect(connection: Connection, row: Row, now: int) -> bool:
    cursor = connection.execute(
        f"""UPDATE tickets SET headers = json_set(headers, '$.{HOME_QUEUE}', queue), queue = ?, ready_at = ?,
            published_at = ?, deliveries = 0, {_UNLEASED} {_MINE} AND queue <> ?""",
        (SUSPECT, now, now, row.number, row.token, SUSPECT),
    )
    if cursor.rowcount != 1:
        return False
    _note_consumed(connection, row)
    return True


def release(connection: Connection, row: Row) -> bool:
    statement = f"UPDATE tickets SET deliveries = deliveries - 1, {_UNLEASED} {_MINE}"
    return connection.execute(statement, (row.number, row.token)).rowcount == 1


def release_claim(connection: Connection, holder: str, token: str) -> None:
    statement = f"UPDATE tickets SET deliveries = deliveries - 1, {_UNLEASED} WHERE holder = ? AND token = ?"
    connection.execute(statement, (holder, token))


def _note_consumed(connection: Connection, row: Row) -> None:
    connection.execute(
        "INSERT INTO consumed VALUES (?, ?) ON CONFLICT DO UPDATE SET youngest = max(youngest, excluded.youngest)",
        (row.ticket.queue, row.published_at),
    )


def reap(connection: Connection, is_over: Callable[[str], bool], now: int) -> None:
    """Gives back the leases whose time or holder is gone, and clears away answers nobody came for."""
    holders = connection.execute("SELECT DISTINCT holder FROM tickets WHERE token IS NOT NULL").fetchall()
    for (holder,) in holders:
        until = 2**62 if is_over(holder) else now
        _end_without_a_word(connection, holder, until, now)
    connection.execute(
        "DELETE FROM tickets WHERE queue >= 'reply.' AND queue < 'reply/' AND token IS NULL AND ready_at < ?",
        (now - REPLY_KEPT_SECONDS * 1_000_000,),
    )


def _end_without_a_word(connection: Connection, holder: str, until: int, now: int) -> None:
    of_holder = "WHERE token IS NOT NULL AND holder = ? AND lease_until <= ?"
    reason = f"{DELIVERY_LIMIT} leases ended without a word: whoever works on it dies or hangs"
    connection.execute(
        f"""UPDATE tickets SET died_in = {_HOME}, queue = ?, reason = ?, ready_at = ?, {_GOES_HOME}, {_UNLEASED}
            {of_holder} AND deliveries >= ?""",
        (DEAD_CRASHED, reason, now, holder, until, DELIVERY_LIMIT),
    )
    connection.execute(f"UPDATE tickets SET {_UNLEASED} {of_holder}", (holder, until))


def depths(connection: Connection, now: int) -> list[Depth]:
    statement = """SELECT coalesce(died_in, queue), count(*) FILTER (WHERE died_in IS NOT NULL),
        count(*) FILTER (WHERE died_in IS NULL AND token IS NULL AND ready_at <= :now),
        count(*) FILTER (WHERE died_in IS NULL AND token IS NOT NULL),
        count(*) FILTER (WHERE died_in IS NULL AND token IS NULL AND ready_at > :now),
        min(ready_at) FILTER (WHERE died_in IS NULL AND token IS NULL AND ready_at <= :now)
        FROM tickets WHERE NOT (queue >= 'reply.' AND queue < 'reply/') GROUP BY 1"""
    found = dict.fromkeys(WORK_QUEUES, (0, 0, 0, 0, None)) | {
        name: rest for name, *rest in connection.execute(statement, {"now": now})
    }
    return [
        Depth(
            name=name,
            ready=ready,
            leased=leased,
            delayed=delayed,
            dead=dead,
            oldest_seconds=None if oldest is None else (now - oldest) / 1_000_000,
        )
        for name, (dead, ready, leased, delayed, oldest) in sorted(found.items())
    ]


def has_consumed_past(connection: Connection, queue: str, since: int, now: int) -> bool:
    row = connection.execute("SELECT youngest FROM consumed WHERE queue = ?", (queue,)).fetchone()
    if row is not None and row[0] > since:
        return True
    ready = "SELECT 1 FROM tickets WHERE queue = ? AND token IS NULL AND ready_at <= ? LIMIT 1"
    if connection.execute(ready, (queue, now)).fetchone() is not None:
        return False
    return not _has_one_out(connection, queue)


def dead(connection: Connection, limit: int) -> list[DeadTicket]:
    rows = connection.execute(
        f"""SELECT {_DEAD_COLUMNS.format(body="x''")} FROM tickets
            WHERE queue IN (?, ?) AND token IS NULL ORDER BY ready_at, number LIMIT ?""",
        (DEAD_FAILED, DEAD_CRASHED, min(limit, _LARGEST)),
    )
    return [_dead_ticket(values) for values in rows.fetchall()]


def dead_after(connection: Connection, number: int, limit: int) -> list[DeadTicket]:
    """Dead letters with their bodies, by their numbers, those above `number`."""
    rows = connection.execute(
        f"""SELECT {_DEAD_COLUMNS.format(body="body")} FROM tickets JOIN bodies USING (number)
            WHERE number > ? AND queue IN (?, ?) AND token IS NULL ORDER BY number LIMIT ?""",
        (number, DEAD_FAILED, DEAD_CRASHED, limit),
    )
    return [_dead_ticket(values) for values in rows.fetchall()]


def dead_one(connection: Connection, number: str) -> DeadTicket | None:
    rows = connection.execute(
        f"""SELECT {_DEAD_COLUMNS.format(body="body")} FROM tickets JOIN bodies USING (number)
            WHERE number = ? AND queue IN (?, ?) AND token IS NULL""",
        (_number(number), DEAD_FAILED, DEAD_CRASHED),
    )
    values = rows.fetchone()
    return None if values is None else _dead_ticket(values)


def _number(text: str) -> int:
    """The row of that number; one that no row has when it is none."""
    is_number = text.isascii() and text.isdigit() and len(text) < 19
    return int(text) if is_number else -1


def _dead_ticket(values: tuple[Any, ...]) -> DeadTicket:
    row = read_row(values[:13])
    reason, died_at, box = values[13:]
    return DeadTicket(
        number=str(row.number),
        ticket=row.ticket,
        queue=row.ticket.queue,
        reason=reason or "",
        died_at=moment(died_at),
        box=box,
    )


def retry_dead(connection: Connection, number: str, now: int) -> bool:
    row = connection.execute("SELECT died_in FROM tickets WHERE number = ? AND died_in IS NOT NULL", (_number(number),))
    if (found := row.fetchone()) is None:
        return False
    connection.execute(
        """UPDATE tickets SET queue = ?, attempt = 0, deliveries = 0, due_at = NULL, ready_at = ?, published_at = ?,
            died_in = NULL, reason = NULL WHERE number = ?""",
        (fresh_queue(found[0]), now, now, _number(number)),
    )
    return True


def drop_dead(connection: Connection, number: str, is_recorded: bool) -> bool:
    """What a person throws away is accounted for: by its receipt, where it is not by the store."""
    letter = dead_one(connection, number)
    if letter is None:
        return False
    connection.execute("DELETE FROM tickets WHERE number = ?", (_number(number),))
    promise = dropped_of(letter.ticket)
    if promise is not None and not is_recorded:
        receipt_table.note_dropped(connection, promise)
    return True


def names_after(connection: Connection, number: int, limit: int) -> tuple[int, list[Name]]:
    """What the tickets numbered above `number` stand for, as (kind, id), and the number of the last one looked at."""
    statement = f"SELECT number, id, coalesce(died_in, {_HOME}) FROM tickets WHERE number > ? ORDER BY number LIMIT ?"
    rows = connection.execute(statement, (number, limit)).fetchall()
    found = [(kind, id) for _, id, home in rows if (kind := kind_of(home)) is not None]
    return (rows[-1][0] if rows else number), found
