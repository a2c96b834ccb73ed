"""Apps on RabbitMQ beside a whole gateway: what the README shows, who may join, and what a user's grants leave it."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from services.rabbitmq import Node, Vhosts

import gateway
from gateway.client import open_broker
from gateway.mail.ids import new_id
from gateway.queue import topology
from gateway.queue.broker import Done
from gateway.queue.ticket import DEAD_FAILED, EMAIL_SEND, UNROUTABLE, Ticket

sys.path.insert(0, str(Path(__file__).parents[1] / "crash"))

from house import House

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60


@dataclass
class World:
    """A gateway on RabbitMQ, and the users that apps get."""

    house: House
    node: Node
    vhost: str

    def app_url(self, name: str) -> str:
        """The URL of a user with what `gateway queues grants` prints, and no more."""
        self.node.ctl("add_user", name, "secret")
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "queues", "grants", name, "--vhost", self.vhost],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        program, *words = shlex.split(done.stdout)
        assert program == "rabbitmqctl", done.stderr
        self.node.ctl(*words)
        return self.node.url(self.vhost, user=name, password="secret")

    def until(self, found: Callable[[], Any]) -> Any:
        """What `found` finds as soon as it does; asked by the command, as a person would."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (it := found()):
            assert time.monotonic() < deadline, self.house.log()[-3000:]
            time.sleep(0.1)
        return it


@pytest.fixture(scope="module")
def world(rabbitmq: Node, vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    vhost = vhosts.take()
    folder = tmp_path_factory.mktemp("world") / "var"
    folder.mkdir()
    house = House(folder, "capture:", more={"GATEWAY_QUEUE_URL": rabbitmq.url(vhost)})
    house.start()
    assert house.wait_ready(), house.log()
    yield World(house, rabbitmq, vhost)
    assert house.stop() == 0, house.log()[-3000:]


@pytest.fixture(scope="module")
def till_url(world: World) -> str:
    return world.app_url("till")


@pytest.fixture(scope="module")
def payroll_url(world: World) -> str:
    return world.app_url("payroll")


def test_the_lines_of_the_readme_publish_an_email_and_get_their_answer(
    world: World, till_url: str, tmp_path: Path
) -> None:
    [lines] = re.findall(r"```python\n(import json, os, pika.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) == 10
    assert "declare" not in lines
    script = tmp_path / "readme.py"
    script.write_text(lines)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={"SHOP_URL": till_url},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["errors"]) == ("accepted", [])
    [row] = world.until(lambda: world.house.list("emails", "--disposition", "relayed", "--id", answer["id"]))
    assert (row["recipient"], row["app"]) == ("ann@example.org", "till")


async def test_a_subscriber_joins_while_the_gateway_runs_and_nothing_else_changes(
    world: World, till_url: str, payroll_url: str
) -> None:
    async with open_broker(payroll_url) as payroll, gateway.connect(till_url) as till:
        queue = await payroll.subscribe("payroll", ["email.relayed", "mail.delivered"])
        answer = await till.ask(
            "welcome", to="ben@example.org", params={"name": "Ben"}, timeout_seconds=PATIENCE_SECONDS
        )
        async with asyncio.timeout(PATIENCE_SECONDS), payroll.consume({queue: 1}, concurrency=1) as consumer:
            lease = await anext(aiter(consumer))
            event = json.loads(lease.ticket.body)
            await lease.settle(Done())
    assert (event["type"], event["subject"]) == ("email.relayed", answer.id)
    assert event["data"]["recipient"] == "ben@example.org"
    assert world.house.process is not None
    assert world.house.process.poll() is None


async def test_an_app_cancels_its_own_email_and_no_other(world: World, till_url: str, payroll_url: str) -> None:
    async with gateway.connect(till_url) as till, gateway.connect(payroll_url) as payroll:
        later = datetime.now(UTC) + timedelta(days=1)
        email = {"to": "ann@example.org", "params": {"name": "Ann"}, "send_at": later}
        answer = await till.ask("welcome", timeout_seconds=PATIENCE_SECONDS, **email)
        theirs = await payroll.cancel(answer.id, timeout_seconds=PATIENCE_SECONDS)
        assert (theirs.status, theirs.errors) == ("rejected", ("email_id: no email of yours in the ledger (yet)",))
        assert (await till.cancel(answer.id, timeout_seconds=PATIENCE_SECONDS)).status == "accepted"
    [row] = world.house.list("emails", "--id", answer.id)
    assert (row["disposition"], row["reason"]) == ("cancelled", "cancelled by app till")


async def test_a_key_that_leads_nowhere_is_answered_told_and_kept(
    world: World, till_url: str, payroll_url: str
) -> None:
    request_id = new_id()
    async with open_broker(payroll_url) as payroll, open_broker(till_url) as till:
        queue = await payroll.subscribe("payroll.rejected", ["email.rejected"])
        stray = Ticket(queue="email.sned", id=request_id, body=b'{"to": ["ann@example.org"]}')
        answer = json.loads(await till.ask(stray, timeout_seconds=PATIENCE_SECONDS))
        async with asyncio.timeout(PATIENCE_SECONDS), payroll.consume({queue: 1}, concurrency=1) as consumer:
            lease = await anext(aiter(consumer))
            assert json.loads(lease.ticket.body)["subject"] == request_id
            await lease.settle(Done())
    assert answer == {
        "id": request_id,
        "status": "rejected",
        "errors": ["routing key: 'email.sned' is no command, perhaps email.send?"],
    }
    [letter] = world.until(lambda: [row for row in world.house.list("dead", "list") if row["id"] == request_id])
    assert (letter["queue"], "perhaps email.send?" in str(letter["reason"])) == (UNROUTABLE, True)
    [row] = [row for row in world.house.list("queues") if row["name"] == UNROUTABLE]
    assert row["dead"] == 1
    world.until(lambda: "dead letters (gateway.unroutable)" in world.house.log())


Attempt = Callable[[aio_pika.abc.AbstractChannel], Awaitable[object]]


def publishing(exchange: str, key: str) -> Attempt:
    async def attempt(channel: aio_pika.abc.AbstractChannel) -> object:
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        return await target.publish(aio_pika.Message(b"{}"), key)

    return attempt


def of_queue(name: str, verb: str, *words: object) -> Attempt:
    async def attempt(channel: aio_pika.abc.AbstractChannel) -> object:
        return await getattr(await channel.get_queue(name, ensure=False), verb)(*words)

    return attempt


async def heard(message: object) -> None:
    raise AssertionError(f"an app got {message}")


ATTEMPTS: dict[str, Attempt] = {
    "publish straight to a queue": publishing("", EMAIL_SEND),
    "publish straight to its own queue": publishing("", "subscriber.till"),
    "publish an event": publishing("gateway.events", "email.relayed"),
    "publish to the unroutable": publishing(UNROUTABLE, ""),
    "publish into a delay": publishing(topology.delay_ladder(EMAIL_SEND)[0][1].name, EMAIL_SEND),
    "publish to the census": publishing("gateway.census", ""),
    "publish to an exchange of RabbitMQ's": publishing("amq.topic", EMAIL_SEND),
    "declare a queue": lambda channel: channel.declare_queue("till", durable=True),
    "declare another's queue": lambda channel: channel.declare_queue("subscriber.payroll", durable=True),
    "declare an exchange": lambda channel: channel.declare_exchange("till"),
    "delete an exchange": lambda channel: channel.exchange_delete("gateway.commands"),
    "consume commands": of_queue(EMAIL_SEND, "consume", heard),
    "read dead letters": of_queue(DEAD_FAILED, "get"),
    "consume another's events": of_queue("subscriber.payroll", "consume", heard),
    "purge a queue": of_queue(EMAIL_SEND, "purge"),
    "delete a queue": of_queue(EMAIL_SEND, "delete"),
    "listen to the commands of others": of_queue("subscriber.till", "bind", "gateway.commands", "#"),
    "lead events into a work queue": of_queue(EMAIL_SEND, "bind", "gateway.events", "#"),
}


async def test_an_apps_user_publishes_commands_and_does_nothing_else(till_url: str) -> None:
    async with open_broker(till_url) as till:
        await till.subscribe("till", ["email.#"])  # that it may
    async with await aio_pika.connect(till_url) as connection:
        went_well = []
        for name, attempt in ATTEMPTS.items():
            channel = await connection.channel()
            try:
                await attempt(channel)
                went_well.append(name)
            except aio_pika.exceptions.ChannelClosed as refused:
                assert "ACCESS_REFUSED" in str(refused), name
    assert went_well == []


async def test_a_queue_declared_otherwise_stops_the_start_and_both_start_and_doctor_say_the_cure(
    rabbitmq: Node, amqp_url: str, tmp_path: Path
) -> None:
    arguments = topology.work_queue(EMAIL_SEND).arguments | {"x-delivery-limit": 7}
    async with await aio_pika.connect(amqp_url) as connection:
        await (await connection.channel()).declare_queue(EMAIL_SEND, durable=True, arguments=arguments)
    (tmp_path / "var").mkdir()
    house = House(tmp_path / "var", "capture:", more={"GATEWAY_QUEUE_URL": amqp_url})
    house.start()
    assert house.process is not None
    assert await asyncio.to_thread(house.process.wait, PATIENCE_SECONDS) == 2
    difference = "email.send: x-delivery-limit is '7' there and must be '20'"
    cure = "stop the gateway, run `gateway queues migrate`, start it again"
    assert house.log().splitlines() == [f"gateway: {difference}", f"gateway: queue_url: the cure: {cure}"]
    command = [sys.executable, "-m", "gateway.cli"]
    doctor = subprocess.run([*command, "doctor", "--json"], env=house.environment(), capture_output=True, text=True)
    found = [json.loads(line) for line in doctor.stdout.splitlines()]
    assert doctor.returncode == 1, doctor.stderr
    assert ("wrong", difference, cure) in [(item["level"], item["finding"], item["next_step"]) for item in found]
    migrated = subprocess.run([*command, "queues", "migrate"], env=house.environment(), capture_output=True, text=True)
    assert (migrated.returncode, difference in migrated.stdout) == (0, True)
    house.start()
    assert await asyncio.to_thread(house.wait_ready)
    assert house.stop() == 0
