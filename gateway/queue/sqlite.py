"""The queue engine with nothing to install: tickets in one SQLite file, shared by every process that opens it.

A row in `tickets` is ready (no token), or leased: token, holder and `lease_until` say by whom and how long.  Bodies lie in
a table of their own, so that leasing a ticket does not write its body again.  Dead letters are rows of the dead queues.
A holder is one open broker; while it lives it keeps a lock on `<file>.lives/<holder>`, which the kernel lets go when the
process dies, however it dies.  Every consumer gives back the leases of the dead at its start and every two seconds.
Promises: those of `queue.broker`; a publish in one process wakes a consumer in another in about 1 ms.
Limits: those of `sqlite_file`; any queue name is taken; a subscriber that never comes keeps all its events; the topic
patterns of a subscription are replaced by the next `subscribe` of its name.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from gateway.errors import LeaseLost, QueueUnavailable, StorageFault
from gateway.queue.broker import DELIVERY_LIMIT, Dead, DeadTicket, Depth, Done, Event, Later, Lease, Outcome
from gateway.queue.ticket import (
    DEAD_CRASHED,
    DEAD_FAILED,
    WORK_QUEUES,
    Ticket,
    fresh_queue,
    retry_queue,
)
from gateway.runtime import Clock, failpoint, utc_now
from gateway.sqlite_file import Bell, Connection, SqliteFile

T = TypeVar("T")

POLL_SECONDS = 0.25
REAP_SECONDS = 2.0
REPLY_KEPT_SECONDS = 3600
MAX_REPLY_NAME = 200
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
_COLUMNS = """number, queue, id, content_type, headers, attempt, due_at, reply_to, correlation_id, app, published_at,
    deliveries, body"""
_SELECT = f"SELECT {_COLUMNS} FROM tickets JOIN bodies USING (number) "
_UNLEASED = "token = NULL, holder = NULL, lease_until = NULL"
_MINE = "WHERE number = ? AND token = ?"


class SqliteBroker:
    """The `Broker` on one file, on one event loop; open it with `async with`."""

    def __init__(self, path: Path, *, clock: Clock = utc_now) -> None:
        self._file = SqliteFile(path, prepare=_create_schema)
        self._life = _Life(path.with_name(path.name + ".lives"))
        self._clock = clock

    async def open(self) -> None:
        """Opens or creates the file; raises QueueUnavailable."""
        try:
            await self._file.open()
            self._life.begin()
        except (StorageFault, OSError) as error:
            await self.close()
            raise QueueUnavailable(str(error)) from error

    async def close(self) -> None:
        await self._file.close()
        self._life.end()

    async def __aenter__(self) -> SqliteBroker:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def publish(self, tickets: Sequence[Ticket]) -> None:
        rows = [_row(ticket, _micros(self._clock())) for ticket in tickets]
        await self._write(
            partial(_insert, rows=rows), size=sum(len(body) for _, body in rows), place="queue.publishing"
        )
        failpoint("queue.published")

    async def publish_events(self, events: Sequence[Event]) -> None:
        now = _micros(self._clock())
        size = sum(len(event.body) for event in events)
        await self._write(partial(_insert_events, events=events, now=now), size=size, place="queue.publishing_events")

    @asynccontextmanager
    async def consume(
        self, queues: Mapping[str, int], *, concurrency: int, lease_seconds: float = 960
    ) -> AsyncIterator[_Consumer]:
        if not queues or min(queues.values()) < 1 or concurrency < 1:
            raise ValueError("a consumer needs queues with weights of at least 1, and a concurrency of at least 1")
        try:
            bell = await self._file.bell().__aenter__()
        except StorageFault as error:
            raise QueueUnavailable(str(error)) from error
        consumer = _Consumer(self, bell, queues=queues, concurrency=concurrency, lease_seconds=lease_seconds)
        try:
            yield consumer
        finally:
            try:
                await consumer.close()
            finally:
                await bell.__aexit__(None, None, None)

    async def subscribe(self, name: str, patterns: Sequence[str]) -> str:
        queue = f"subscriber.{name}"
        await self._write(partial(_subscribe, queue=queue, patterns=patterns))
        return queue

    async def ask(self, ticket: Ticket, *, timeout_seconds: float) -> bytes:
        address = f"reply.{uuid.uuid4()}"
        asking = _with_reply(ticket, address)
        async with asyncio.timeout(timeout_seconds), self._file.bell() as bell:
            await self.publish([asking])
            while (answer := await self._look_for(address)) is None:
                await bell.wait(POLL_SECONDS)
        return answer

    async def answer(self, ticket: Ticket, body: bytes) -> None:
        address = ticket.reply_to or ""
        if not address.startswith("reply.") or len(address) > MAX_REPLY_NAME:
            return
        reply = Ticket(queue=address, id=ticket.id, body=body, correlation_id=ticket.correlation_id)
        await self.publish([reply])

    async def depths(self) -> list[Depth]:
        return await self._read(partial(_depths, now=_micros(self._clock())))

    async def has_consumed_past(self, queue: str, published_at: datetime) -> bool:
        now, since = _micros(self._clock()), _micros(published_at)
        return await self._read(partial(_has_consumed_past, queue=queue, since=since, now=now))

    async def dead(self, *, limit: int = 1000) -> list[DeadTicket]:
        return await self._read(partial(_dead, limit=limit))

    async def retry_dead(self, number: str) -> bool:
        return await self._write(partial(_retry_dead, number=number, now=_micros(self._clock())))

    async def drop_dead(self, number: str) -> bool:
        return await self._write(partial(_drop_dead, number=number), rings=False)

    async def _look_for(self, address: str) -> bytes | None:
        """The answer at a reply address, taken away; None while there is none, or none can be read."""
        with suppress(QueueUnavailable):  # the question is published: only the clock ends the waiting
            found = await self._read(partial(_first_body, queue=address))
            if found is not None:
                self._file.write_soon(partial(_delete_queue, queue=address)).add_done_callback(_ignore)
            return found
        return None

    async def _write(
        self, work: Callable[[Connection], T], *, rings: bool = True, size: int = 0, place: str = "queue.writing"
    ) -> T:
        try:
            failpoint(place)
            return await self._file.write(work, rings=rings, size=size)
        except (StorageFault, OSError) as error:
            raise QueueUnavailable(str(error)) from error

    async def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            return await self._file.read(work)
        except StorageFault as error:
            raise QueueUnavailable(str(error)) from error


class _SqliteLease:
    """A row under a token."""

    def __init__(self, consumer: _Consumer, row: _Row, *, token: str, until: int) -> None:
        self._consumer = consumer
        self.row = row
        self.token = token
        self.until = until
        self.is_over = False

    @property
    def ticket(self) -> Ticket:
        return self.row.ticket

    @property
    def delivery_count(self) -> int:
        return self.row.deliveries

    async def settle(self, outcome: Outcome) -> None:
        if self.is_over:
            raise LeaseLost(f"the lease on {self.ticket.queue} {self.ticket.id} is over")
        await self._consumer.settle(self, outcome)


class _Consumer:
    """Leases as many tickets as there is room for, in one transaction; waits for the bell when there are none."""

    def __init__(
        self, broker: SqliteBroker, bell: Bell, *, queues: Mapping[str, int], concurrency: int, lease_seconds: float
    ) -> None:
        self._broker = broker
        self._bell = bell
        self._shares = Shares(queues)
        self._concurrency = concurrency
        self._lease_micros = int(lease_seconds * 1_000_000)
        self._ready: deque[_SqliteLease] = deque()
        self._out: set[_SqliteLease] = set()
        self._acks: dict[asyncio.Future[bool], _SqliteLease] = {}
        self._failed_acks: list[_SqliteLease] = []
        self._doubtful_tokens: list[str] = []
        self._claiming: asyncio.Task[float] | None = None
        self._reap_at = 0.0
        self._is_stopped = False
        self._is_paused = False

    def __aiter__(self) -> AsyncIterator[Lease]:
        return self

    async def __anext__(self) -> Lease:
        while not self._is_stopped:
            if self._is_paused:
                await self._give_back(self._ready)
                await self._bell.wait(POLL_SECONDS)
            elif self._ready:
                failpoint("queue.leased")
                lease = self._ready.popleft()
                self._out.add(lease)
                return lease
            elif len(self._out) >= self._concurrency:
                await self._bell.wait(POLL_SECONDS)
            else:
                pause_seconds = await self._lease_more()
                if not self._ready:
                    await self._bell.wait(pause_seconds)
        raise StopAsyncIteration

    def stop(self) -> None:
        self._is_stopped = True
        self._bell.ring()

    def pause(self) -> None:
        self._is_paused = True
        self._bell.ring()

    def resume(self) -> None:
        self._is_paused = False
        self._bell.ring()

    async def settle(self, lease: _SqliteLease, outcome: Outcome) -> None:
        now = self._now()
        if isinstance(outcome, Done) and now < lease.until:
            self._acknowledge(lease)
        else:
            work = partial(_settle, lease=lease, outcome=outcome, now=now)
            was_ours = await self._broker._write(work, place="queue.settling")
            failpoint("queue.settled")
            self._let_go(lease)
            if not was_ours:
                raise LeaseLost(f"the ticket {lease.ticket.id} of {lease.ticket.queue} is somebody else's now")

    async def close(self) -> None:
        """Sees the acks through and gives back what is still out; what cannot be written comes back in time by itself."""
        self.stop()
        if self._claiming is not None:
            await asyncio.gather(self._claiming, return_exceptions=True)
        if self._acks:
            await asyncio.gather(*self._acks, return_exceptions=True)
            await asyncio.sleep(0)  # their callbacks run first
        for lease in self._out:
            lease.is_over = True
        held = [*self._ready, *self._out]
        with suppress(QueueUnavailable):  # the leases end with their time, or with this process
            if held or self._failed_acks or self._doubtful_tokens:
                await self._broker._write(partial(self._let_go_of_all, held=held))
        self._ready.clear()
        self._out.clear()

    def _let_go_of_all(self, connection: Connection, held: Iterable[_SqliteLease]) -> None:
        self._catch_up(connection)
        for lease in held:
            _release(connection, lease.row.number, lease.token)

    def _acknowledge(self, lease: _SqliteLease) -> None:
        """The ticket goes with the next commit; a failed ack is repeated with the next claim."""
        failpoint("queue.acknowledging")
        try:
            future = self._broker._file.write_soon(partial(_done, lease=lease))
        except StorageFault as error:
            raise QueueUnavailable(str(error)) from error
        self._acks[future] = lease
        future.add_done_callback(self._on_ack)
        self._let_go(lease)

    def _on_ack(self, future: asyncio.Future[bool]) -> None:
        lease = self._acks.pop(future)
        if future.cancelled() or future.exception() is not None:
            self._failed_acks.append(lease)

    def _let_go(self, lease: _SqliteLease) -> None:
        lease.is_over = True
        self._out.discard(lease)
        self._bell.ring()

    async def _give_back(self, leases: deque[_SqliteLease]) -> None:
        if leases:
            await self._broker._write(partial(self._let_go_of_all, held=list(leases)))
            leases.clear()

    async def _lease_more(self) -> float:
        # A claim commits in another thread whether its caller still waits or not, so it must not be cancelled with it.
        if self._claiming is None:
            self._claiming = asyncio.create_task(self._claim(self._concurrency - len(self._out)))
        claiming = self._claiming
        try:
            return await asyncio.shield(claiming)
        finally:
            if claiming.done():
                self._claiming = None

    async def _claim(self, wanted: int) -> float:
        """Leases up to `wanted` tickets into `_ready`; returns how long to wait when there were none."""
        claim = _Claim(
            token=uuid.uuid4().hex, holder=self._broker._life.name, now=self._now(), lease_micros=self._lease_micros
        )
        reaps = time.monotonic() >= self._reap_at
        try:
            rows, next_at = await self._broker._write(
                partial(self._transact, claim=claim, wanted=wanted, reaps=reaps), rings=False, place="queue.claiming"
            )
        except QueueUnavailable:
            self._doubtful_tokens.append(claim.token)  # it may have been committed after all
            raise
        if reaps:
            self._reap_at = time.monotonic() + REAP_SECONDS
        self._ready += [_SqliteLease(self, row, token=claim.token, until=claim.until) for row in rows]
        if next_at is None:
            return POLL_SECONDS
        return min(POLL_SECONDS, max(0.0, (next_at - claim.now) / 1_000_000))

    def _transact(
        self, connection: Connection, *, claim: _Claim, wanted: int, reaps: bool
    ) -> tuple[list[_Row], int | None]:
        """In the writer's thread; the loop waits meanwhile and touches neither the shares nor the debts."""
        self._catch_up(connection)
        if reaps:
            _reap(connection, self._broker._life, claim.now)
        waiting = {name: _ready_numbers(connection, name, claim.now, wanted) for name in self._shares.names}
        numbers = self._shares.pick(waiting, wanted)
        if not numbers:
            return [], _next_ready_at(connection, self._shares.names)
        return [_lease(connection, number, claim) for number in numbers], None

    def _catch_up(self, connection: Connection) -> None:
        """Repeats what could not be written when it was said; harmless when it was written after all."""
        for lease in self._failed_acks:
            _done(connection, lease)
        for token in self._doubtful_tokens:
            _release_claim(connection, self._broker._life.name, token)
        self._failed_acks, self._doubtful_tokens = [], []

    def _now(self) -> int:
        return _micros(self._broker._clock())


class Shares:
    """Smooth weighted round robin over the queues that have something: none starves, none is strictly first."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)
        self._credits = dict.fromkeys(weights, 0)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._weights)

    def pick(self, waiting: Mapping[str, Sequence[T]], wanted: int) -> list[T]:
        """Takes up to `wanted` from the front of the lines, by weight; the credits go on from call to call."""
        lines = {name: deque(line) for name, line in waiting.items() if line}
        picked: list[T] = []
        while lines and len(picked) < wanted:
            for name in lines:
                self._credits[name] += self._weights[name]
            name = max(lines, key=self._credits.__getitem__)
            self._credits[name] -= sum(self._weights[other] for other in lines)
            picked.append(lines[name].popleft())
            if not lines[name]:
                del lines[name]
        return picked


class _Life:
    """A lock that lives as long as this process has the broker open; by it others know its leases are worth something."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = -1
        self.name = ""

    def begin(self) -> None:
        self._folder.mkdir(exist_ok=True)
        for name in os.listdir(self._folder):
            self.is_over(name)
        while self._number < 0:
            self.name = uuid.uuid4().hex
            self._number = os.open(self._folder / self.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
            fcntl.flock(self._number, fcntl.LOCK_EX)
            if not (self._folder / self.name).exists():  # taken for dead between its making and its lock
                self.end()

    def end(self) -> None:
        if self._number >= 0:
            with suppress(OSError):
                os.unlink(self._folder / self.name)
            os.close(self._number)
            self._number = -1

    def is_over(self, name: str) -> bool:
        """Whether the holder of that name is dead; its file goes with it."""
        if name == self.name and self._number >= 0:
            return False
        try:
            number = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(self._folder / name)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            pass  # another saw it, too
        finally:
            os.close(number)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A ticket as it lies in the file."""

    number: int
    ticket: Ticket
    published_at: int
    deliveries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """What a batch of leases has in common."""

    token: str
    holder: str
    now: int
    lease_micros: int

    @property
    def until(self) -> int:
        return self.now + self.lease_micros


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _ignore(future: asyncio.Future[Any]) -> None:
    """Looks at the outcome so that asyncio does not: an answer left lying is cleared away in time."""
    if not future.cancelled():
        future.exception()


# What follows runs in the writer's or the reader's thread, inside a transaction.


def _create_schema(connection: Connection) -> None:
    for statement in _SCHEMA:
        connection.execute(statement)


def _with_reply(ticket: Ticket, address: str) -> Ticket:
    from dataclasses import replace

    return replace(ticket, reply_to=address, correlation_id=ticket.correlation_id or str(uuid.uuid4()))


def _row(ticket: Ticket, now: int) -> tuple[tuple[Any, ...], bytes]:
    due_at = None if ticket.due_at is None else _micros(ticket.due_at)
    headers = json.dumps(dict(ticket.headers), ensure_ascii=True, separators=(",", ":"))
    row = (ticket.queue, ticket.id, ticket.content_type, headers, ticket.attempt, due_at)
    row += (ticket.reply_to, ticket.correlation_id, ticket.app, now, now if due_at is None else due_at)
    return row, ticket.body


def _insert(connection: Connection, rows: Iterable[tuple[tuple[Any, ...], bytes]]) -> None:
    for row, body in rows:
        number = connection.execute(_INSERT, row).lastrowid
        connection.execute("INSERT INTO bodies (number, body) VALUES (?, ?)", (number, body))


def _insert_events(connection: Connection, events: Iterable[Event], now: int) -> None:
    bindings = connection.execute("SELECT queue, pattern FROM subscriptions").fetchall()
    for event in events:
        for queue in dict.fromkeys(queue for queue, pattern in bindings if topic_matches(pattern, event.key)):
            copy = Ticket(
                queue=queue, id=event.id, body=event.body, content_type=_EVENT_TYPE, headers={"key": event.key}
            )
            _insert(connection, [_row(copy, now)])


def _subscribe(connection: Connection, queue: str, patterns: Iterable[str]) -> None:
    connection.execute("DELETE FROM subscriptions WHERE queue = ?", (queue,))
    for pattern in dict.fromkeys(patterns):
        connection.execute("INSERT INTO subscriptions VALUES (?, ?)", (queue, pattern))


def topic_matches(pattern: str, key: str) -> bool:
    """Whether a key of words parted by dots matches: `*` is one word, `#` any number of them, none included."""
    return _topic_expression(pattern).fullmatch("." + key) is not None


@lru_cache(maxsize=1000)
def _topic_expression(pattern: str) -> re.Pattern[str]:
    parts = {"*": r"\.[^.]*", "#": r"(?:\.[^.]*)*+"}
    words = pattern.split(".")
    merged = [word for index, word in enumerate(words) if word != "#" or index == 0 or words[index - 1] != "#"]
    parts["#"] = r"(?:\.[^.]*)*"
    return re.compile("".join(parts.get(word, r"\." + re.escape(word)) for word in merged))


def _first_body(connection: Connection, queue: str) -> bytes | None:
    row = connection.execute(_SELECT + "WHERE queue = ? AND token IS NULL LIMIT 1", (queue,)).fetchone()
    return None if row is None else _read_row(row).ticket.body


def _delete_queue(connection: Connection, queue: str) -> None:
    connection.execute("DELETE FROM tickets WHERE queue = ? AND token IS NULL", (queue,))


def _read_row(values: tuple[Any, ...]) -> _Row:
    number, queue, id, content_type, headers, attempt, due_at, reply_to, correlation_id, app = values[:10]
    published_at, deliveries, body = values[10:]
    ticket = Ticket(
        queue=queue,
        id=id,
        body=body,
        content_type=content_type,
        headers=json.loads(headers),
        attempt=attempt,
        due_at=None if due_at is None else _moment(due_at),
        reply_to=reply_to,
        correlation_id=correlation_id,
        app=app,
    )
    return _Row(number=number, ticket=ticket, published_at=published_at, deliveries=deliveries)


def _ready_numbers(connection: Connection, queue: str, now: int, wanted: int) -> list[int]:
    statement = (
        "SELECT number FROM tickets WHERE queue = ? AND token IS NULL AND ready_at <= ? ORDER BY ready_at LIMIT ?"
    )
    return [number for (number,) in connection.execute(statement, (queue, now, wanted))]


def _next_ready_at(connection: Connection, queues: Iterable[str]) -> int | None:
    statement = "SELECT min(ready_at) FROM tickets WHERE queue = ? AND token IS NULL"
    found = [connection.execute(statement, (queue,)).fetchone()[0] for queue in queues]
    return min((moment for moment in found if moment is not None), default=None)


def _lease(connection: Connection, number: int, claim: _Claim) -> _Row:
    row = _read_row(connection.execute(_SELECT + "WHERE number = ?", (number,)).fetchone())
    connection.execute(
        "UPDATE tickets SET deliveries = deliveries + 1, token = ?, holder = ?, lease_until = ? WHERE number = ?",
        (claim.token, claim.holder, claim.until, number),
    )
    return row


def _settle(connection: Connection, lease: _SqliteLease, outcome: Outcome, now: int) -> bool:
    """Writes down how a lease ended; False when it was no longer ours."""
    if isinstance(outcome, Done):
        return _done(connection, lease)
    if isinstance(outcome, Later):
        return _later(connection, lease, outcome, now)
    if isinstance(outcome, Dead):
        return _bury(connection, lease, outcome.reason, now)
    return _release(connection, lease.row.number, lease.token)


def _done(connection: Connection, lease: _SqliteLease) -> bool:
    mine = (lease.row.number, lease.token)
    if connection.execute(f"DELETE FROM tickets {_MINE}", mine).rowcount != 1:
        return False
    _note_consumed(connection, lease)
    return True


def _later(connection: Connection, lease: _SqliteLease, outcome: Later, now: int) -> bool:
    """The retry is a new publish of the same ticket, as it is on every engine."""
    at = _micros(outcome.at)
    cursor = connection.execute(
        f"""UPDATE tickets SET queue = ?, attempt = attempt + ?, due_at = ?, ready_at = ?, published_at = ?,
            deliveries = 0, {_UNLEASED} {_MINE}""",
        (retry_queue(lease.ticket.queue), int(outcome.climbs), at, at, now, lease.row.number, lease.token),
    )
    if cursor.rowcount != 1:
        return False
    _note_consumed(connection, lease)
    return True


def _bury(connection: Connection, lease: _SqliteLease, reason: str, now: int) -> bool:
    cursor = connection.execute(
        f"UPDATE tickets SET died_in = queue, queue = ?, reason = ?, ready_at = ?, {_UNLEASED} {_MINE}",
        (DEAD_FAILED, reason, now, lease.row.number, lease.token),
    )
    if cursor.rowcount != 1:
        return False
    _note_consumed(connection, lease)
    return True


def _release(connection: Connection, number: int, token: str) -> bool:
    statement = f"UPDATE tickets SET deliveries = deliveries - 1, {_UNLEASED} {_MINE}"
    return connection.execute(statement, (number, token)).rowcount == 1


def _release_claim(connection: Connection, holder: str, token: str) -> None:
    statement = f"UPDATE tickets SET deliveries = deliveries - 1, {_UNLEASED} WHERE holder = ? AND token = ?"
    connection.execute(statement, (holder, token))


def _note_consumed(connection: Connection, lease: _SqliteLease) -> None:
    connection.execute(
        "INSERT INTO consumed VALUES (?, ?) ON CONFLICT DO UPDATE SET youngest = max(youngest, excluded.youngest)",
        (lease.ticket.queue, lease.row.published_at),
    )


def _reap(connection: Connection, life: _Life, now: int) -> None:
    """Gives back the leases whose time or holder is gone, and clears away answers nobody came for."""
    holders = connection.execute("SELECT DISTINCT holder FROM tickets WHERE token IS NOT NULL").fetchall()
    for (holder,) in holders:
        until = 2**62 if life.is_over(holder) else now
        _end_without_a_word(connection, holder, until, now)
    connection.execute(
        "DELETE FROM tickets WHERE queue >= 'reply.' AND queue < 'reply/' AND token IS NULL AND ready_at < ?",
        (now - REPLY_KEPT_SECONDS * 1_000_000,),
    )


def _end_without_a_word(connection: Connection, holder: str, until: int, now: int) -> None:
    of_holder = "WHERE token IS NOT NULL AND holder = ? AND lease_until <= ?"
    reason = f"{DELIVERY_LIMIT} leases ended without a word: whoever works on it dies or hangs"
    connection.execute(
        f"UPDATE tickets SET died_in = queue, queue = ?, reason = ?, ready_at = ?, {_UNLEASED} {of_holder} AND deliveries >= ?",
        (DEAD_CRASHED, reason, now, holder, until, DELIVERY_LIMIT),
    )
    connection.execute(f"UPDATE tickets SET {_UNLEASED} {of_holder}", (holder, until))


def _depths(connection: Connection, now: int) -> list[Depth]:
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


def _has_consumed_past(connection: Connection, queue: str, since: int, now: int) -> bool:
    row = connection.execute("SELECT youngest FROM consumed WHERE queue = ?", (queue,)).fetchone()
    if row is not None and row[0] > since:
        return True
    ready = "SELECT 1 FROM tickets WHERE queue = ? AND token IS NULL AND ready_at <= ? LIMIT 1"
    leased = "SELECT 1 FROM tickets WHERE token IS NOT NULL AND queue = ? LIMIT 1"
    if connection.execute(ready, (queue, now)).fetchone() is not None:
        return False
    return connection.execute(leased, (queue,)).fetchone() is None


def _dead(connection: Connection, limit: int) -> list[DeadTicket]:
    rows = connection.execute(
        f"""SELECT {_COLUMNS.replace("queue,", "died_in,", 1)}, reason, ready_at FROM tickets JOIN bodies USING (number)
            WHERE queue IN (?, ?) AND token IS NULL ORDER BY ready_at, number LIMIT ?""",
        (DEAD_FAILED, DEAD_CRASHED, limit),
    )
    return [_dead_ticket(values) for values in rows.fetchall()]


def _dead_ticket(values: tuple[Any, ...]) -> DeadTicket:
    row = _read_row(values[:13])
    reason, died_at = values[13:]
    return DeadTicket(
        number=str(row.number), ticket=row.ticket, queue=row.ticket.queue, reason=reason or "", died_at=_moment(died_at)
    )


def _retry_dead(connection: Connection, number: str, now: int) -> bool:
    if not number.isascii() or not number.isdigit():
        return False
    row = connection.execute("SELECT died_in FROM tickets WHERE number = ? AND died_in IS NOT NULL", (int(number),))
    if (found := row.fetchone()) is None:
        return False
    connection.execute(
        """UPDATE tickets SET queue = ?, attempt = 0, deliveries = 0, due_at = NULL, ready_at = ?, published_at = ?,
            died_in = NULL, reason = NULL WHERE number = ?""",
        (fresh_queue(found[0]), now, now, int(number)),
    )
    return True


def _drop_dead(connection: Connection, number: str) -> bool:
    if not number.isascii() or not number.isdigit():
        return False
    return (
        connection.execute("DELETE FROM tickets WHERE number = ? AND died_in IS NOT NULL", (int(number),)).rowcount == 1
    )
