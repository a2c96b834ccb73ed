"""A web service of real parts behind a real socket, and browsers and apps to ask it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app.making import Store, our_names
from gateway.app.parts import Parts
from gateway.app.web import _login, api_parts
from gateway.maillog import MailLog
from gateway.pending import open_pending
from gateway.queue.broker import Broker
from gateway.runtime import Stop
from gateway.settings import Settings
from gateway.web.api import EventStreams, create_api
from gateway.web.credentials import Credentials
from gateway.web.guard import BodyLimits, Guard
from gateway.web.login import Login, login_routes
from gateway.web.serve import serve_http

HTML = {"Accept": "text/html"}
PASSWORD = "correct horse battery"


@dataclass
class WebHouse:
    """A running web service."""

    settings: Settings
    store: Store
    broker: Broker
    login: Login
    log: StringIO
    address: tuple[str, int]
    peers: list[str]
    streams: EventStreams
    stop: Callable[[], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def http(self, **values: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(**{"base_url": self.url, "trust_env": False, "timeout": 30} | values)

    def app(self, key: str) -> httpx.AsyncClient:
        """A client that shows a key."""
        return self.http(headers={"Authorization": f"Bearer {key}"})

    def appears_from(self, peer: str) -> None:
        """From now on requests seem to come from this address."""
        self.peers[:] = [peer]

    async def add_user(self, name: str = "ann", password: str = PASSWORD) -> None:
        assert await self.store.access.add_user(name, await self.login.passwords.keep(password))

    async def raw_and_leave(self, request: bytes) -> None:
        """Sends these octets and goes away when the server has begun with them."""
        _, writer = await asyncio.open_connection(*self.address)
        writer.write(request)
        await writer.drain()
        folder = self.settings.data_dir / "blobs" / "tmp"
        async with asyncio.timeout(30):
            while not (folder.is_dir() and any(folder.iterdir())):
                await asyncio.sleep(0.01)  # a file in another thread's hands
            writer.transport.abort()
            while any(folder.iterdir()):
                await asyncio.sleep(0.01)

    async def raw(self, request: bytes) -> bytes:
        """What the server says to these octets until it closes or resets the connection."""
        reader, writer = await asyncio.open_connection(*self.address)
        said = b""
        try:
            async with asyncio.timeout(30):
                writer.write(request)
                while piece := await reader.read(65536):
                    said += piece
        except ConnectionResetError:
            pass  # it had enough; what it said before counts
        finally:
            writer.close()
        return said


def form_token_in(page: str) -> str:
    """The token that the forms of a page carry."""
    found = re.search(r'name="form_token" value="([^"]+)"', page)
    assert found is not None, page
    return found[1]


async def log_in(
    client: httpx.AsyncClient, name: str = "ann", password: str = PASSWORD, **fields: str
) -> httpx.Response:
    """Logs in as a browser does: the page, then its form."""
    page = await client.get("/login", headers=HTML)
    form = {"name": name, "password": password, "form_token": form_token_in(page.text)} | fields
    return await client.post("/login", data=form, headers=HTML | {"Origin": str(client.base_url).rstrip("/")})


@asynccontextmanager
async def open_web_house(
    folder: Path, *, limits: BodyLimits | None = None, changes: dict[str, Any] | None = None, **values: Any
) -> AsyncIterator[WebHouse]:
    settings = Settings(**{"data_dir": folder, "min_free_bytes": 0} | values).filled()
    log = StringIO()
    parts = Parts(settings, MailLog(stream=log))
    async with AsyncExitStack() as stack:
        store, broker = await parts.store(stack), await parts.queue(stack)
        streams, login = EventStreams(store.database, heartbeat_seconds=1), _login(parts, store)
        api = create_api(
            replace(api_parts(parts, store, broker, streams, open_pending()), **changes or {}), login_routes(login)
        )
        chosen = limits or BodyLimits(by_path={"/v1/blobs": settings.limits.mail_bytes})
        guard = Guard(api, Credentials(store.access), ours=our_names(settings), limits=chosen)
        peers: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if peers and scope["type"] == "http":
                scope["client"] = (peers[0], 1)
            await guard(scope, receive, send)

        listener, stop = socket.create_server(("127.0.0.1", 0)), Stop()
        serving = asyncio.create_task(serve_http(app, listener, stop, grace_seconds=1, on_stop=streams.close))
        yield WebHouse(settings, store, broker, login, log, listener.getsockname(), peers, streams, stop.set)
        stop.set()
        async with asyncio.timeout(20):
            await serving


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[WebHouse]:
    async with open_web_house(tmp_path) as opened:
        yield opened


@pytest.fixture
async def http(house: WebHouse) -> AsyncIterator[httpx.AsyncClient]:
    async with house.http() as client:
        yield client


@pytest.fixture
def open_house(tmp_path: Path) -> Callable[..., Any]:
    """Opens a house of other settings."""
    return lambda **values: open_web_house(tmp_path, **values)
