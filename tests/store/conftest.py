"""A store on each engine, blobs on real files, and a clock that stands still until it is moved."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import store_children

from gateway.store.blobs import FileBlobStore
from gateway.store.database import Database, open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.lists import Lists
from gateway.store.mails import Mails


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await open_database(database_url)
    yield opened
    await opened.close()


@pytest.fixture
def blobs(tmp_path: Path) -> FileBlobStore:
    return FileBlobStore(tmp_path / "blobs")


@pytest.fixture
def ledger(database: Database, blobs: FileBlobStore, clock: Clock) -> DatabaseLedger:
    return DatabaseLedger(
        database, blobs, clock=clock, hostname="mx.test", return_path="bounces@mx.test", unknown_wait_seconds=900
    )


@pytest.fixture
def mails(database: Database, blobs: FileBlobStore, clock: Clock) -> Mails:
    return Mails(database, blobs, clock=clock, hostname="mx.test")


@pytest.fixture
def lists(database: Database) -> Lists:
    return Lists(database)


@pytest.fixture
def run_child() -> Callable[..., Awaitable[int]]:
    """Runs one of `store_children` in a process of its own and returns its exit code (-9: it died at its failpoint)."""

    async def run(*arguments: str | Path, failpoint: str = "") -> int:
        environment = os.environ | ({"GATEWAY_FAILPOINT": failpoint} if failpoint else {})
        command = [sys.executable, store_children.__file__, *map(str, arguments)]
        child = await asyncio.create_subprocess_exec(*command, env=environment)
        async with asyncio.timeout(30):
            return await child.wait()

    return run
