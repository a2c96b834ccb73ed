"""The HTTP server: uvicorn, with a patience that ends.  Home of uvicorn.

Serves an application until stop; requests under way get the grace time.  Promises: headers that do not come end the
connection, one client holds so many connections and all together hold so many; nothing that uvicorn would say of peers
reaches our log in its own words.
An answer that is read more slowly than `LEAST_RATE` ends its connection, too.
Limit: what the buffers of the system take in counts as read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.runtime import Stop

HEADER_SECONDS = 20.0
MAX_CONNECTIONS = 1000
MAX_CONNECTIONS_PER_CLIENT = 250  # a proxy is one client, too
READING_SECONDS = 30.0
LEAST_RATE = 500.0  # bytes a second
MAX_HEADER_BYTES = 64 * 1024
_SILENT = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"uvicorn": {"level": "CRITICAL", "propagate": False}},
}


class _QuietServer(uvicorn.Server):
    """uvicorn without its signal handling: the process has one owner of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that waits for a request's headers so long and no longer."""

    header_seconds = HEADER_SECONDS
    max_connections = MAX_CONNECTIONS
    max_per_client = MAX_CONNECTIONS_PER_CLIENT
    reading_seconds = READING_SECONDS
    _waiting: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections or self._has_too_many():
            transport.abort()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_more()
        elif self._waiting is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self._watch_no_more()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._watch_no_more()
        super().resume_writing()

    def _has_too_many(self) -> bool:
        address = self.client[0] if self.client else None
        clients = (getattr(other, "client", None) for other in self.connections)
        return sum(1 for client in clients if client and client[0] == address) > self.max_per_client

    def _watch_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._reading = self.loop.call_later(self.reading_seconds, self._look_at_reader, left)

    def _watch_no_more(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _look_at_reader(self, left_before: int) -> None:
        if left_before - self.transport.get_write_buffer_size() < LEAST_RATE * self.reading_seconds:
            self.transport.abort()
        else:
            self._watch_reader()

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self.header_seconds, self._give_up)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


async def serve_http(
    app: Any, listener: socket.socket, stop: Stop, *, grace_seconds: float, on_stop: Callable[[], None] | None = None
) -> None:
    """Serves until stop; `on_stop` is told when it begins to end, for answers that would never end by themselves."""
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        log_config=_SILENT,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, int(grace_seconds)),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    server = _QuietServer(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if on_stop is not None:
        on_stop()
    server.should_exit = True
    await serving
