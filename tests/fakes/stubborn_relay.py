"""A relay that refuses some recipients at first, and counts what it takes by recipient.

`…-twice@` is refused two times; for `…-gibberish@` the first dot is answered with what is no reply.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator


class StubbornRelay:
    """Start it with `async with relay.serving()`; `order` has the recipients' local parts as each was taken first."""

    def __init__(self) -> None:
        self.port = 0
        self.tries: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.order: list[str] = []
        self.refused = 0
        self.taken = asyncio.Event()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[StubbornRelay]:
        server = await asyncio.start_server(self._session, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        yield self
        server.close()

    async def wait_taken(self, count: int, within_seconds: float) -> None:
        async with asyncio.timeout(within_seconds):
            while len(self.order) < count:
                self.taken.clear()
                await self.taken.wait()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # a worker was killed: that is the test
            await self._talk(reader, writer)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recipient = ""
        writer.write(b"220 stubborn ESMTP\r\n")
        while line := (await reader.readline()).decode("latin-1").strip():
            verb, answer = line.upper().split(":")[0].split(" ")[0], "250 2.0.0 ok"
            if verb == "RCPT":
                recipient = line.partition("<")[2].partition("@")[0]
                answer = self._judge(recipient)
            elif verb == "DATA":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                answer = self._take(recipient)
            writer.write(f"{answer}\r\n".encode())
            await writer.drain()

    def _judge(self, recipient: str) -> str:
        self.tries[recipient] += 1
        if recipient.endswith("-twice") and self.tries[recipient] <= 2:
            self.refused += 1
            return "450 4.2.0 not now"
        return "250 2.1.5 ok"

    def _take(self, recipient: str) -> str:
        if recipient.endswith("-gibberish") and self.tries[recipient] == 1:
            return "650 what"
        self.copies[recipient] += 1
        if self.copies[recipient] == 1:
            self.order.append(recipient)
            self.taken.set()
        return "250 2.0.0 taken"
