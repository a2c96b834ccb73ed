"""What the doctor sees of a RabbitMQ, without touching it; and the start without the feature flag that 3.10 needs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aio_pika
import pytest
from services.rabbitmq import Epmd, Node, free_port, require

from gateway.errors import SettingsError
from gateway.queue import amqp_survey, topology
from gateway.queue.amqp_survey import survey
from gateway.queue.rabbitmq import RabbitmqBroker
from gateway.queue.ticket import DEAD_FAILED, EMAIL_SEND

_FLAGS = "classic_mirrored_queue_version,implicit_default_bindings,maintenance_mode_status,quorum_queue,user_limits"


def wrong(found: amqp_survey.Survey) -> list[tuple[str, str]]:
    return [(item.finding, item.next_step) for item in found.found if item.level != "ok"]


async def there(amqp_url: str, name: str) -> bool:
    async with await aio_pika.connect(amqp_url) as connection, topology.Looking(connection) as looking:
        return await looking.has(name)


async def test_an_untouched_vhost_is_told_and_left_untouched(amqp_url: str) -> None:
    found = await survey([amqp_url])
    assert not found.is_whole
    assert wrong(found) == []
    assert any(item.finding.startswith("not declared: mail.inbound") for item in found.found)
    assert not await there(amqp_url, EMAIL_SEND)


async def test_what_is_declared_is_whole_and_what_was_deleted_is_named_and_not_made(amqp_url: str) -> None:
    async with RabbitmqBroker([amqp_url], is_house=True):
        found = await survey([amqp_url])
        assert (found.is_whole, wrong(found)) == (True, [])
    async with await aio_pika.connect(amqp_url) as connection:
        await (await connection.channel()).queue_delete(DEAD_FAILED)
    found = await survey([amqp_url])
    assert wrong(found) == [(f"not declared: {DEAD_FAILED}", "`gateway run` declares what is missing when it starts")]
    assert not await there(amqp_url, DEAD_FAILED)


async def test_a_difference_is_told_with_its_cure_and_policies_with_how_to_ask(amqp_url: str) -> None:
    old = topology.work_queue(EMAIL_SEND).arguments | {"x-max-length": 7}
    async with await aio_pika.connect(amqp_url) as connection:
        await (await connection.channel()).declare_queue(EMAIL_SEND, durable=True, arguments=old)
    found = await survey([amqp_url])
    assert (f"{EMAIL_SEND}: x-max-length is '7' there and must be '{topology.MAX_TICKETS}'", topology.CURE) in wrong(
        found
    )
    vhost = amqp_url.rpartition("/")[2]
    assert any(item.next_step.startswith(f"rabbitmqctl list_policies -p {vhost}:") for item in found.found)


async def test_each_node_that_does_not_answer_is_named_and_the_others_are_looked_at(amqp_url: str) -> None:
    gone = f"amqp://guest:guest@127.0.0.1:{free_port()}/{amqp_url.rpartition('/')[2]}"
    found = await survey([gone, amqp_url])
    assert [finding.partition(":")[0] for finding, _ in wrong(found)] == ["RabbitMQ at 127.0.0.1"]
    assert any(item.finding.startswith("RabbitMQ 3.") or item.finding.startswith("RabbitMQ 4.") for item in found.found)


class OldNode(Node):
    """A node that was upgraded to 3.10 without its new feature flags."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"RABBITMQ_FEATURE_FLAGS": _FLAGS}


@pytest.fixture
def old_node() -> Iterator[Node]:
    require()
    folder = Path(tempfile.mkdtemp(prefix="gateway-rabbitmq-"))
    epmd = Epmd()
    node = OldNode(folder / "node", epmd)
    try:
        node.start()
        yield node
    finally:
        node.end()
        epmd.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
async def test_a_broker_that_may_drop_what_it_dead_letters_is_refused_until_its_flag_is_on(old_node: Node) -> None:
    for _ in range(2):  # asking changes nothing
        found = await survey([old_node.url()])
        assert [step for _, step in wrong(found)] == ["rabbitmqctl enable_feature_flag stream_queue"]
        with pytest.raises(SettingsError, match="stream_queue is off"):
            async with RabbitmqBroker([old_node.url()], is_house=True):
                pass
    assert EMAIL_SEND not in old_node.ctl("list_queues", "name")
    old_node.ctl("enable_feature_flag", "stream_queue")
    async with RabbitmqBroker([old_node.url()], is_house=True):
        assert (await survey([old_node.url()])).is_whole
