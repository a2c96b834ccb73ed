"""What the AMQP library raises, told as ours; and channels, opened in time or not at all.

The library waits without end for a channel while the broker blocks the connection, and says RuntimeError of a lost one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from gateway.errors import QueueUnavailable
from gateway.queue.amqp_octets import read_leniently

RPC_SECONDS = 10.0
_NOT_LET_IN = "Expected one of ['Connection.OpenOk']"  # the library keeps the broker's own words to itself

# What it says of a connection that fails goes to stderr where nobody set up logging; it is told as QueueUnavailable.
logging.getLogger("aiormq.connection").setLevel(logging.CRITICAL)
read_leniently()


@contextmanager
def faults_told(what: str) -> Iterator[None]:
    """Turns what the library raises into QueueUnavailable; a cancellation that is not ours is a closed connection."""
    try:
        yield
    except (*CONNECTION_EXCEPTIONS, EOFError) as error:
        raise QueueUnavailable(f"{what}: {said(error)}") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise QueueUnavailable(f"{what}: the connection was closed") from error


def said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if _NOT_LET_IN in str(error):
        return "it lets us not into the vhost: there is none of that name, or our user has no rights in it"
    return str(error) or type(error).__name__


async def open_channel(connection: AbstractConnection, *, confirms: bool = False) -> AbstractChannel:
    """A channel of the connection; with `confirms` one to publish on, where a returned message is an error."""
    async with asyncio.timeout(RPC_SECONDS):
        return await connection.channel(publisher_confirms=confirms, on_return_raises=confirms)


async def is_blocked(connection: AbstractConnection) -> bool:
    """Whether the broker has told us that it takes nothing from us for now (memory or disk alarm)."""
    transport = connection.transport
    if transport is None:
        return False
    try:
        async with asyncio.timeout(0):  # ready() waits only while the connection is blocked
            await transport.ready()
    except TimeoutError:
        return True
    return False
