"""The queue engine with nothing to install: tickets in one SQLite file, shared by every process that opens it.

A holder of leases is one open broker; while it lives it keeps a lock on `<file>.lives/<holder>`, which the kernel lets go
when the process dies, however it dies.  Every consumer gives back the leases of the dead at its start and every two
seconds.  What is stored how is in `queue.sqlite_tables`.
Promises: those of `queue.broker`; a publish in one process wakes a consumer in another in about 1 ms.
Limits: those of `sqlite_file`; a subscriber that never comes keeps all its events; the topic
patterns of a subscription are replaced by the next `subscribe` of its name; the order in which tickets were published is
that of the clock.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from gateway.errors import LeaseLost, QueueUnavailable, StorageFault
from gateway.queue import sqlite_tables as tables
from gateway.queue.broker import DeadTicket, Depth, Done, Event, Lease, Outcome
from gateway.queue.receipts import Name, SqliteReceipts, promises_of
from gateway.queue.shares import Shares
from gateway.queue.sqlite_tables import Claim, Row, micros
from gateway.queue.ticket import Ticket, routed
from gateway.runtime import Clock, failpoint, utc_now
from gateway.sqlite_bells import Bell
from gateway.sqlite_file import PATIENCE_SECONDS, Connection, SqliteFile
from gateway.sqlite_turn import make_folder_beside, open_beside

T = TypeVar("T")

POLL_SECONDS = 0.25
MAX_REPLY_NAME = 200
LOOK_ROWS = 20_000
DEAD_AT_ONCE = 20


class SqliteBroker:
    """The `Broker` on one file, on one event loop; open it with `async with`."""

    def __init__(self, path: Path, *, clock: Clock = utc_now, reap_seconds: float = 2.0) -> None:
        """Every `reap_seconds` a consumer looks for leases whose time or holder is gone."""
        self._file = SqliteFile(path, prepare=tables.create_schema)
        self.receipts = SqliteReceipts(self._file)
        self._life = Life(path.with_name(path.name + ".lives"), of=path)
        self._clock = clock
        self._reap_seconds = reap_seconds

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
        now = micros(self._clock())
        rows = [tables.fields(routed(ticket), now) for ticket in tickets]
        work = partial(tables.keep, rows=rows, promises=promises_of(tickets), now=now)
        await self._write(work, size=sum(len(body) for _, body in rows), place="queue.publishing")
        failpoint("queue.published")

    async def publish_events(self, events: Sequence[Event]) -> None:
        now = micros(self._clock())
        size = sum(len(event.body) for event in events)
        await self._write(
            partial(tables.insert_events, events=events, now=now), size=size, place="queue.publishing_events"
        )

    @asynccontextmanager
    async def consume(
        self, queues: Mapping[str, int], *, concurrency: int, lease_seconds: float = 960
    ) -> AsyncIterator[_Consumer]:
        if not queues or min(queues.values()) < 1 or concurrency < 1:
            raise ValueError("a consumer needs queues with weights of at least 1, and a concurrency of at least 1")
        async with AsyncExitStack() as stack:
            bell = await self._hang_bell(stack)
            consumer = _Consumer(self, bell, queues=queues, concurrency=concurrency, lease_seconds=lease_seconds)
            stack.push_async_callback(consumer.close)
            yield consumer

    async def subscribe(self, name: str, patterns: Sequence[str]) -> str:
        queue = f"subscriber.{name}"
        await self._write(partial(tables.subscribe, queue=queue, patterns=patterns))
        return queue

    async def ask(self, ticket: Ticket, *, timeout_seconds: float) -> bytes:
        address = f"reply.{uuid.uuid4()}"
        question = replace(ticket, reply_to=address, correlation_id=ticket.correlation_id or str(uuid.uuid4()))
        async with AsyncExitStack() as stack:
            bell = await self._hang_bell(stack)
            await self.publish([question])
            async with asyncio.timeout(timeout_seconds):
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
        return await self._read(partial(tables.depths, now=micros(self._clock())))

    async def has_consumed_past(self, queue: str, published_at: datetime) -> bool:
        now, since = micros(self._clock()), micros(published_at)
        return await self._read(partial(tables.has_consumed_past, queue=queue, since=since, now=now))

    async def dead(self, *, limit: int = 1000) -> list[DeadTicket]:
        return await self._read(partial(tables.dead, limit=limit))

    async def all_dead(self) -> AsyncIterator[DeadTicket]:
        last = 0
        while letters := await self._read(partial(tables.dead_after, number=last, limit=DEAD_AT_ONCE)):
            for letter in letters:
                yield letter
            last = int(letters[-1].number)

    async def dead_one(self, number: str) -> DeadTicket | None:
        return await self._read(partial(tables.dead_one, number=number))

    async def retry_dead(self, number: str) -> bool:
        return await self._write(partial(tables.retry_dead, number=number, now=micros(self._clock())))

    async def drop_dead(self, number: str, *, is_recorded: bool = False) -> bool:
        return await self._write(partial(tables.drop_dead, number=number, is_recorded=is_recorded), rings=False)

    async def still_queued(self, names: Set[Name]) -> set[Name]:
        """Those of the (kind, id) that a ticket stands for now, wherever it lies: ready, leased, delayed, suspect or dead."""
        found: set[Name] = set()
        number, last = -1, 0
        while last > number:
            number = last
            last, bite = await self._read(partial(tables.names_after, number=number, limit=LOOK_ROWS))
            found |= names & set(bite)
        return found

    async def _look_for(self, address: str) -> bytes | None:
        """The answer at a reply address, taken away; None while there is none, or none can be read."""
        with suppress(QueueUnavailable):  # the question is published: only the clock ends the waiting
            found = await self._read(partial(tables.first_body, queue=address))
            if found is not None:
                self._file.write_soon(partial(tables.delete_queue, queue=address)).add_done_callback(_ignore)
            return found
        return None

    async def _hang_bell(self, stack: AsyncExitStack) -> Bell:
        try:
            return await stack.enter_async_context(self._file.bell())
        except StorageFault as error:
            raise QueueUnavailable(str(error)) from error

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
    """A row under a token, until it is settled or its consumer ends."""

    def __init__(self, consumer: _Consumer, row: Row) -> None:
        self._consumer = consumer
        self.row = row
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
        self._leased: deque[_SqliteLease] = deque()
        self._out: set[_SqliteLease] = set()
        self._acks: dict[asyncio.Future[bool], Row] = {}
        self._failed_acks: list[Row] = []
        self._doubtful_claims: list[str] = []
        self._claiming: asyncio.Task[float] | None = None
        self._reap_at = 0.0
        self._is_stopped = False
        self._is_paused = False

    def __aiter__(self) -> AsyncIterator[Lease]:
        return self

    async def __anext__(self) -> Lease:
        while not self._is_stopped:
            if self._is_paused:
                await self._give_back()
                await self._bell.wait(POLL_SECONDS)
            elif self._leased:
                failpoint("queue.leased")
                lease = self._leased.popleft()
                self._out.add(lease)
                return lease
            elif len(self._out) >= self._concurrency:
                await self._bell.wait(POLL_SECONDS)
            else:
                pause_seconds = await self._lease_more()
                if not self._leased:
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
        if isinstance(outcome, Done) and now < lease.row.lease_until:
            self._acknowledge(lease)
            return
        work = partial(tables.settle, row=lease.row, outcome=outcome, now=now)
        was_ours = await self._broker._write(work, place="queue.settling")
        failpoint("queue.settled")
        self._let_go(lease)
        if not was_ours:
            raise LeaseLost(f"{lease.ticket.queue} {lease.ticket.id} is somebody else's now")

    async def close(self) -> None:
        """Sees the acks through and gives back what is still out; what cannot be written comes back by itself in time."""
        self.stop()
        if self._claiming is not None:
            await asyncio.wait([self._claiming])
        if self._acks:
            await asyncio.wait(list(self._acks), timeout=PATIENCE_SECONDS)
            await asyncio.sleep(0)  # their callbacks come first
        for lease in self._out:
            lease.is_over = True
        self._leased.extend(self._out)
        self._out.clear()
        with suppress(QueueUnavailable):  # the leases end with their time, or with this process
            await self._give_back()

    def _acknowledge(self, lease: _SqliteLease) -> None:
        """The ticket goes with the next commit; a failed ack is repeated with the next claim."""
        failpoint("queue.acknowledging")
        try:
            future = self._broker._file.write_soon(partial(tables.done, row=lease.row))
        except StorageFault as error:
            raise QueueUnavailable(str(error)) from error
        self._acks[future] = lease.row
        future.add_done_callback(self._on_ack)
        self._let_go(lease)

    def _on_ack(self, future: asyncio.Future[bool]) -> None:
        row = self._acks.pop(future)
        if future.cancelled() or future.exception() is not None:
            self._failed_acks.append(row)

    def _let_go(self, lease: _SqliteLease) -> None:
        lease.is_over = True
        self._out.discard(lease)
        self._bell.ring()

    async def _give_back(self) -> None:
        rows = [lease.row for lease in self._leased]
        if rows or self._failed_acks or self._doubtful_claims:
            await self._write_with_debts(partial(_release_all, rows=rows), rings=True, place="queue.releasing")
            self._leased.clear()

    async def _lease_more(self) -> float:
        # A claim commits in another thread whether its caller still waits or not, so it is not cancelled with it.
        if self._claiming is None:
            self._claiming = asyncio.create_task(self._claim(self._concurrency - len(self._out)))
        claiming = self._claiming
        try:
            return await asyncio.shield(claiming)
        finally:
            if claiming.done():
                self._claiming = None

    async def _claim(self, wanted: int) -> float:
        """Leases up to `wanted` tickets; returns how long to wait when there were none."""
        now = self._now()
        claim = Claim(token=uuid.uuid4().hex, holder=self._broker._life.name, until=now + self._lease_micros)
        reaps = time.monotonic() >= self._reap_at
        work = partial(self._take, claim=claim, now=now, wanted=wanted, reaps=reaps)
        try:
            rows, next_at = await self._write_with_debts(work, rings=False, place="queue.claiming")
        except QueueUnavailable:
            self._doubtful_claims.append(claim.token)  # it may have been committed after all
            raise
        if reaps:
            self._reap_at = time.monotonic() + self._broker._reap_seconds
        self._leased.extend(_SqliteLease(self, row) for row in rows)
        if next_at is None:
            return POLL_SECONDS
        return min(POLL_SECONDS, max(0.0, (next_at - now) / 1_000_000))

    def _take(
        self, connection: Connection, *, claim: Claim, now: int, wanted: int, reaps: bool
    ) -> tuple[list[Row], int | None]:
        """In the writer's thread, while the loop leaves the shares alone: the rows, or when the next one is due."""
        if reaps:
            tables.reap(connection, self._broker._life.is_over, now)
            tables.make_ready(connection, self._shares.names, now)
        waiting = {name: tables.ready_numbers(connection, name, now, wanted) for name in self._shares.names}
        numbers = self._shares.pick(waiting, wanted)
        if not numbers:
            return [], tables.next_ready_at(connection, self._shares.names)
        return [tables.lease(connection, number, claim) for number in numbers], None

    async def _write_with_debts(self, work: Callable[[Connection], T], *, rings: bool, place: str) -> T:
        """Writes, and first repeats what could not be written when it was said; harmless where it was after all."""
        acks, tokens = list(self._failed_acks), list(self._doubtful_claims)

        def catch_up(connection: Connection) -> T:
            for row in acks:
                tables.done(connection, row)
            for token in tokens:
                tables.release_claim(connection, self._broker._life.name, token)
            return work(connection)

        result = await self._broker._write(catch_up, rings=rings, place=place)
        del self._failed_acks[: len(acks)], self._doubtful_claims[: len(tokens)]
        return result

    def _now(self) -> int:
        return micros(self._broker._clock())


def _release_all(connection: Connection, rows: Sequence[Row]) -> None:
    for row in rows:
        tables.release(connection, row)


class Life:
    """A lock that lives as long as this process has the broker open; by it others know its leases are worth something."""

    def __init__(self, folder: Path, *, of: Path) -> None:
        self._folder = folder
        self._of = of
        self._number = -1
        self.name = ""

    def begin(self) -> None:
        make_folder_beside(self._folder, self._of)
        for name in os.listdir(self._folder):
            self.is_over(name)
        while self._number < 0:
            self.name = uuid.uuid4().hex
            self._number = open_beside(self._folder / self.name, self._of)
            fcntl.flock(self._number, fcntl.LOCK_EX)
            if not (self._folder / self.name).exists():  # taken for dead between its making and its lock
                self.end()

    def end(self) -> None:
        if self._number >= 0:
            with suppress(OSError):
                os.unlink(self._folder / self.name)
            os.close(self._number)
            self._number = -1

    def others(self) -> list[str]:
        """The other holders that live: processes that have this queue open now."""
        return [name for name in os.listdir(self._folder) if name != self.name and not self.is_over(name)]

    def is_over(self, name: str) -> bool:
        """Whether the holder of that name is dead; its file goes with it.

        One we may not ask, since it is another user's, counts as alive: its leases end with their time.
        """
        if name == self.name and self._number >= 0:
            return False
        try:
            number = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(self._folder / name)
        except FileNotFoundError:
            pass  # another saw it, too
        except OSError:  # BlockingIOError: it is held, its holder lives
            return False
        finally:
            os.close(number)
        return True


def _ignore(future: asyncio.Future[Any]) -> None:
    """Looks at the outcome so that asyncio does not: an answer left lying is cleared away in time."""
    if not future.cancelled():
        future.exception()
