"""What the outbound tests share: the fakes' folder, certificates, a silent log, relays with short patience."""

from __future__ import annotations

import io
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

sys.path.insert(0, str(Path(__file__).parent.parent / "fakes"))

from gateway.maillog import MailLog
from gateway.outbound.relay import RelayLimits, RelayPool, parse_relay_url

IMPATIENT = RelayLimits(
    connect_seconds=0.4, command_seconds=0.4, block_seconds=0.4, reply_seconds=0.4, quit_seconds=0.2, connections=10
)


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

        def build(*urls: str, limits: RelayLimits = IMPATIENT) -> RelayPool:
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


def server_tls(authority: trustme.CA, name: str = "localhost") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context
