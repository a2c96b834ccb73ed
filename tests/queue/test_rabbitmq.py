"""What only the engine on RabbitMQ has to show: topology, rights, alarms, lost connections, what the broker itself does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from services.rabbitmq import Node, free_port

from gateway.client import Client, open_broker
from gateway.errors import LeaseLost, PermanentFailure, QueueUnavailable, SettingsError
from gateway.queue import amqp_consumer, amqp_dead, topology
from gateway.queue.amqp_migrate import migrate
from gateway.queue.amqp_version import refuse_version
from gateway.queue.broker import (
    DELIVERY_LIMIT,
    Broker,
    Consumer,
    Dead,
    Depth,
    Done,
    Event,
    Later,
    Lease,
    Outcome,
    Release,
    Suspect,
)
from gateway.queue.rabbitmq import RabbitmqBroker
from gateway.queue.rabbitmq_house import HouseRabbitmqBroker
from gateway.queue.receipts import Receipted
from gateway.queue.ticket import (
    DEAD_CRASHED,
    DEAD_FAILED,
    EMAIL_SEND,
    EMAIL_SEND_SERIAL,
    MAIL_INBOUND,
    ROUTING_KEY,
    SUSPECT,
    UNROUTABLE,
    Ticket,
    retry_queue,
)

PATIENCE_SECONDS = 30.0


@pytest.fixture
async def broker(amqp_url: str) -> AsyncIterator[RabbitmqBroker]:
    async with RabbitmqBroker([amqp_url], is_house=True) as broker:
        yield broker


@pytest.fixture
async def raw(amqp_url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """A channel of any program's."""
    async with await aio_pika.connect(amqp_url) as connection:
        yield await connection.channel(on_return_raises=True)


def ticket(id: str = "1", queue: str = MAIL_INBOUND, **values: Any) -> Ticket:
    return Ticket(queue=queue, id=id, body=b"octets", **values)


async def next_lease(consumer: Consumer) -> Lease:
    """The next lease, whatever outages the queue tells of meanwhile."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with suppress(QueueUnavailable):
                return await anext(aiter(consumer))


@asynccontextmanager
async def consuming(broker: Broker, *queues: str, concurrency: int = 10) -> AsyncIterator[Consumer]:
    async with broker.consume(dict.fromkeys(queues, 1), concurrency=concurrency) as consumer:
        yield consumer


async def depth(broker: Broker, name: str) -> Depth | None:
    return next((depth for depth in await broker.depths() if depth.name == name), None)


async def hold(message: Any) -> None:
    """Takes a message and says nothing."""


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)


# topology


async def test_a_queue_declared_otherwise_refuses_to_start_and_says_difference_and_cure(
    amqp_url: str, raw: aio_pika.abc.AbstractChannel
) -> None:
    arguments = topology.work_queue(EMAIL_SEND).arguments | {"x-delivery-limit": 7}
    await raw.declare_queue(EMAIL_SEND, durable=True, arguments=arguments)
    with pytest.raises(SettingsError) as refused:
        async with RabbitmqBroker([amqp_url], is_house=True):
            pass
    told = "\n".join(map(str, refused.value.problems))
    assert f"{EMAIL_SEND}: x-delivery-limit is '7' there and must be '{DELIVERY_LIMIT}'" in told
    assert "gateway queues migrate" in told


async def test_migrate_declares_anew_and_keeps_the_tickets_and_their_apps(
    amqp_url: str, raw: aio_pika.abc.AbstractChannel
) -> None:
    old = topology.work_queue(EMAIL_SEND).arguments | {"x-max-length": 7}
    await raw.declare_queue(EMAIL_SEND, durable=True, arguments=old)
    await raw.declare_exchange(topology.COMMANDS, "direct", durable=True)
    for n in range(5):
        message = aio_pika.Message(b"octets", message_id=str(n), headers={"n": n})
        await raw.default_exchange.publish(message, EMAIL_SEND)
    told = await migrate([amqp_url])
    assert any("x-max-length" in line for line in told)
    assert any("5 tickets moved" in line for line in told)
    assert await migrate([amqp_url]) == []
    async with RabbitmqBroker([amqp_url], is_house=True) as broker, consuming(broker, EMAIL_SEND) as consumer:
        found = [await next_lease(consumer) for _ in range(5)]
        assert [(lease.ticket.id, lease.ticket.headers) for lease in found] == [(str(n), {"n": n}) for n in range(5)]


async def test_migrate_leaves_alone_what_is_being_consumed(amqp_url: str, raw: aio_pika.abc.AbstractChannel) -> None:
    arguments = topology.work_queue(EMAIL_SEND).arguments | {"x-delivery-limit": 7}
    queue = await raw.declare_queue(EMAIL_SEND, durable=True, arguments=arguments)
    await queue.consume(hold)
    with pytest.raises(SettingsError, match="is being consumed"):
        await migrate([amqp_url])


@pytest.mark.parametrize("version", ["3.9.27", "3.8.2", "2.7"])
def test_a_broker_that_ignores_what_we_rely_on_is_refused(version: str) -> None:
    with pytest.raises(SettingsError, match=r"3\.10 or later"):
        refuse_version(version)


@pytest.mark.parametrize("version", ["3.10.8", "3.13.7", "4.0.5", "4.3.1"])
def test_later_brokers_are_taken(version: str) -> None:
    refuse_version(version)


async def test_what_somebody_deletes_under_us_is_declared_again(
    broker: RabbitmqBroker, raw: aio_pika.abc.AbstractChannel
) -> None:
    async with consuming(broker, MAIL_INBOUND) as consumer:
        await raw.queue_delete(MAIL_INBOUND)
        await broker.publish([ticket()])
        assert (await next_lease(consumer)).ticket.id == "1"


# rights and names


@pytest.fixture
def shop_url(rabbitmq: Node, amqp_url: str) -> Iterator[str]:
    """The URL of the app `shop`, which has what `queues grants` prints and no more."""
    vhost = amqp_url.rpartition("/")[2]
    with suppress(AssertionError):
        rabbitmq.ctl("add_user", "shop", "secret")
    command, user, *patterns = topology.grants("shop")
    rabbitmq.ctl(command, "-p", vhost, user, *patterns)
    yield rabbitmq.url(vhost, user="shop", password="secret")
    rabbitmq.ctl("clear_permissions", "-p", vhost, "shop")


async def test_an_app_publishes_asks_and_hears_events_with_its_grants_and_is_known_by_its_user(
    broker: RabbitmqBroker, shop_url: str
) -> None:
    async with Client(shop_url) as shop, consuming(broker, EMAIL_SEND) as consumer:
        asking = asyncio.create_task(
            shop.ask("welcome", to="a@example.org", params={"name": "A"}, timeout_seconds=PATIENCE_SECONDS)
        )
        lease = await next_lease(consumer)
        assert lease.ticket.app == "shop"
        await broker.answer(lease.ticket, b'{"id": "%s", "status": "accepted"}' % lease.ticket.id.encode())
        assert (await asking).status == "accepted"
        await lease.settle(Later(at=datetime.now(UTC)))
    async with consuming(broker, retry_queue(EMAIL_SEND)) as consumer:
        assert (await next_lease(consumer)).ticket.app == "shop", "a retry is still the app's"
    async with open_broker(shop_url) as shop_broker:
        queue = await shop_broker.subscribe("shop", ["email.#"])
        await broker.publish_events([Event(key="email.relayed", id="1", body=b"{}")])
        async with shop_broker.consume({queue: 1}, concurrency=1) as events:
            lease = await next_lease(events)
            assert lease.ticket.headers == {"key": "email.relayed"}
            await lease.settle(Done())


@pytest.mark.parametrize("exchange", ["", "gateway.events", "gateway.unroutable", "amq.topic", "gateway.census"])
async def test_an_app_can_publish_nowhere_but_to_commands(broker: RabbitmqBroker, shop_url: str, exchange: str) -> None:
    async with await aio_pika.connect(shop_url) as connection:
        channel = await connection.channel()
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        with pytest.raises(aio_pika.exceptions.ChannelClosed, match="ACCESS_REFUSED"):
            await target.publish(aio_pika.Message(b"x"), EMAIL_SEND)


async def test_an_app_cannot_claim_another_name_an_attempt_or_a_moment(broker: RabbitmqBroker, shop_url: str) -> None:
    async with await aio_pika.connect(shop_url) as connection:
        channel = await connection.channel()
        commands = await channel.get_exchange(topology.COMMANDS, ensure=False)
        forged = {"x-gateway-app": "payroll", "x-gateway-attempt": 9, "x-gateway-deliveries-before": 19}
        await commands.publish(aio_pika.Message(b"x", user_id="shop", message_id="1", headers=forged), EMAIL_SEND)
        async with consuming(broker, EMAIL_SEND) as consumer:
            lease = await next_lease(consumer)
            found = lease.ticket
            assert (found.app, found.attempt, lease.delivery_count, dict(found.headers)) == ("shop", 0, 0, {})
        with pytest.raises(aio_pika.exceptions.ChannelPreconditionFailed, match="user_id"):
            await commands.publish(aio_pika.Message(b"x", user_id="guest"), EMAIL_SEND)


async def test_an_app_cannot_name_further_queues_nor_a_count_of_deliveries(
    broker: RabbitmqBroker, shop_url: str
) -> None:
    """The broker obeys CC and BCC of what we publish, too: by the default exchange every queue is in reach."""
    async with await aio_pika.connect(shop_url) as connection:
        channel = await connection.channel()
        commands = await channel.get_exchange(topology.COMMANDS, ensure=False)
        forged = {"CC": [MAIL_INBOUND], "BCC": [MAIL_INBOUND], "x-delivery-count": 9, "mail_from": "boss@example.org"}
        await commands.publish(aio_pika.Message(b"x", message_id="1", headers=forged), EMAIL_SEND)
    home, later = EMAIL_SEND, datetime.now(UTC)
    for outcome in (Later(at=later), Later(at=later + timedelta(seconds=1)), Dead(reason="no")):
        async with consuming(broker, home) as consumer:
            lease = await next_lease(consumer)
            assert (lease.delivery_count, lease.ticket.headers) == (0, {"mail_from": "boss@example.org"})
            await lease.settle(outcome)
        home = retry_queue(EMAIL_SEND)
    [dead] = await broker.dead()
    assert await broker.retry_dead(dead.number)
    async with consuming(broker, EMAIL_SEND) as consumer:
        await (await next_lease(consumer)).settle(Suspect())
    assert {depth.name: depth.ready for depth in await broker.depths() if depth.ready} == {SUSPECT: 1}


async def test_a_command_whose_key_leads_nowhere_comes_to_the_reader_of_the_unroutable(
    broker: RabbitmqBroker, raw: aio_pika.abc.AbstractChannel
) -> None:
    commands = await raw.get_exchange(topology.COMMANDS, ensure=False)
    await commands.publish(aio_pika.Message(b"{}", message_id="7"), "email.sned")
    async with consuming(broker, UNROUTABLE) as consumer:
        lease = await next_lease(consumer)
        assert (lease.ticket.id, lease.ticket.headers[ROUTING_KEY]) == ("7", "email.sned")


async def test_a_bare_publish_of_any_program_is_a_ticket(
    broker: RabbitmqBroker, raw: aio_pika.abc.AbstractChannel
) -> None:
    headers = {"when": datetime(2026, 1, 2, tzinfo=UTC), "raw": bytearray(b"\xff"), "n": 1.5}
    await raw.default_exchange.publish(aio_pika.Message(b"{}", headers=headers), EMAIL_SEND)
    async with consuming(broker, EMAIL_SEND) as consumer:
        await (await next_lease(consumer)).settle(Later(at=datetime.now(UTC)))
    async with consuming(broker, retry_queue(EMAIL_SEND)) as consumer:
        lease = await next_lease(consumer)
        assert lease.ticket.body == b"{}"
        assert set(lease.ticket.headers) == set(headers)


# what cannot be carried


@pytest.mark.parametrize(
    "unfit",
    [
        {"headers": {"rcpt_to": ["x" * 60 + "@example.org"] * 2000}},
        {"headers": {"n": 1.5}},
        {"headers": {"n": 2**63}},
        {"headers": {"x" * 300: 1}},
        {"id": "x" * 256},
        {"body": bytes(17 * 1024 * 1024)},
    ],
)
async def test_what_amqp_cannot_carry_is_refused_and_disturbs_nobody(
    broker: RabbitmqBroker, unfit: dict[str, Any]
) -> None:
    others = asyncio.create_task(broker.publish([ticket(str(n)) for n in range(100)]))
    with pytest.raises(PermanentFailure):
        await broker.publish([replace(ticket(), **unfit)])
    await others
    assert (await depth(broker, MAIL_INBOUND)).ready == 100


async def test_a_queue_that_is_full_refuses_and_what_it_has_confirmed_is_there(
    broker: RabbitmqBroker, rabbitmq: Node, amqp_url: str
) -> None:
    vhost = amqp_url.rpartition("/")[2]
    rabbitmq.ctl("set_policy", "-p", vhost, "small", "^mail.inbound$", '{"max-length": 5}', "--apply-to", "queues")

    async def publish(n: int) -> bool:
        try:
            await broker.publish([ticket(str(n))])
        except QueueUnavailable:
            return False
        return True

    confirmed = [await publish(n) for n in range(30)]
    assert not all(confirmed)
    assert (await depth(broker, MAIL_INBOUND)).ready >= sum(confirmed)


async def test_equal_ids_to_a_missing_queue_and_a_good_one_are_not_mistaken_for_each_other(
    broker: RabbitmqBroker,
) -> None:
    results = await asyncio.gather(
        *(broker.publish([ticket("same", queue)]) for queue in ["reply.nowhere", MAIL_INBOUND] * 20),
        return_exceptions=True,
    )
    assert [isinstance(result, QueueUnavailable) for result in results] == [True, False] * 20
    assert (await depth(broker, MAIL_INBOUND)).ready == 20


async def test_while_an_alarm_blocks_us_publishing_fails_at_once_and_goes_on_after_it(
    amqp_url: str, rabbitmq: Node
) -> None:
    async with RabbitmqBroker([amqp_url], is_house=True) as broker:
        await broker.publish([ticket("before")])
        rabbitmq.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            with pytest.raises(QueueUnavailable):  # the first one finds out
                await broker.publish([ticket("first")])
            with pytest.raises(QueueUnavailable, match="alarm"):
                async with asyncio.timeout(1):
                    await broker.publish([ticket("second")])
        finally:
            rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")

        async def publishes() -> bool:
            with suppress(QueueUnavailable):
                await broker.publish([ticket("after")])
                return True
            return False

        await until(publishes)


# waiting, dying


async def test_a_long_wait_in_several_hops_is_never_early(broker: RabbitmqBroker) -> None:
    at = datetime.now(UTC) + timedelta(seconds=2.9)
    await broker.publish([ticket(due_at=at)])
    assert (await depth(broker, MAIL_INBOUND)).delayed == 1
    async with consuming(broker, MAIL_INBOUND) as consumer:
        lease = await next_lease(consumer)
        assert datetime.now(UTC) >= at
        assert lease.ticket == ticket(due_at=at)


async def test_the_brokers_own_delivery_limit_makes_a_dead_letter_like_ours(
    broker: RabbitmqBroker, raw: aio_pika.abc.AbstractChannel
) -> None:
    await broker.publish([ticket("killer", headers={"a": 1})])
    queue = await raw.get_queue(MAIL_INBOUND, ensure=False)
    for _ in range(DELIVERY_LIMIT + 1):
        await (await queue.get(timeout=PATIENCE_SECONDS)).reject(requeue=True)

    async def has_died() -> bool:
        return bool(await broker.dead())

    await until(has_died)
    (letter,) = await broker.dead()
    assert (letter.queue, letter.box, letter.ticket.id, letter.ticket.headers) == (
        MAIL_INBOUND,
        DEAD_CRASHED,
        "killer",
        {"a": 1},
    )
    assert str(DELIVERY_LIMIT) in letter.reason
    assert await broker.retry_dead(letter.number)
    async with consuming(broker, MAIL_INBOUND) as consumer:
        assert (await next_lease(consumer)).delivery_count == 0


async def test_readers_of_dead_letters_take_turns_and_lose_none(amqp_url: str, broker: RabbitmqBroker) -> None:
    await broker.publish([ticket(str(n)) for n in range(20)])
    async with consuming(broker, MAIL_INBOUND) as consumer:
        for _ in range(20):
            await (await next_lease(consumer)).settle(Dead(reason="no"))
    async with RabbitmqBroker([amqp_url], is_house=True) as other:
        lists = await asyncio.gather(*(reader.dead() for reader in (broker, other, broker, other)))
        assert [len(found) for found in lists] == [20] * 4
        taken = await asyncio.gather(*(other.drop_dead(letter.number) for letter in lists[0][:5]))
        assert all(taken)
    assert len(await broker.dead()) == 15


async def test_dead_letters_are_counted_beyond_what_is_read_and_while_others_read(
    amqp_url: str, broker: RabbitmqBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_dead, "COUNTED", 5)
    monkeypatch.setattr(amqp_dead, "_COUNT_TURN_SECONDS", 0.1)
    await broker.publish([ticket(str(n)) for n in range(12)])
    async with consuming(broker, MAIL_INBOUND) as consumer:
        for _ in range(12):
            await (await next_lease(consumer)).settle(Dead(reason="no"))

    async def counted() -> dict[str, int]:
        return {depth.name: depth.dead for depth in await broker.depths() if depth.dead}

    assert await counted() == {MAIL_INBOUND: 5, DEAD_FAILED: 7}
    async with RabbitmqBroker([amqp_url], is_house=True) as other, aclosing(other.all_dead()) as letters:
        await anext(letters)  # what is being read is not seen, and still there
        assert await counted() == {MAIL_INBOUND: 5, DEAD_FAILED: 7}
    (letter, *_) = await broker.dead()
    await broker.drop_dead(letter.number)
    assert await counted() == {MAIL_INBOUND: 5, DEAD_FAILED: 6}


async def test_a_reader_of_dead_letters_that_dies_takes_none_along(amqp_url: str, broker: RabbitmqBroker) -> None:
    await broker.publish([ticket()])
    async with consuming(broker, MAIL_INBOUND) as consumer:
        await (await next_lease(consumer)).settle(Dead(reason="no"))
    (letter,) = await broker.dead()
    connection = await aio_pika.connect(amqp_url)
    channel = await connection.channel()
    await channel.declare_queue("gateway.dead.turn", exclusive=True)
    await (await channel.get_queue(letter.box, ensure=False)).get()
    reading = asyncio.create_task(broker.dead())
    await connection.close()
    assert [found.number for found in await reading] == [letter.number]


# receipts


async def test_the_house_keeps_receipts_of_what_it_publishes_and_knows_when_nothing_is_queued(
    amqp_url: str, tmp_path: Path
) -> None:
    async with HouseRabbitmqBroker([amqp_url], receipts=tmp_path / "receipts.db") as house:
        assert isinstance(house, Receipted)
        await house.publish([ticket("1", headers={"rcpt_to": ["a@example.org", "b@example.org"]})])
        await house.publish([ticket("1", retry_queue(MAIL_INBOUND))])
        (kept,) = await house.receipts.page(after=0, until=await house.receipts.last(), limit=10)
        assert (kept.kind, kept.id, kept.recipients) == ("mail", "1", 2)
        names = {("mail", "1"), ("email", "9")}
        assert await house.still_queued(names) == {("mail", "1")}
        async with consuming(house, MAIL_INBOUND, retry_queue(MAIL_INBOUND)) as consumer:
            first, second = await next_lease(consumer), await next_lease(consumer)
            assert await house.still_queued(names) == {("mail", "1")}, "leased is queued"
            await first.settle(Done())
            await second.settle(Dead(reason="no"))
        assert await house.still_queued(names) == names, "a dead letter may stand for anything"
        (letter,) = await house.dead()
        assert await house.drop_dead(letter.number)
        assert await house.still_queued(names) == set()
        (kept,) = await house.receipts.page(after=0, until=await house.receipts.last(), limit=10)
        assert kept.dropped > 0


# consumers


async def test_a_serial_queue_has_one_active_consumer_and_one_ticket_out(amqp_url: str, broker: RabbitmqBroker) -> None:
    await broker.publish([ticket(str(n), EMAIL_SEND_SERIAL) for n in range(3)])
    async with (
        RabbitmqBroker([amqp_url], is_house=True) as other,
        consuming(broker, EMAIL_SEND_SERIAL) as first,
        consuming(other, EMAIL_SEND_SERIAL) as second,
    ):
        waits = asyncio.create_task(anext(aiter(second)))
        for n in range(2):
            lease = await next_lease(first)
            assert lease.ticket.id == str(n)
            assert (await depth(broker, EMAIL_SEND_SERIAL)).leased == 1
            await lease.settle(Done())
        assert not waits.done()
        first.stop()
        lease = await asyncio.wait_for(waits, PATIENCE_SECONDS)
        assert lease.ticket.id == "2"


@pytest.fixture
async def other(amqp_url: str) -> AsyncIterator[RabbitmqBroker]:
    async with RabbitmqBroker([amqp_url], is_house=True) as broker:
        yield broker


@pytest.mark.parametrize("how", ["stop", "pause"])
@pytest.mark.parametrize("last", [Done(), Release(), Later(at=datetime(2026, 1, 1, tzinfo=UTC))], ids=type)
async def test_a_serial_queue_is_handed_over_when_the_last_ticket_is_settled_and_not_before(
    broker: RabbitmqBroker, other: RabbitmqBroker, how: str, last: Outcome
) -> None:
    await broker.publish([ticket(str(n), EMAIL_SEND_SERIAL) for n in range(3)])
    async with consuming(broker, EMAIL_SEND_SERIAL, EMAIL_SEND) as first, consuming(other, EMAIL_SEND_SERIAL) as second:
        lease = await next_lease(first)
        waits = asyncio.create_task(anext(aiter(second)))
        getattr(first, how)()

        async def has_left_the_others() -> bool:
            return not first.is_subscribed(EMAIL_SEND)

        await until(has_left_the_others)
        await until_looked(broker, EMAIL_SEND_SERIAL, leased=1)
        assert not waits.done()
        await lease.settle(last)
        expected = ["0", "1", "2"] if isinstance(last, Release) else ["1", "2"]
        for n in expected:
            lease = await asyncio.wait_for(waits, PATIENCE_SECONDS)
            assert lease.ticket.id == n
            assert (lease.delivery_count, n) in [(0, n), (1, "0")], "only what was given back may be counted"
            await lease.settle(Done())
            waits = asyncio.create_task(anext(aiter(second)))
        waits.cancel()


async def test_a_serial_ticket_nobody_was_handed_keeps_its_place_when_its_consumer_pauses(
    broker: RabbitmqBroker, other: RabbitmqBroker
) -> None:
    await broker.publish([ticket("plain", EMAIL_SEND)])
    async with consuming(broker, EMAIL_SEND_SERIAL, EMAIL_SEND, concurrency=1) as first:
        plain = await next_lease(first)
        await broker.publish([ticket(str(n), EMAIL_SEND_SERIAL) for n in range(3)])
        await until_looked(broker, EMAIL_SEND_SERIAL, leased=1)
        async with consuming(other, EMAIL_SEND_SERIAL) as second:
            for rounds in range(2):
                first.pause()
                lease = await next_lease(second)
                assert lease.ticket.id == str(rounds)
                first.resume()
                await lease.settle(Done())
                second.pause()
                await until_looked(broker, EMAIL_SEND_SERIAL, leased=1)  # the first one's again
                second.resume()
        await plain.settle(Done())
        assert (await next_lease(first)).ticket.id == "2"


async def until_looked(broker: RabbitmqBroker, name: str, *, leased: int) -> None:
    """Waits until so many of the queue are out."""

    async def is_so() -> bool:
        found = await depth(broker, name)
        return found is not None and found.leased == leased

    await until(is_so)


async def test_a_zombie_subscription_is_renewed(broker: RabbitmqBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_consumer, "WATCH_SECONDS", 0.2)
    async with broker.consume({MAIL_INBOUND: 1}, concurrency=5) as consumer:
        await broker.publish([ticket("before")])
        await (await next_lease(consumer)).settle(Done())
        session = consumer._session
        wire = session._wires[False]
        await wire.channel.basic_cancel(wire.tags[MAIL_INBOUND])  # behind the consumer's back
        await broker.publish([ticket("after")])
        assert (await next_lease(consumer)).ticket.id == "after"


async def test_a_lost_connection_loses_the_leases_and_the_consumer_goes_on(
    broker: RabbitmqBroker, rabbitmq: Node, amqp_url: str
) -> None:
    await broker.publish([ticket()])
    async with consuming(broker, MAIL_INBOUND) as consumer:
        lease = await next_lease(consumer)
        rabbitmq.ctl("close_all_connections", "-p", amqp_url.rpartition("/")[2], "a test")
        again = await next_lease(consumer)
        assert (again.ticket.id, again.delivery_count) == ("1", 1)
        with pytest.raises(LeaseLost):
            await lease.settle(Done())
        await again.settle(Done())


async def test_the_next_url_is_tried_where_one_does_not_answer(amqp_url: str) -> None:
    host = amqp_url.partition("@")[2].partition("/")[0]
    dead_url = amqp_url.replace(host, f"127.0.0.1:{free_port()}")
    async with RabbitmqBroker([dead_url, amqp_url], is_house=True) as broker:
        await broker.publish([ticket()])


async def test_a_vhost_that_does_not_let_us_in_is_said_in_words(rabbitmq: Node) -> None:
    with pytest.raises(QueueUnavailable, match="there is none of that name, or our user has no rights in it"):
        await RabbitmqBroker([rabbitmq.url("no-such-vhost")]).open()


async def test_no_node_that_answers_is_queue_unavailable_at_once() -> None:
    with pytest.raises(QueueUnavailable):
        async with open_broker(f"amqp://127.0.0.1:{free_port()}/"):
            pass


@pytest.mark.parametrize(
    "url",
    ["amqp:///", "amqp://a@host/x amqp://b@host/x", "amqp://host/x amqp://host/y", "amqp://host:port/", "amqp://h/ x"],
)
def test_urls_that_name_no_cluster_are_settings_errors(url: str) -> None:
    with pytest.raises(SettingsError, match="queue_url"):
        open_broker(url)
