"""What the gateway needs declared on RabbitMQ, and how it is compared, changed and permitted.

    gateway.commands (topic) ─▶ email.send … post.create        apps publish here, and nowhere else
           │ a key that leads nowhere
           └▶ gateway.unroutable (fanout) ─▶ gateway.unroutable
    gateway.events (topic) ─▶ subscriber.<name>                  `Broker.subscribe`
    gateway.delay.<seconds>.<home> (fanout) ─▶ the same ─▶ home  `queue.delays`
    gateway.census (fanout)                                      `queue.amqp_census`

All queues are quorum queues whose arguments are written out, so that no broker's default decides.  Declared differently is
a SettingsError that says what differs and the cure; `migrate` is that cure: it moves the tickets into queues declared anew.
What brokers can do it is said in `queue.amqp_version`.
Limit: policies are not seen: of one the length cap, a time to live, an expiry and the delivery limit count beside our arguments.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from gateway.errors import Problem, SettingsError
from gateway.queue.amqp_faults import RPC_SECONDS, open_channel
from gateway.queue.broker import DELIVERY_LIMIT
from gateway.queue.delays import STEPS, delay_queue
from gateway.queue.ticket import (
    COMMAND_QUEUES,
    DEAD_CRASHED,
    DEAD_FAILED,
    EMAIL_SEND_SERIAL,
    HOME_QUEUES,
    SUBSCRIBER,
    SUSPECT,
    UNROUTABLE,
    retry_queue,
)

COMMANDS = "gateway.commands"
EVENTS = "gateway.events"
CENSUS = "gateway.census"
DEAD_BOXES = (DEAD_FAILED, DEAD_CRASHED)

MAX_TICKETS = 2_000_000
NEVER = 1_000_000_000  # deliveries: a limit that is written out and never reached
CURE = "stop the gateway, run `gateway queues migrate`, start it again"
_DIFFERENCE = re.compile(r"inequivalent arg '([^']+)'.*?: received (.*) but current is (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueueSpec:
    """A queue as it must be."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExchangeSpec:
    """An exchange as it must be, and the queues that hang on it by key."""

    name: str
    kind: str
    bindings: tuple[tuple[str, str], ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)


Spec = QueueSpec | ExchangeSpec


def work_queue(name: str) -> QueueSpec:
    """A queue whose tickets are worked: what is not settled goes back, and in the end to the crashed ones."""
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-max-length": MAX_TICKETS,
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": DEAD_CRASHED,
        "x-dead-letter-strategy": "at-least-once",
    }
    if name == EMAIL_SEND_SERIAL:
        arguments["x-single-active-consumer"] = True
    return QueueSpec(name=name, arguments=arguments)


def keeping_queue(name: str) -> QueueSpec:
    """A queue that keeps what it has: dead letters, and the events of a subscriber that may never come."""
    return QueueSpec(name=name, arguments={"x-queue-type": "quorum", "x-delivery-limit": NEVER})


def queue_spec(name: str) -> QueueSpec:
    """How the queue of that name is declared."""
    keeps = name in DEAD_BOXES or (name.startswith(SUBSCRIBER) and name == name.removesuffix(".retry"))
    return keeping_queue(name) if keeps else work_queue(name)


def queues() -> list[QueueSpec]:
    """Every queue that is there from the start."""
    homes = [name for home in HOME_QUEUES for name in (home, retry_queue(home))]
    return [queue_spec(name) for name in (*homes, SUSPECT, UNROUTABLE, retry_queue(UNROUTABLE), *DEAD_BOXES)]


def exchanges() -> list[ExchangeSpec]:
    commands = tuple((name, name) for name in COMMAND_QUEUES)
    unrouted = {"alternate-exchange": UNROUTABLE}
    return [
        ExchangeSpec(name=UNROUTABLE, kind="fanout", bindings=((UNROUTABLE, ""),)),
        ExchangeSpec(name=COMMANDS, kind="topic", bindings=commands, arguments=unrouted),
        ExchangeSpec(name=EVENTS, kind="topic"),
        ExchangeSpec(name=CENSUS, kind="fanout"),
    ]


def delay_ladder(home: str) -> list[tuple[QueueSpec, ExchangeSpec]]:
    """The delay queues of a home, shortest first, each behind an exchange of its name.

    Published straight to a delay queue a ticket that waits there a second time would vanish: RabbitMQ takes it for a cycle.
    """
    ladder = []
    for step in STEPS:
        name = delay_queue(step, home)
        arguments = {
            "x-queue-type": "quorum",
            "x-overflow": "reject-publish",
            "x-message-ttl": round(step * 1000),
            "x-dead-letter-exchange": "",
            "x-dead-letter-strategy": "at-least-once",
        }
        spec = QueueSpec(name=name, arguments=arguments)
        ladder.append((spec, ExchangeSpec(name=name, kind="fanout", bindings=((name, ""),))))
    return ladder


async def declare(connection: AbstractConnection) -> None:
    """Declares everything there is from the start; raises SettingsError with every difference and the cure."""
    await declare_these(connection, queues(), exchanges())


async def declare_ladder(connection: AbstractConnection, home: str) -> None:
    """Declares a home's delay queues, the longest last: where that is, all are."""
    for queue, exchange in delay_ladder(home):
        await declare_these(connection, [queue], [exchange])


async def declare_these(
    connection: AbstractConnection, queues: Sequence[QueueSpec], exchanges: Sequence[ExchangeSpec] = ()
) -> None:
    """Declares queues, then exchanges with their bindings; raises SettingsError with every difference and the cure."""
    differences = await compare(connection, queues, exchanges)
    if differences:
        raise SettingsError([*differences.values(), Problem("queue_url", f"the cure: {CURE}")])


async def compare(
    connection: AbstractConnection, queues: Sequence[QueueSpec], exchanges: Sequence[ExchangeSpec] = ()
) -> dict[Spec, Problem]:
    """Declares what is missing; what is there and differs comes back, each with what differs."""
    differences: dict[Spec, Problem] = {}
    channel = await open_channel(connection)
    specs: list[Spec] = [*queues, *exchanges]
    for spec in specs:
        try:
            await _declare(channel, spec)
        except ChannelPreconditionFailed as error:  # it closes the channel
            differences[spec] = Problem(spec.name, _difference(str(error)))
            channel = await open_channel(connection)
    await channel.close()
    return differences


async def _declare(channel: AbstractChannel, spec: Spec, *, binds: bool = True) -> None:
    if isinstance(spec, QueueSpec):
        await channel.declare_queue(spec.name, durable=True, arguments=spec.arguments, timeout=RPC_SECONDS)
        return
    exchange = await channel.declare_exchange(
        spec.name, spec.kind, durable=True, arguments=spec.arguments, timeout=RPC_SECONDS
    )
    for name, key in spec.bindings if binds else ():
        queue = await channel.get_queue(name, ensure=False)
        await queue.bind(exchange, key, timeout=RPC_SECONDS)


async def specs_there(connection: AbstractConnection) -> list[Spec]:
    """What is declared from the start, and the delays of every home that has them."""
    specs: list[Spec] = [*queues(), *exchanges()]
    async with Looking(connection) as looking:
        for queue in queues():
            if await looking.has(delay_queue(STEPS[-1], queue.name)):
                specs += [part for rung in delay_ladder(queue.name) for part in rung]
    return specs


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What differs from what must be; `is_untouched`: nothing of ours is there."""

    missing: list[Spec]
    differences: dict[Spec, Problem]
    is_untouched: bool


async def look(connection: AbstractConnection) -> Look:
    """Compares without declaring what is missing; raises QueueUnavailable, of missing rights too."""
    specs = await specs_there(connection)
    missing: list[Spec] = []
    differences: dict[Spec, Problem] = {}
    channel = await open_channel(connection)
    for spec in specs:
        try:
            if isinstance(spec, QueueSpec):
                await channel.declare_queue(spec.name, passive=True, timeout=RPC_SECONDS)
            else:
                await channel.declare_exchange(spec.name, passive=True, timeout=RPC_SECONDS)
            await _declare(channel, spec, binds=False)
        except ChannelNotFoundEntity:  # each of them closes the channel
            missing.append(spec)
            channel = await open_channel(connection)
        except ChannelPreconditionFailed as error:
            differences[spec] = Problem(spec.name, _difference(str(error)))
            channel = await open_channel(connection)
    await channel.close()
    return Look(missing=missing, differences=differences, is_untouched=len(missing) == len(specs))


async def bind(connection: AbstractConnection, exchange: str, bindings: Sequence[tuple[str, str]]) -> None:
    """Binds queues to an exchange that is there already."""
    channel = await open_channel(connection)
    for name, key in bindings:
        queue = await channel.get_queue(name, ensure=False)
        await queue.bind(exchange, key, timeout=RPC_SECONDS)
    await channel.close()


async def unbind(connection: AbstractConnection, exchange: str, bindings: Sequence[tuple[str, str]]) -> None:
    """Unbinds queues from an exchange; what is not bound stays so."""
    channel = await open_channel(connection)
    for name, key in bindings:
        queue = await channel.get_queue(name, ensure=False)
        await queue.unbind(exchange, key, timeout=RPC_SECONDS)
    await channel.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the broker tells of a queue."""

    ready: int = 0
    consumers: int = 0


class Looking:
    """Looks at queues without touching them; asking for one that is not there costs the channel, and a new one is opened."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._channel: AbstractChannel | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Looking:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def count(self, name: str) -> Found:
        """Its tickets and consumers; none of both when there is no such queue."""
        return await self._look(name) or Found()

    async def has(self, name: str) -> bool:
        return await self._look(name) is not None

    async def _look(self, name: str) -> Found | None:
        async with self._turn:
            if self._channel is None or self._channel.is_closed:
                self._channel = await open_channel(self._connection)
            try:
                queue = await self._channel.declare_queue(name, passive=True, timeout=RPC_SECONDS)
            except ChannelNotFoundEntity:
                self._channel = None
                return None
        told = queue.declaration_result
        return Found(ready=told.message_count or 0, consumers=told.consumer_count or 0)


def _difference(text: str) -> str:
    match = _DIFFERENCE.search(text)
    if match is None:
        return text.removeprefix("PRECONDITION_FAILED - ")
    return f"{match[1]} is {match[3]} there and must be {match[2].removeprefix('the value ')}"


def grants(app: str) -> list[str]:
    """The `rabbitmqctl` arguments that let the user `app` publish commands, ask, and read its own events, and nothing else.

    The write right on its own subscriber queue is for binding it: nothing can be published to a queue but through an exchange.
    """
    own = re.escape(f"{SUBSCRIBER}{app}") + r"(\..*)?"
    configure, write, read = f"^{own}$", f"^({re.escape(COMMANDS)}|{own})$", f"^({re.escape(EVENTS)}|{own})$"
    return ["set_permissions", app, configure, write, read]
