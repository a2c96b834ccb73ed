"""Acknowledgements of one channel: gathered for a turn of the event loop, and sent as one where all older ones are done."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.errors import QueueUnavailable
from gateway.queue.amqp_faults import faults_told


class Acks:
    """Which deliveries of a channel are out, and which of those are done but not yet acknowledged."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._is_done: dict[int, bool] = {}  # by delivery tag, oldest first
        self._flushing: asyncio.Task[None] | None = None

    def arrived(self, tag: int) -> None:
        self._is_done[tag] = False

    def done(self, tag: int) -> None:
        """The ticket goes with the next flush; what a lost channel does not take comes again."""
        self._is_done[tag] = True
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())

    async def give_back(self, tag: int, *, is_counted: bool) -> None:
        """Requeues a delivery.  Counted means rejected: since RabbitMQ 4.3 a nack is not counted, before it both are."""
        self._is_done.pop(tag, None)  # not there: the channel is lost already
        with faults_told("cannot give back"):
            await (self._channel.basic_reject if is_counted else self._channel.basic_nack)(
                tag, requeue=True, wait=False
            )

    async def finish(self) -> None:
        """Sees what is done through to the socket."""
        while self._flushing is not None:
            await asyncio.wait([self._flushing])

    async def _flush(self) -> None:
        try:
            await asyncio.sleep(0)
            while True in self._is_done.values():
                await self._send(*self._take())
        except QueueUnavailable:
            self._is_done.clear()  # the channel is lost, and with it what was out
        finally:
            self._flushing = None

    def _take(self) -> tuple[int, list[int]]:
        """The last delivery of the unbroken run of done ones from the oldest on, and those done beyond it."""
        run = 0
        for tag, is_done in self._is_done.items():
            if not is_done:
                break
            run = tag
        single = [tag for tag, is_done in self._is_done.items() if is_done and tag > run]
        for tag in [tag for tag, is_done in self._is_done.items() if is_done]:
            del self._is_done[tag]
        return run, single

    async def _send(self, run: int, single: list[int]) -> None:
        with faults_told("cannot acknowledge"):
            if run:
                await self._channel.basic_ack(run, multiple=True, wait=False)
            for tag in single:
                await self._channel.basic_ack(tag, wait=False)
