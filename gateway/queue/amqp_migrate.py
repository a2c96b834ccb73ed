"""`gateway queues migrate`: brings a RabbitMQ whose queues are declared otherwise to what `queue.topology` says.

A queue's arguments cannot be changed, so its tickets move to `gateway.migrating.<queue>`, each confirmed there before it
leaves; the queue is deleted when it is empty, declared anew, and they move back.  Interrupted at any point, the next run
goes on.  Commands published meanwhile are kept: the interim queue hangs on `gateway.commands` in the other one's place; for
a moment both do, and what comes then comes twice (its id makes it one).
Limits: nobody may consume what is changed, so the gateway stands still, and nobody publish straight to it, as its own doors
do; an exchange of events is left to the operator, for
its subscriptions would be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError

from gateway.errors import Problem, QueueUnavailable, SettingsError
from gateway.queue import topology
from gateway.queue.amqp_faults import RPC_SECONDS, faults_told, open_channel
from gateway.queue.amqp_link import CONNECT_SECONDS
from gateway.queue.amqp_ticket import copy
from gateway.queue.amqp_url import user_of
from gateway.queue.ticket import COMMAND_QUEUES
from gateway.queue.topology import COMMANDS, EVENTS, ExchangeSpec, Looking, QueueSpec, Spec

_INTERIM = "gateway.migrating."


async def migrate(urls: Sequence[str]) -> list[str]:
    """Does it on the first node that answers; returns a line for each thing it changed."""
    with faults_told("cannot migrate"):
        async with await connect(urls) as connection:
            return await _Migration(connection, user=user_of(urls[0])).run()


async def connect(urls: Sequence[str]) -> aio_pika.Connection:
    for url in urls:
        try:
            return await aio_pika.connect(url, timeout=CONNECT_SECONDS)
        except (AMQPError, OSError) as error:
            fault = error
    raise QueueUnavailable(f"RabbitMQ cannot be reached: {fault}") from fault


class _Migration:
    def __init__(self, connection: AbstractConnection, *, user: str) -> None:
        self._connection = connection
        self._user = user
        self._told: list[str] = []

    async def run(self) -> list[str]:
        specs = await topology.specs_there(self._connection)
        differing = await topology.compare(
            self._connection,
            [spec for spec in specs if isinstance(spec, QueueSpec)],
            [spec for spec in specs if isinstance(spec, ExchangeSpec)],
        )
        await self._refuse_consumed(differing)
        for spec, problem in differing.items():
            await (self._remake(spec) if isinstance(spec, QueueSpec) else self._remake_exchange(spec))
            self._told.append(str(problem))
        await topology.declare(self._connection)
        for spec in specs:
            if isinstance(spec, QueueSpec):
                await self._bring_home(spec)
        return self._told

    async def _refuse_consumed(self, differing: dict[Spec, Problem]) -> None:
        async with Looking(self._connection) as looking:
            for spec in differing:
                if spec.name == EVENTS:
                    text = "delete it and run this again; then every subscriber has to subscribe anew"
                    raise SettingsError([differing[spec], Problem(EVENTS, text)])
                if isinstance(spec, QueueSpec) and (await looking.count(spec.name)).consumers:
                    raise SettingsError([Problem(spec.name, "is being consumed: stop the gateway on every host first")])

    async def _remake(self, spec: QueueSpec) -> None:
        interim = _INTERIM + spec.name
        await topology.declare_these(self._connection, [topology.keeping_queue(interim)])
        if spec.name in COMMAND_QUEUES:
            await topology.bind(self._connection, COMMANDS, [(interim, spec.name)])
            await topology.unbind(self._connection, COMMANDS, [(spec.name, spec.name)])
        await self._move(spec.name, interim)
        channel = await open_channel(self._connection)
        await channel.queue_delete(spec.name, timeout=RPC_SECONDS)  # quorum queues know no "if empty"
        await channel.close()
        await topology.declare_these(self._connection, [spec])

    async def _remake_exchange(self, spec: ExchangeSpec) -> None:
        channel = await open_channel(self._connection)
        await channel.exchange_delete(spec.name, timeout=RPC_SECONDS)
        await channel.close()
        await topology.declare_these(self._connection, [], [spec])

    async def _bring_home(self, spec: QueueSpec) -> None:
        interim = _INTERIM + spec.name
        async with Looking(self._connection) as looking:
            if not await looking.has(interim):
                return
        if spec.name in COMMAND_QUEUES:
            await topology.unbind(self._connection, COMMANDS, [(interim, spec.name)])
        moved = await self._move(interim, spec.name)
        channel = await open_channel(self._connection)
        await channel.queue_delete(interim, timeout=RPC_SECONDS)
        await channel.close()
        self._told.append(f"{spec.name}: declared anew, {moved} tickets moved")

    async def _move(self, source: str, target: str) -> int:
        """Moves what is there, one after another; each is confirmed in its new queue before it leaves the old one."""
        moved = 0
        home = source.removeprefix(_INTERIM)
        opened = await open_channel(self._connection, confirms=True)
        channel: Any = await opened.get_underlay_channel()
        while True:
            message = await channel.basic_get(source, timeout=RPC_SECONDS)
            if message.delivery.name == "Basic.GetEmpty":
                await opened.close()
                return moved
            again = copy(aio_pika.IncomingMessage(message), home, user=self._user)
            await channel.basic_publish(
                again.body, routing_key=target, properties=again.properties, mandatory=True, timeout=RPC_SECONDS
            )
            await channel.basic_ack(message.delivery.delivery_tag)
            moved += 1
