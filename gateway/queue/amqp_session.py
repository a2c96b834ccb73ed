"""A consumer's life on one connection: its subscriptions, its acknowledgements, and the watch over its own progress.

A redeclared or moved quorum queue can forget a consumer that the broker still counts.  So what is watched is progress: a
queue with ready tickets that delivers none although there is room gets its subscription renewed; when that does not help,
the channels are given up; and a broker that does not answer the look is left.

`email.send.serial` has a channel of its own.  A subscription that is cancelled leaves behind what it has delivered, or is
delivering, and the broker makes the next consumer the active one at once: two tickets would be out, and the older one would
come back too late.  A channel that is closed gives back all it had *before* another consumer gets any: so this queue is
left by `hang_up`, or by `cancel` where its only ticket is out and about to be acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aio_pika.abc import AbstractChannel, AbstractConnection

from gateway.errors import QueueUnavailable
from gateway.queue.amqp_acks import Acks
from gateway.queue.amqp_faults import RPC_SECONDS, faults_told, open_channel
from gateway.queue.amqp_lines import Line, Lines
from gateway.queue.amqp_link import Link
from gateway.queue.topology import Looking

LOOK_SECONDS = 5.0
IDLE_LOOKS = 2


@dataclass(slots=True, eq=False)
class Wire:
    """A channel with its acknowledgements and the tags of its subscriptions, by queue."""

    opened: AbstractChannel
    channel: Any
    acks: Acks
    tags: dict[str, str] = field(default_factory=dict)
    is_over: bool = False


OnDelivery = Callable[[Line, Any, Acks], Awaitable[None]]


class Session:
    """Channels with their subscriptions; with a channel end the leases of what it delivered."""

    def __init__(self, link: Link, connection: AbstractConnection, on_delivery: OnDelivery) -> None:
        self.connection = connection
        self.is_subscribed = False  # to all queues: before that the first ones would have more than their share
        self.is_over = False
        self._link = link
        self._on_delivery = on_delivery
        self._looking = Looking(connection)
        self._wires: dict[bool, Wire] = {}  # by whether it is the one of `email.send.serial`
        self._is_cancelled = False

    async def open(self, on_change: Callable[[], None]) -> None:
        """Opens the channel of most queues; `on_change` is called when one is lost."""
        self._on_change = on_change
        self._wires[False] = await self._open_wire()

    @property
    def is_lost(self) -> bool:
        return self._is_cancelled or any(bool(wire.channel.is_closed) for wire in self._wires.values())

    def consumes(self, queue: str) -> bool:
        return any(queue in wire.tags for wire in self._wires.values())

    async def subscribe(self, lines: Lines) -> None:
        """Subscribes to every queue it does not consume yet."""
        for line in lines:
            if not self.consumes(line.queue):
                await self._subscribe_to(line)
            line.may_have_more = True
        self.is_subscribed = all(self.consumes(line.queue) for line in lines)  # one may have been left meanwhile

    async def unsubscribe(self) -> None:
        """Ends every subscription but that to `email.send.serial`."""
        self.is_subscribed = False
        wire = self._wires[False]
        with faults_told("cannot pause"):
            while wire.tags:
                queue, tag = next(iter(wire.tags.items()))
                await wire.channel.basic_cancel(tag, timeout=RPC_SECONDS)
                del wire.tags[queue]
        await asyncio.sleep(0)  # the last deliveries were handed to their callbacks before the answer

    async def cancel(self, line: Line) -> None:
        """Ends the subscription of a serial queue whose window is full: nothing can be on its way to us."""
        wire = self._wires[True]
        with faults_told("cannot pause"):
            await wire.channel.basic_cancel(wire.tags[line.queue], timeout=RPC_SECONDS)
        wire.tags.pop(line.queue, None)
        self.is_subscribed = False

    async def hang_up(self) -> None:
        """Closes the channel of the serial queue: what it has delivered, or is delivering, is in its place again."""
        if (wire := self._wires.pop(True, None)) is None:
            return
        wire.is_over = True
        self.is_subscribed = False
        try:
            await wire.acks.finish()
            with faults_told("cannot hang up"):
                async with asyncio.timeout(RPC_SECONDS):
                    await wire.opened.close()
        except QueueUnavailable as error:
            self._link.drop(self.connection, str(error))  # what the channel had must go back, with all the rest
            raise

    async def finish(self) -> None:
        """Sees what is acknowledged through to the socket."""
        for wire in self._wires.values():
            await wire.acks.finish()

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
                for wire in self._wires.values():
                    await wire.opened.close()

    async def _renew(self, line: Line) -> None:
        """The subscription anew; when that did not help, the channel.  A serial queue may have another active consumer."""
        if line.idle_looks < IDLE_LOOKS:
            return
        if line.idle_looks >= 2 * IDLE_LOOKS and not line.is_serial:
            line.idle_looks = 0
            raise QueueUnavailable(f"{line.queue} has ready tickets and delivers none: the channel is made anew")
        if not line.is_serial:
            wire = self._wires[False]
            with faults_told(f"cannot consume {line.queue} anew"):
                await wire.channel.basic_cancel(wire.tags.pop(line.queue), timeout=RPC_SECONDS)
        elif line.unacked:  # it came while we looked
            return
        else:
            await self.hang_up()
            self._on_change()
            return
        await self._subscribe_to(line)

    async def _subscribe_to(self, line: Line) -> None:
        if line.is_serial not in self._wires:
            self._wires[line.is_serial] = await self._open_wire()
        wire = self._wires[line.is_serial]
        with faults_told(f"cannot consume {line.queue}"):
            await wire.channel.basic_qos(prefetch_count=line.window, timeout=RPC_SECONDS)
            on_delivery = partial(self._take, wire, line)
            begun = await wire.channel.basic_consume(line.queue, on_delivery, timeout=RPC_SECONDS)
            wire.tags[line.queue] = begun.consumer_tag

    async def _take(self, wire: Wire, line: Line, message: Any) -> None:
        if not self.is_over and not wire.is_over:
            wire.acks.arrived(message.delivery.delivery_tag)
            await self._on_delivery(line, message, wire.acks)

    async def _open_wire(self) -> Wire:
        with faults_told("cannot open a channel"):
            opened = await open_channel(self.connection)
            channel: Any = await opened.get_underlay_channel()

        async def on_cancelled(_: Any) -> None:
            self._is_cancelled = True  # a queue was deleted
            self._on_change()

        channel.closing.add_done_callback(lambda _: self._on_change())
        channel.on_consumer_cancel_callbacks.add(on_cancelled)
        return Wire(opened, channel, Acks(channel))
