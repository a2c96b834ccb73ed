"""One channel's life in a consumer: its subscriptions, its acknowledgements, and the watch over its own progress.

A redeclared or moved quorum queue can forget a consumer that the broker still counts.  So what is watched is progress: a
queue with ready tickets that delivers none although there is room gets its subscription renewed; when that does not help,
the channel is given up; and a broker that does not answer the look is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aio_pika.abc import AbstractChannel, AbstractConnection

from gateway.errors import QueueUnavailable
from gateway.queue.amqp_acks import Acks
from gateway.queue.amqp_faults import RPC_SECONDS, faults_told, open_channel
from gateway.queue.amqp_lines import Line, Lines
from gateway.queue.amqp_link import Link
from gateway.queue.ticket import EMAIL_SEND_SERIAL
from gateway.queue.topology import Looking

LOOK_SECONDS = 5.0
IDLE_LOOKS = 2

OnDelivery = Callable[["Session", Line, Any], Awaitable[None]]


class Session:
    """A channel with its subscriptions; with it end the leases of what it delivered."""

    def __init__(self, link: Link, connection: AbstractConnection, on_delivery: OnDelivery) -> None:
        self.connection = connection
        self.is_subscribed = False  # to all queues: before that the first ones would have more than their share
        self.is_over = False
        self._link = link
        self._on_delivery = on_delivery
        self._looking = Looking(connection)
        self._tags: dict[str, str] = {}
        self._is_cancelled = False

    async def open(self, on_change: Callable[[], None]) -> None:
        """Opens the channel; `on_change` is called when it is lost."""
        with faults_told("cannot open a channel"):
            self._opened: AbstractChannel = await open_channel(self.connection)
            self._channel: Any = await self._opened.get_underlay_channel()

        async def on_cancelled(_: Any) -> None:
            self._is_cancelled = True  # a queue was deleted
            on_change()

        self._channel.closing.add_done_callback(lambda _: on_change())
        self._channel.on_consumer_cancel_callbacks.add(on_cancelled)
        self.acks = Acks(self._channel)

    @property
    def is_lost(self) -> bool:
        return self._is_cancelled or bool(self._channel.is_closed)

    def consumes(self, queue: str) -> bool:
        return queue in self._tags

    async def subscribe(self, lines: Lines) -> None:
        for line in lines:
            await self._subscribe_to(line)
            line.may_have_more = True
        self.is_subscribed = True

    async def unsubscribe(self) -> None:
        self.is_subscribed = False
        with faults_told("cannot pause"):
            while self._tags:
                queue, tag = next(iter(self._tags.items()))
                await self._channel.basic_cancel(tag, timeout=RPC_SECONDS)
                del self._tags[queue]
        await asyncio.sleep(0)  # the last deliveries were handed to their callbacks before the answer

    async def has_ready(self, line: Line) -> bool:
        """Whether the broker has more tickets for the line; a broker that does not say so is left."""
        try:
            with faults_told(f"no look at {line.queue}"):
                async with asyncio.timeout(LOOK_SECONDS):
                    found = await self._looking.count(line.queue)
        except QueueUnavailable as error:
            if isinstance(error.__cause__, TimeoutError):
                self._link.drop(self.connection, str(error))
            raise
        return found.ready > 0

    async def watch(self, lines: Lines) -> None:
        """Looks whether every line moves; raises QueueUnavailable when the channel is of no use."""
        for line in lines:
            if not self.consumes(line.queue):
                continue
            is_moving = line.delivered != line.delivered_at_look or line.unacked >= line.window
            line.delivered_at_look = line.delivered
            if is_moving or not await self.has_ready(line):
                line.idle_looks = 0
                continue
            line.idle_looks += 1
            await self._renew(line)

    async def close(self) -> None:
        with faults_told("cannot close"):
            async with asyncio.timeout(RPC_SECONDS):
                await self._looking.close()
                await self._opened.close()

    async def _renew(self, line: Line) -> None:
        """The subscription anew; when that did not help, the channel.  A serial queue may have another active consumer."""
        if line.idle_looks < IDLE_LOOKS:
            return
        if line.idle_looks >= 2 * IDLE_LOOKS and line.queue != EMAIL_SEND_SERIAL:
            line.idle_looks = 0
            raise QueueUnavailable(f"{line.queue} has ready tickets and delivers none: the channel is made anew")
        with faults_told(f"cannot consume {line.queue} anew"):
            await self._channel.basic_cancel(self._tags.pop(line.queue), timeout=RPC_SECONDS)
        await self._subscribe_to(line)

    async def _subscribe_to(self, line: Line) -> None:
        with faults_told(f"cannot consume {line.queue}"):
            await self._channel.basic_qos(prefetch_count=line.window, timeout=RPC_SECONDS)
            on_delivery = partial(self._on_delivery, self, line)
            begun = await self._channel.basic_consume(line.queue, on_delivery, timeout=RPC_SECONDS)
            self._tags[line.queue] = begun.consumer_tag
