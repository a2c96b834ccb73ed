"""`GET /v1/events`: what happens, as server-sent events; `Last-Event-ID` goes on where a connection broke off.

Read from the outbox in the order of its numbers whenever a commit rings; nothing is buffered for a slow reader, who is read
for again when he has taken what he has.  Each event is a CloudEvent; its SSE id is its number.
Promises: heartbeats show that the line stands; a stream ends when the gateway stops; clients and streams are bounded.
Limits: the outbox remembers what is published for a while, then forgets it: a reader away for longer begins with what is
left.  For work that must not miss an event there is the durable subscription (`client.events`).
"""

from __future__ import annotations

import asyncio
import fnmatch
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from gateway.errors import StoreUnavailable
from gateway.store.database import Bell, Database
from gateway.store.outbox_reader import OutboxEvent, OutboxReader
from gateway.web.api.parts import READER, ApiParts, known_id
from gateway.web.api.problems import problem, told_as
from gateway.web.asking import asking_of
from gateway.web.guard import Receive, Send
from gateway.web.provenance import Scope

EVENTS_PATH = "/v1/events"
HEARTBEAT_SECONDS = 15.0
STREAMS_AT_ONCE = 64
STREAMS_PER_CLIENT = 8
PAUSE_SECONDS = 0.1
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_STREAM = {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "events, as they happen"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interest:
    """Which events somebody wants: patterns of types (`email.*`), and one subject's only."""

    types: tuple[str, ...] = ()
    subject: str = ""

    def wants(self, event: OutboxEvent) -> bool:
        named = not self.types or any(fnmatch.fnmatchcase(event.type, pattern) for pattern in self.types)
        return named and self.subject in ("", event.subject)


class EventStreams:
    """The streams of this process."""

    def __init__(self, database: Database, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._database = database
        self._heartbeat = heartbeat_seconds
        self._open: Counter[str] = Counter()
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Ends every stream: the gateway stops."""
        self._closing.set()

    def is_full_for(self, client: str) -> bool:
        return self._open.total() >= STREAMS_AT_ONCE or self._open[client] >= STREAMS_PER_CLIENT

    async def reader(self, after: int | None) -> OutboxReader:
        """Reads what is behind number `after` (None: from now on); raises StoreUnavailable."""
        reader = OutboxReader(self._database)
        await reader.begin(after)
        return reader

    async def stream(self, client: str, interest: Interest, reader: OutboxReader) -> AsyncGenerator[bytes]:
        """The events as they are committed, with heartbeats between."""
        closing = asyncio.create_task(self._closing.wait())
        self._open[client] += 1
        try:
            async with self._database.bell() as bell:
                yield b": here we are\n\n"
                async for piece in self._pieces(interest, reader, bell, closing):
                    yield piece
        finally:
            closing.cancel()
            self._open[client] -= 1
            self._open += Counter()  # forgets who has none

    async def _pieces(
        self, interest: Interest, reader: OutboxReader, bell: Bell, closing: asyncio.Task[bool]
    ) -> AsyncGenerator[bytes]:
        told = time.monotonic()
        while not closing.done():
            found = await _read_or_nothing(reader)
            wanted = [event for event in found if interest.wants(event)]
            if wanted or time.monotonic() - told >= self._heartbeat:
                yield b"".join(map(_as_sse, wanted)) or b": still here\n\n"
                told = time.monotonic()
            if not found:
                await self._wait(bell, closing)

    async def _wait(self, bell: Bell, closing: asyncio.Task[bool]) -> None:
        """Until a commit, but not at once again: what many commits write is read together."""
        await asyncio.wait([closing], timeout=PAUSE_SECONDS)
        ringing = asyncio.create_task(bell.wait(self._heartbeat))
        await asyncio.wait([closing, ringing], timeout=self._heartbeat, return_when=asyncio.FIRST_COMPLETED)
        if not ringing.done():
            ringing.cancel()
            await asyncio.gather(ringing, return_exceptions=True)


async def _read_or_nothing(reader: OutboxReader) -> list[OutboxEvent]:
    try:
        return await reader.read()
    except StoreUnavailable:  # the line stands; what happens meanwhile is read when the store is back
        return []


def _as_sse(event: OutboxEvent) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.type.encode(), event.body.replace(b"\n", b" "))


class _Stream(StreamingResponse):
    """An answer whose iterator ends with it, however it ends."""

    def __init__(self, pieces: AsyncGenerator[bytes]) -> None:
        super().__init__(pieces, media_type="text/event-stream", headers=_HEADERS)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()


def event_routes(parts: ApiParts) -> APIRouter:
    routes = APIRouter(prefix=EVENTS_PATH, tags=["events"])

    @routes.get(
        "", response_class=StreamingResponse, responses=told_as(422, 429) | {200: _STREAM}, dependencies=[READER]
    )
    async def get_events(
        request: Request,
        types: Annotated[
            str, Query(max_length=1000, description="patterns with blanks between: `email.* post.created`")
        ] = "",
        subject: Annotated[str, Query(description="one mail, email or post only")] = "",
        last_event_id: Annotated[int | None, Header(ge=0, lt=2**63, description="the last one seen")] = None,
    ) -> Response:
        """Streams events as they happen."""
        interest = Interest(types=tuple(types.split()), subject=known_id(subject) if subject else "")
        client = asking_of(request).client
        if parts.streams.is_full_for(client):
            return problem(429, "too many event streams", headers={"Retry-After": "30"})
        return _Stream(parts.streams.stream(client, interest, await parts.streams.reader(last_event_id)))

    return routes
