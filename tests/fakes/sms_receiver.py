"""A provider of SMS on a port of its own: keeps what it is told, or refuses, or says nothing at all."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """What apprise's `json://` speaks to; a context manager."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.asked = 0
        self.status = 200
        self.released = threading.Event()
        self.released.set()
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"json://teller:hunter2@127.0.0.1:{self._server.server_address[1]}/token-of-ours"

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, count: int, seconds: float = 60) -> list[dict[str, Any]]:
        """Waits until that many messages came."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self.messages) >= count, seconds)
        assert came, f"{len(self.messages)} of {count} messages came: {self.messages}"
        return list(self.messages)

    def take(self, message: dict[str, Any]) -> int:
        self.released.wait()
        with self._changed:
            self.asked += 1
            if self.status == 200:
                self.messages.append(message)
            self._changed.notify_all()
        return self.status

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(receiver.take(json.loads(body)))
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        return Handler
