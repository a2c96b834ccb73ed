"""What the outbound tests share: the fakes' folder, certificates, a silent log, relays with short patience."""

from __future__ import annotations

import io
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent / "fakes"))

from outbound_desk import MAIL_FROM, Desk

from gateway.maillog import MailLog
from gateway.outbound.relay import RelayLimits, RelayPool, parse_relay_url
from gateway.store.blobs import FileBlobStore
from gateway.store.database import Database, open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.lists import Lists

PATIENT = RelayLimits(
    connect_seconds=20, command_seconds=20, block_seconds=20, reply_seconds=20, quit_seconds=1, connections=10
)
IMPATIENT = replace(PATIENT, connect_seconds=0.4, command_seconds=0.4, block_seconds=0.4, reply_seconds=0.4)


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """The loop the gateway runs on: its transports differ from asyncio's."""
    return {"uvloop": uvloop.new_event_loop}


class FakeClock:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def log() -> MailLog:
    return MailLog(stream=io.StringIO())


@pytest.fixture
async def pool_of(tmp_path: Path, clock: FakeClock, log: MailLog) -> AsyncIterator[Callable[..., RelayPool]]:
    async with AsyncExitStack() as stack:

        def build(*urls: str, limits: RelayLimits = PATIENT) -> RelayPool:
            pool = RelayPool(
                [parse_relay_url(url) for url in urls],
                hostname="gateway.test",
                captured_dir=tmp_path / "captured",
                log=log,
                clock=clock,
                limits=limits,
            )
            stack.push_async_callback(pool.close)
            return pool

        yield build


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """The authority, trusted by this process for the test."""
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    return authority


def server_tls(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await open_database(database_url)
    yield opened
    await opened.close()


@pytest.fixture
def ledger_of(tmp_path: Path, database: Database, clock: FakeClock) -> Callable[..., DatabaseLedger]:
    def build(kind: type[DatabaseLedger] = DatabaseLedger) -> DatabaseLedger:
        return kind(
            database,
            FileBlobStore(tmp_path / "blobs"),
            clock=clock,
            hostname="gateway.test",
            return_path=MAIL_FROM,
        )

    return build


@pytest.fixture
def desk_of(
    tmp_path: Path,
    pool_of: Callable[..., RelayPool],
    ledger_of: Callable[..., DatabaseLedger],
    database: Database,
    clock: FakeClock,
    log: MailLog,
) -> Callable[..., Desk]:
    def build(
        *urls: str, ledger: type[DatabaseLedger] = DatabaseLedger, limits: RelayLimits = PATIENT, **values: Any
    ) -> Desk:
        return Desk(
            ledger=ledger_of(ledger),
            lists=Lists(database),
            pool=pool_of(*urls, limits=limits),
            clock=clock,
            log=log,
            blobs=FileBlobStore(tmp_path / "blobs"),
            **values,
        )

    return build
