"""The engines that must keep the queue contract: a second one is added to `ENGINES`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.queue.broker import Broker
from gateway.queue.rabbitmq import RabbitmqBroker
from gateway.queue.sqlite import SqliteBroker

OpenBroker = Callable[[], Awaitable[Broker]]
ENGINES = ["sqlite", "rabbitmq"]


@pytest.fixture(params=ENGINES)
async def open_broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenBroker]:
    """Opens one more connection to the same queue, as another process would."""
    async with AsyncExitStack() as stack:

        async def open_sqlite() -> Broker:
            return await stack.enter_async_context(SqliteBroker(tmp_path / "queue.db", reap_seconds=0.02))

        async def open_rabbitmq() -> Broker:
            return await stack.enter_async_context(RabbitmqBroker([url], is_house=True))

        if request.param == "rabbitmq":
            url = request.getfixturevalue("amqp_url")
        yield {"sqlite": open_sqlite, "rabbitmq": open_rabbitmq}[request.param]


@pytest.fixture
async def broker(open_broker: OpenBroker) -> Broker:
    return await open_broker()
