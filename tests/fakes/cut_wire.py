"""A wire between the gateway and a server, which can be cut and can be slow.

It is cut at a chosen word: before the server hears it, or before its answer.  While `delay_seconds` is set, each piece said to
the server reaches it so much later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class CutWire:
    """Carries every connection to `port`; `cut_at` arms it for one cut."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._word: bytes | None = None
        self._is_heard = False
        self.cuts = 0
        self.delay_seconds = 0.0
        self.port = 0

    def cut_at(self, word: bytes, *, heard: bool) -> None:
        """Cuts the connection that next says `word`: with `heard` the server answers, but nobody hears the answer."""
        self._word, self._is_heard = word, heard

    @asynccontextmanager
    async def up(self) -> AsyncIterator[CutWire]:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:  # nobody is there: so it is at this end
            writer.close()
            return
        answers = asyncio.create_task(_pass_on(far_reader, writer))
        try:
            while octets := await reader.read(65536):
                if self._word is not None and self._word in octets:
                    is_heard, self._word = self._is_heard, None
                    self.cuts += 1
                    if is_heard:
                        answers.cancel()
                        with suppress(asyncio.CancelledError):
                            await answers
                        far_writer.write(octets)
                        await far_reader.read(1)
                    return
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                far_writer.write(octets)
        except ConnectionError:
            pass
        finally:
            answers.cancel()
            for each in (writer, far_writer):
                each.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while octets := await reader.read(65536):
            writer.write(octets)
    writer.close()
