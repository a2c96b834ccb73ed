"""The store's verbs on SQLite, on PostgreSQL, and the plain way: one process, `IN_FLIGHT` emails and mails under way at once.

An email is accepted, claimed, its dot journaled, relayed: four verbs; a mail is received and delivered: two.  The plain way is
what an ORM does by itself: the same rows, each object added, one session and one transaction a verb, on the same server.
`batched` gathers the verbs that wait into one transaction of one connection, as the SQLite file does; `notify inside` sends
NOTIFY within each transaction.  Both are here to show why the store does neither.  Needs Debian's postgresql.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import registry

from gateway.contract.email_send import SendEmail
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.reply import Reply
from gateway.runtime import utc_now
from gateway.store import schema
from gateway.store.blobs import FileBlobStore
from gateway.store.database import Database, open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.ledger import Claim
from gateway.store.mails import Mails
from gateway.store.postgresql import PostgresDatabase
from gateway.store.posts import NewPost

SECONDS = float(os.environ.get("BENCH_SECONDS", "6"))
IN_FLIGHT = 50
OK = Reply(code=250, enhanced_status="2.0.0", text="ok")
VERBS = 6
ROUNDS = 6
Work = Callable[[], Awaitable[None]]


class Batched:
    """One connection; whatever waits meanwhile rides in one transaction, in a savepoint each."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def write(self, work: Any, *, rings: bool = True, size: int = 0) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            for future, result in zip([item[1] for item in batch], await self._commit(batch), strict=True):
                future.set_result(result)

    async def _commit(self, batch: list[tuple[Any, asyncio.Future[Any]]]) -> list[Any]:
        def work(connection: sa.Connection) -> list[Any]:
            results = []
            for each, _ in batch:
                with connection.begin_nested():
                    results.append(each(connection))
            return results

        return await self._database.write(work)


class NotifyInside:
    """NOTIFY in the recording transaction."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def write(self, work: Any, *, rings: bool = True, size: int = 0) -> Any:
        def told(connection: sa.Connection) -> Any:
            result = work(connection)
            connection.exec_driver_sql("NOTIFY gateway")
            return result

        return await self._database.write(told, rings=False)


async def one_round(ledger: DatabaseLedger, mails: Mails) -> None:
    email = SendEmail(id=new_id(), to=("ann@example.org",), subject="s", text="t" * 2000)
    await ledger.record_accepted(
        email, app="", content_hash="h", ticket_id="t", stream="normal", message_id=f"<{email.id}@mx.test>"
    )
    claim = await ledger.claim(email.id, "ann@example.org", ticket_id="t", lifetime_seconds=60)
    assert isinstance(claim, Claim)
    await ledger.record_dot_sent(claim)
    await ledger.record_relayed(claim, relay="r", reply=OK)
    now = utc_now()
    arrived = Envelope(
        mail_id=new_id(), mail_from="a@b.example", rcpt_to=("p@localhost",), received_at=now, door="smtp"
    )
    await mails.record_received(arrived, b"x" * 4096, 4096, "0")
    post = NewPost(
        mailbox="p@localhost",
        kind="posts",
        author="",
        author_address="",
        title="t",
        text="x" * 2000,
        html=None,
        created_at=now,
    )
    await mails.record_delivered(arrived.mail_id, "p@localhost", "p@localhost", post)


@dataclass
class Tally:
    """What one way did in all its turns."""

    verbs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


async def measure(work: Callable[[], Awaitable[None]], tally: Tally, seconds: float) -> None:
    """Adds what `IN_FLIGHT` at once do in so many seconds."""

    async def worker() -> None:
        while time.monotonic() < end:
            await work()
            tally.verbs += VERBS

    begun, cpu = time.monotonic(), time.process_time()
    end = begun + seconds
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    tally.seconds += time.monotonic() - begun
    tally.cpu_seconds += time.process_time() - cpu


@asynccontextmanager
async def ours(url: str, wrap: Callable[[Any], Any] = lambda database: database) -> AsyncIterator[Work]:
    database: Database = await open_database(url)
    with tempfile.TemporaryDirectory() as folder:
        facts = {"clock": utc_now, "hostname": "mx.test"}
        ledger = DatabaseLedger(wrap(database), FileBlobStore(Path(folder)), **facts)
        mails = Mails(wrap(database), FileBlobStore(Path(folder)), **facts)
        yield lambda: one_round(ledger, mails)
    await database.close()


def _classes() -> dict[str, Any]:
    mapped = registry()
    names = (
        "emails",
        "email_octets",
        "email_recipients",
        "mails",
        "mail_octets",
        "deliveries",
        "posts",
        "timeline",
        "outbox",
    )
    return {
        name: mapped.map_imperatively(type(name, (), {"__init__": _fill}), schema.metadata.tables[name]).class_
        for name in names
    }


def _fill(self: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(self, name, value)


@asynccontextmanager
async def plain(url: str) -> AsyncIterator[Work]:
    kinds = _classes()
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://").partition("?")[0], pool_size=8)
    session_of = async_sessionmaker(engine)

    def told(subject: str, step: str) -> list[Any]:
        line = kinds["timeline"](subject=subject, step=step, at=utc_now(), recipient="", data={})
        event = kinds["outbox"](event_id=new_id(), type=step, subject=subject, created_at=utc_now(), body=b"{}" * 200)
        return [line, event]

    async def verb(kind: str, key: Any, step: str, *added: Any, **changes: Any) -> None:
        async with session_of() as session:
            subject = await session.get(kinds[kind], key)
            for name, value in changes.items():
                setattr(subject, name, value)
            session.add_all([*added, *told(str(key), step)])
            await session.commit()

    async def once() -> None:
        now, one, two = utc_now(), new_id(), new_id()
        facts = dict.fromkeys(("content_hash", "stream", "on_unknown", "message_id"), "x")
        email = kinds["emails"](id=one, accepted_at=now, expires_at=now, sequence=1, **facts)
        octets = kinds["email_octets"](email_id=one, kind="request", size=2000, octets=b"x" * 2000)
        row = {"email_id": one, "recipient": "a", "disposition": "pending", "expires_at": now, "updated_at": now}
        async with session_of() as session:
            if await session.get(kinds["emails"], one) is None:
                session.add(email)
                await session.flush()
                session.add_all([octets, kinds["email_recipients"](**row), *told(one, "accepted")])
            await session.commit()
        for step in ("sending", "dot", "relayed"):
            await verb("email_recipients", (one, "a"), step, disposition=step)
        mail = {"id": two, "received_at": now, "recorded_at": now, "size": 1, "sha256": "0", "sequence": 1}
        async with session_of() as session:
            if await session.get(kinds["mails"], two) is None:
                session.add(kinds["mails"](**mail))
                await session.flush()
                kept = kinds["mail_octets"](mail_id=two, octets=b"x" * 4096)
                delivery = {"id": two, "mail_id": two, "rcpt_to": "p", "disposition": "pending", "updated_at": now}
                session.add_all([kept, kinds["deliveries"](**delivery), *told(two, "received")])
            await session.commit()
        made = {"id": two, "mailbox": "p", "kind": "posts", "created_at": now, "text": "x" * 2000, "mail_id": two}
        await verb(
            "deliveries", two, "delivered", kinds["posts"](**made), *told(two, "created"), disposition="delivered"
        )

    yield once
    await engine.dispose()


async def compare(server: Any, home: Path) -> dict[str, Tally]:
    """Lets the ways take turns, `ROUNDS` short ones each, so that what else the machine does falls on all of them."""
    ways = {
        "plain, PostgreSQL": plain(server.url(server.new_database())),
        "PostgreSQL": ours(server.url(server.new_database())),
        "PostgreSQL, batched": ours(server.url(server.new_database()), Batched),
        "PostgreSQL, notify inside": ours(server.url(server.new_database()), NotifyInside),
        "SQLite": ours(f"sqlite:///{home}/store.db"),
    }
    tallies = {name: Tally() for name in ways}
    async with AsyncExitStack() as stack:
        works = {name: await stack.enter_async_context(way) for name, way in ways.items()}
        for work in works.values():
            await measure(work, Tally(), 0.5)
        for _ in range(ROUNDS):
            for name, work in works.items():
                await measure(work, tallies[name], SECONDS / ROUNDS)
    return tallies


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from services.postgres import BINARIES, PostgresServer

    if not BINARIES:
        print("store: no PostgreSQL server here: `make services` installs one")
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        home = Path(folder)
        home.chmod(0o755)
        (home / "server").mkdir()
        server = PostgresServer(home / "server", BINARIES[-1])
        server.make()
        server.start()
        server.make_template()
        try:
            tallies = asyncio.run(compare(server, home))
        finally:
            server.stop()
    print(
        f"store: {VERBS} verbs for an email and a mail, {IN_FLIGHT} at once, one process, {SECONDS:g} s each in turns"
    )
    print(f"{'':<32}{'verbs/s':>12}{'gain':>10}{'our CPU ms a verb':>20}")
    base = tallies["plain, PostgreSQL"]
    for name, tally in tallies.items():
        rate = tally.verbs / tally.seconds
        gain = rate / (base.verbs / base.seconds)
        print(f"{name:<32}{rate:>12.0f}{gain:>9.2f}x{tally.cpu_seconds / max(tally.verbs, 1) * 1000:>20.2f}")


if __name__ == "__main__":
    main()
