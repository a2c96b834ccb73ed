"""A mail filter as Postfix knows them (milter protocol 6): writes header fields into each mail, at the place it is told.

`fields` are written one after the other at `index`, each above the one before: 0 is where rspamd and others write, 1 where
opendkim and opendmarc do.
"""

from __future__ import annotations

import socketserver
import struct
import threading
from types import TracebackType

_PROTOCOL, _ADDS_HEADERS, _NO_STEPS_LEFT_OUT = 6, 0x01, 0
_WITHOUT_ANSWER = b"DAQ"


class FilterBox:
    """Listens on 127.0.0.1 while it is entered; `address` is what goes into smtpd_milters."""

    def __init__(self) -> None:
        self.fields: list[tuple[str, str]] = []
        self.index = 0
        box = self

        class Talk(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while size := self.rfile.read(4):
                    word = self.rfile.read(struct.unpack(">I", size)[0])[:1]
                    for answer in box.answers(word):
                        self.wfile.write(struct.pack(">I", len(answer)) + answer)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Talk)
        self._server.daemon_threads = True
        self.address = f"inet:127.0.0.1:{self._server.server_address[1]}"

    def answers(self, word: bytes) -> list[bytes]:
        if word == b"O":
            return [b"O" + struct.pack(">III", _PROTOCOL, _ADDS_HEADERS, _NO_STEPS_LEFT_OUT)]
        if word in _WITHOUT_ANSWER:
            return []
        added = self.fields if word == b"E" else []
        return [*(b"i" + struct.pack(">I", self.index) + f"{name}\0{value}\0".encode() for name, value in added), b"c"]

    def __enter__(self) -> FilterBox:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
