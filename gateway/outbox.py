"""The outbox of an app: requests kept in the app's own database by the app's own transaction, and carried to the queue.

    with connection:                                            # sqlite3, psycopg or SQLAlchemy, the app's own
        connection.execute("UPDATE invoices SET state = 'sent' WHERE number = 42")
        outbox.add(connection, SendEmail(template="invoice", to=["ann@example.org"], params={"number": 42}))

    async with gateway.connect(url) as client:                  # in any process of the app, as many as you like
        await outbox.carry(open_connection, client, stop=stop)

Flow: `add` in the app's transaction → `carry`: oldest first, published, confirmed, then deleted → the queue.
Promises: what the app's transaction undid is never sent, what it committed is sent at least once, and once in effect, for
the request's id is its idempotency key; a queue that is away delays; a request that the queue will never take is set aside
with its reason (`set_aside`), and the next one goes.
Limits: no order between requests; async connections of SQLAlchemy: `await connection.run_sync(outbox.add, email)`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any, Protocol

from gateway.contract.email_send import SendEmail, parse_send_email
from gateway.contract.post_create import CreatePost, parse_create_post
from gateway.errors import InvalidRequest, Problem, QueueUnavailable

BATCH = 100
POLL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0

Request = SendEmail | CreatePost
OpenConnection = Callable[[], Any]

_LIBRARIES = ("sqlite3", "psycopg", "sqlalchemy")
_NUMBER = {
    "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "postgresql": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
}
_TABLE = """CREATE TABLE IF NOT EXISTS gateway_outbox (
    number {number},
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    problem TEXT NOT NULL DEFAULT ''
)"""
_INSERT = "INSERT INTO gateway_outbox (id, kind, body) VALUES (:id, :kind, :body) ON CONFLICT (id) DO NOTHING"
_BODY = "SELECT body FROM gateway_outbox WHERE id = :id"
_WAITING = "SELECT number, kind, body FROM gateway_outbox WHERE problem = '' ORDER BY number LIMIT :limit"
_DELETE = "DELETE FROM gateway_outbox WHERE number = :number"
_SET_ASIDE = "UPDATE gateway_outbox SET problem = :problem WHERE number = :number"
_PROBLEMS = "SELECT id, problem FROM gateway_outbox WHERE problem <> '' ORDER BY number LIMIT :limit"
_NAMED = re.compile(r":([a-z]+)")


class Submit(Protocol):
    """What carries a request to the queue: `gateway.connect(…)`."""

    async def send(self, email: SendEmail, /) -> str: ...

    async def create_post(self, post: CreatePost, /) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A request that the queue will never take: it waits in the table for a person."""

    id: str
    problem: str


def create_table(connection: Any) -> None:
    """Makes the table `gateway_outbox` where it is absent, in the app's transaction."""
    app = _App(connection)
    app.execute(_TABLE.format(number=_NUMBER[app.dialect]), {})


def add(connection: Any, request: Request) -> str:
    """Keeps a request in the transaction of `connection` and returns its id; the same request again is no record.

    Raises InvalidRequest where the id waits already with other content.
    """
    app = _App(connection)
    values = {"id": request.id, "kind": _kind(request), "body": request.to_json().decode()}
    if app.execute(_INSERT, values).rowcount == 0:
        waiting = app.execute(_BODY, {"id": request.id}).fetchone()
        if waiting is not None and waiting[0] != values["body"]:
            raise InvalidRequest([Problem("id", "waits in the outbox with other content")])
    return request.id


def set_aside(connection: Any, *, limit: int = 100) -> list[SetAside]:
    """The requests that the queue will never take, oldest first; mend and add them under a new id, then delete the row."""
    rows = _App(connection).execute(_PROBLEMS, {"limit": limit}).fetchall()
    return [SetAside(id=row[0], problem=row[1]) for row in rows]


async def carry(open_connection: OpenConnection, submit: Submit, *, stop: asyncio.Event) -> None:
    """Carries what is committed until `stop`; a queue that is away is waited for, longer each time.

    `open_connection` gives a connection of its own, used in one thread and closed at the end.  A fault of the database is
    raised: the app knows its database best.
    """
    async with _Carrier(open_connection, submit) as carrier:
        pause_seconds = POLL_SECONDS
        while not stop.is_set():
            try:
                is_quiet = await carrier.carry_batch() < BATCH
                pause_seconds = POLL_SECONDS
            except QueueUnavailable:
                is_quiet, pause_seconds = True, min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)
            if is_quiet:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause_seconds)


async def carry_once(open_connection: OpenConnection, submit: Submit) -> int:
    """Carries what waits now and returns how many were taken from the outbox; raises QueueUnavailable."""
    carried = 0
    async with _Carrier(open_connection, submit) as carrier:
        while batch := await carrier.carry_batch():
            carried += batch
    return carried


class _Carrier:
    """One connection of the app in one thread, and the way to the queue."""

    def __init__(self, open_connection: OpenConnection, submit: Submit) -> None:
        self._open_connection = open_connection
        self._submit = submit
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gateway-outbox")

    async def __aenter__(self) -> _Carrier:
        self._app = await self._in_thread(lambda: _App(self._open_connection()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._in_thread(self._app.close)
        self._thread.shutdown(wait=False)

    async def carry_batch(self) -> int:
        """Publishes the oldest requests and takes away what is confirmed; returns how many left the waiting."""
        rows = await self._in_thread(self._waiting)
        fates = await asyncio.gather(*(self._publish(row) for row in rows), return_exceptions=True)
        settled = [(row[0], fate) for row, fate in zip(rows, fates, strict=True) if not _is_fault(fate)]
        await self._in_thread(lambda: self._settle(settled))
        for fate in fates:
            if isinstance(fate, BaseException) and _is_fault(fate):
                raise fate
        return len(rows)

    def _waiting(self) -> list[Any]:
        # The rows stay locked until `_settle`, so that carriers side by side do not carry the same ones.
        lock = " FOR UPDATE SKIP LOCKED" if self._app.dialect == "postgresql" else ""
        return list(self._app.execute(_WAITING + lock, {"limit": BATCH}).fetchall())

    async def _publish(self, row: Sequence[Any]) -> None:
        _, kind, body = row
        if kind == "email.send":
            await self._submit.send(parse_send_email(body.encode()))
        else:
            await self._submit.create_post(parse_create_post(body.encode()))

    def _settle(self, settled: Sequence[tuple[int, BaseException | None]]) -> None:
        for number, refusal in settled:
            if refusal is None:
                self._app.execute(_DELETE, {"number": number})
            else:
                self._app.execute(_SET_ASIDE, {"number": number, "problem": str(refusal)[:2000]})
        self._app.commit()

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _is_fault(fate: BaseException | None) -> bool:
    """Whether the request may go another time; one that breaks its contract never will."""
    return fate is not None and not isinstance(fate, InvalidRequest)


def _kind(request: Request) -> str:
    return "email.send" if isinstance(request, SendEmail) else "post.create"


class _App:
    """The app's connection: statements with `:name` and rows by position, whichever of the three kinds it is."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._is_session = hasattr(connection, "get_bind")
        self._library = _library_of(connection)

    @property
    def dialect(self) -> str:
        if self._library != "sqlalchemy":
            return "postgresql" if self._library == "psycopg" else "sqlite"
        bind = self._connection.get_bind() if self._is_session else self._connection
        name = str(bind.dialect.name)
        if name not in _NUMBER:
            raise TypeError(f"the outbox keeps its table in {' or '.join(_NUMBER)}, not in {name}")
        return name

    def execute(self, statement: str, values: dict[str, Any]) -> Any:
        if self._library == "sqlalchemy":
            from sqlalchemy import text

            return self._connection.execute(text(statement), values)
        # A cursor of our own: the app's connection may make rows of another form.
        if self._library == "psycopg":
            from psycopg.rows import tuple_row

            return self._connection.cursor(row_factory=tuple_row).execute(_NAMED.sub(r"%(\1)s", statement), values)
        cursor = self._connection.cursor()
        cursor.row_factory = None
        return cursor.execute(statement, values)

    def commit(self) -> None:
        self._connection.commit()

    def close(self) -> None:
        self._connection.close()


def _library_of(connection: Any) -> str:
    """Whose connection it is, also where the app (or SQLModel, or Flask) has made a class of its own out of it."""
    origins = (base.__module__.partition(".")[0] for base in type(connection).__mro__)
    library = next((name for name in origins if name in _LIBRARIES), None)
    if library is None:
        raise TypeError(f"the outbox takes a connection of sqlite3, psycopg or SQLAlchemy, not {connection!r}")
    if iscoroutinefunction(getattr(connection, "execute", None)):
        way = "await connection.run_sync(outbox.add, email)" if library == "sqlalchemy" else "a blocking connection"
        raise TypeError(f"the outbox takes no async connection as it is: {way}")
    return library
