"""One desk where senders are judged for each module of tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest_asyncio
from fake_dns import FakeDns
from sender_desk import Desk, zone

from gateway.cage import Cage
from gateway.inbound.authenticate.resolver import Resolver


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        dns = await stack.enter_async_context(FakeDns(zone()))
        cage = await stack.enter_async_context(
            Cage(children=1, preload=("gateway.inbound.authenticate.signature_job",))
        )
        yield Desk(dns, cage, Resolver([dns.server], query_seconds=2))
