"""Where TLS begins with the first octet (RFC 8314): who connects shakes hands here, and is then in a session of the door.

We accept ourselves: asyncio's servers tell nobody of a handshake under way, and a thousand silent clients would have used up
the process's file descriptors without one of them being counted.
Promises: who shakes hands has a place as everybody else, counted for his client and in all; who finds none is cut off before
a handshake costs anything; one that fails or takes too long is in the log; each has the certificate of its moment.
"""

from __future__ import annotations

import asyncio
import collections
import socket
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from gateway.inbound.certificate import Certificates
from gateway.inbound.door_limits import client_key

if TYPE_CHECKING:
    from gateway.inbound.door import Door

_PAUSE_SECONDS = 1.0


class TlsListener:
    """Listens on sockets that are open already, which are its own from now on, until it is closed."""

    def __init__(self, door: Door, certificates: Certificates, sockets: Sequence[socket.socket]) -> None:
        self._door = door
        self._certificates = certificates
        self._shaking_hands: collections.Counter[str] = collections.Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        for listener in sockets:
            self._begin(self._accept_all(listener))

    def close(self) -> None:
        """Stops listening and cuts off who is shaking hands. Idempotent."""
        for task in self._tasks:
            task.cancel()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept_all(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    connection, peer = await loop.sock_accept(listener)
                except ConnectionAbortedError:  # he is gone already
                    continue
                except OSError as fault:  # no file descriptors left, or no memory: it passes
                    self._door.log.service_failed(f"{self._door.name}s-door", error=fault)
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                self._begin(self._let_in(connection, str(peer[0])))

    async def _let_in(self, connection: socket.socket, client: str) -> None:
        group, door = client_key(client), self._door
        self._shaking_hands[group] += 1
        try:
            if reply := door.too_many(client, group, self._shaking_hands):
                door.log.refused(door=door.name, client=client, verb="CONNECT", reply=reply)
                connection.close()
            else:
                await self._shake_hands(connection, client)
        finally:
            self._shaking_hands[group] -= 1
            if not self._shaking_hands[group]:
                del self._shaking_hands[group]

    async def _shake_hands(self, connection: socket.socket, client: str) -> None:
        seconds = min(self._door.limits.handshake_seconds, self._door.patience_seconds)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._door.enter, connection, ssl=self._certificates.context(), ssl_handshake_timeout=seconds
            )
        except OSError as error:  # ssl.SSLError, TimeoutError and every way to lose a connection
            self._door.log.handshake_failed(door=self._door.name, client=client, error=error)
