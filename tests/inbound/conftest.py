"""A real door before a real queue; for ingest a real store, cage and worker as well."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.cage import Cage
from gateway.inbound.certificate import Certificates, Pair
from gateway.inbound.door import Door, DoorLimits
from gateway.inbound.door_auth import Logins
from gateway.inbound.ingest import Ingest
from gateway.inbound.intake import Intake, IntakeLimits
from gateway.inbound.listen import TcpAddress, UnixAddress, parse_listen
from gateway.inbound.mailboxes.postmaster import Postmaster
from gateway.inbound.mailboxes.posts import Posts
from gateway.inbound.router import MailboxRoute, Router
from gateway.inbound.smtp_door import SmtpDoor
from gateway.inbound.xforward import TrustedHosts
from gateway.mail.loop_guard import Judge, Telling
from gateway.maillog import MailLog
from gateway.queue.ladder import Ladder
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import MAIL_INBOUND, Ticket, retry_queue
from gateway.queue.worker import work
from gateway.runtime import Stop, utc_now
from gateway.store.blobs import FileBlobStore
from gateway.store.database import Database, open_database
from gateway.store.lists import Lists
from gateway.store.mails import Mails

ROUTES = (
    MailboxRoute(address="posts@localhost", kind="posts"),
    MailboxRoute(address="broken@localhost", kind="broken"),
    MailboxRoute(address="*@help.example.org", kind="posts"),
)
WAIT_SECONDS = 20
MX = "mx.localhost"


@dataclass
class House:
    """The inbound half of a gateway in one folder."""

    folder: Path
    broker: SqliteBroker
    blobs: FileBlobStore
    router: Router
    log: MailLog
    stack: AsyncExitStack
    mailboxes: dict[str, Any] = field(default_factory=lambda: {"posts": Posts(), "postmaster": Postmaster()})
    mails: Mails | None = None
    database: Database | None = None
    ingest: Ingest | None = None
    store_url: str = ""
    judge: Judge = lambda envelope, octets, text="", *, is_verified=False: Telling()  # everybody may be told

    @property
    def lists(self) -> Lists:
        assert self.database is not None
        return Lists(self.database)

    def intake(self, **values: Any) -> Intake:
        kept = {"data_dir": self.folder, "clock": utc_now, "log": self.log} | values
        return Intake(self.router, kept.pop("broker", self.broker), kept.pop("blobs", self.blobs), **kept)

    async def open_door(
        self,
        kind: type[Door] = SmtpDoor,
        *,
        listen: str = "127.0.0.1:0",
        intake: Intake | None = None,
        trusted_hosts: TrustedHosts | None = None,
        certificates: Certificates | None = None,
        logins: Logins | None = None,
        **limits: Any,
    ) -> Door:
        """Starts a door, on a port of the system's choice where `listen` says nothing else; closed with the house."""
        wanted = DoorLimits(**{"drain_seconds": 2.0} | limits)
        chosen = intake or self.intake(limits=IntakeLimits(mail_bytes=wanted.mail_bytes))
        place: dict[str, Any] = {"listen": listen, "hostname": "mx.localhost", "trusted_hosts": trusted_hosts}
        place |= {"certificates": certificates, "logins": logins}
        door = kind(chosen, limits=wanted, log=self.log, **place)
        await door.start()
        self.stack.push_async_callback(door.close)
        return door

    async def open_ingest(self, *, ladder: str = "1s 1s") -> Ingest:
        """Opens the store and the cage, without a worker."""
        self.database = await open_database(self.store_url)
        self.stack.push_async_callback(self.database.close)
        self.mails = Mails(self.database, self.blobs, clock=utc_now, hostname="mx.localhost")
        cage = await self.stack.enter_async_context(Cage(children=1, preload=("gateway.mail.parse.fallback",)))
        self.ingest = Ingest(
            mails=self.mails,
            blobs=self.blobs,
            cage=cage,
            router=self.router,
            mailboxes=self.mailboxes,
            publish=self.broker.publish,
            ladder=Ladder.parse(ladder),
            log=self.log,
            clock=utc_now,
            judge=self.judge,
        )
        return self.ingest

    async def start_worker(self) -> None:
        """Works mail.inbound until the house closes."""
        assert self.ingest is not None
        stop = Stop()
        running = asyncio.create_task(
            work(
                self.broker,
                queues={MAIL_INBOUND: 2, retry_queue(MAIL_INBOUND): 1},
                handlers={MAIL_INBOUND: self.ingest.handle},
                concurrency=4,
                stop=stop,
                ladder=Ladder.parse("1s"),
                observer=self.log,
                grace_seconds=2,
            )
        )

        async def end() -> None:
            stop.set()
            await running

        self.stack.push_async_callback(end)

    async def tickets(self) -> list[Ticket]:
        """Takes every ready ticket of mail.inbound."""
        found: list[Ticket] = []
        ready = sum(depth.ready for depth in await self.broker.depths() if depth.name == MAIL_INBOUND)
        if not ready:
            return found
        async with self.broker.consume({MAIL_INBOUND: 1}, concurrency=ready) as consumer:
            async for lease in consumer:
                found.append(lease.ticket)
                if len(found) == ready:
                    return found
        return found

    async def rows(self, is_complete: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """Waits until the list of mails is as wanted and returns it."""
        assert self.database is not None
        async with asyncio.timeout(WAIT_SECONDS), self.database.bell() as bell:
            while True:
                rows = await self.lists.newest("mails")
                if is_complete(rows):
                    return rows
                await bell.wait(0.5)


@asynccontextmanager
async def open_house(folder: Path, store_url: str = "") -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(SqliteBroker(folder / "queue.db"))
        yield House(
            folder=folder,
            broker=broker,
            blobs=FileBlobStore(folder / "blobs"),
            router=Router(ROUTES, domains=["localhost", "help.example.org"]),
            log=MailLog(stream=StringIO()),
            stack=stack,
            store_url=store_url or f"sqlite:///{folder}/store.db",
        )


# Where the store is half of what is tested; the doors by themselves do not ask which one it is.
ON_EACH_STORE = {"test_ingest", "test_duplicates", "test_support", "test_albums", "test_replay", "test_post_create"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "store_url" in metafunc.fixturenames and metafunc.module.__name__.rpartition(".")[2] in ON_EACH_STORE:
        metafunc.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    """A client's that trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def certificates(authority: trustme.CA, tmp_path: Path) -> Certificates:
    pair = Pair(certificate=tmp_path / "mx.crt", key=tmp_path / "mx.key")
    write_pair(pair, authority)
    return Certificates(pair, on_fault=lambda fault: None)


def write_pair(pair: Pair, authority: trustme.CA, *names: str, **values: Any) -> None:
    """Makes a certificate and puts it in place of the one that is there."""
    made = authority.issue_cert(*(names or (MX,)), **values)
    for path, octets in (
        (pair.key, made.private_key_pem.bytes()),
        (pair.certificate, b"".join(blob.bytes() for blob in made.cert_chain_pems)),
    ):
        path.write_bytes(octets)
        path.chmod(0o600)


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new store's URL: a file, or on each engine in turn for the modules named above."""
    is_file = getattr(request, "param", "sqlite") == "sqlite"
    return f"sqlite:///{tmp_path}/store.db" if is_file else request.getfixturevalue("postgres_url")


@pytest.fixture
async def house(tmp_path: Path, store_url: str) -> AsyncIterator[House]:
    async with open_house(tmp_path, store_url) as opened:
        yield opened


class Talk:
    """A client that says exactly what it is told, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, hello: str = "EHLO") -> None:
        self.hello = hello
        self.reader = reader
        self.writer = writer

    @classmethod
    async def with_tls_door(cls, door: SmtpDoor, context: ssl.SSLContext) -> Talk:
        """Speaks TLS from the first octet on."""
        address = parse_listen(door.tls_address)
        assert isinstance(address, TcpAddress)
        return cls(*await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname=MX))

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Shakes hands, where the door is ready to."""
        await self.writer.start_tls(context, server_hostname=MX)

    @classmethod
    async def with_door(cls, door: Door) -> Talk:
        address = parse_listen(door.address)
        if isinstance(address, UnixAddress):
            return cls(*await asyncio.open_unix_connection(address.path), hello=door.session.hello)
        return cls(*await asyncio.open_connection(address.host, address.port), hello=door.session.hello)

    async def send(self, octets: bytes) -> None:
        self.writer.write(octets)
        await self.writer.drain()

    async def reply(self) -> str:
        """One reply, its lines joined by ' / '; '' when the door has closed."""
        lines: list[str] = []
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    line = (await self.reader.readline()).decode().rstrip("\r\n")
                except ConnectionError:
                    return ""
                lines.append(line)
                if line[3:4] != "-":
                    return " / ".join(lines)

    async def say(self, line: bytes | str) -> str:
        await self.send((line if isinstance(line, bytes) else line.encode()) + b"\r\n")
        return await self.reply()

    async def begin_data(self) -> None:
        """Greets and goes as far as 354."""
        await self.reply()
        for line in (f"{self.hello} client.example.org", "MAIL FROM:<ann@example.org>", "RCPT TO:<posts@localhost>"):
            assert (await self.say(line)).startswith("250")
        assert (await self.say("DATA")).startswith("354")

    def close(self) -> None:
        self.writer.close()


@pytest.fixture
def talk_with(house: House) -> Callable[[Door], Any]:
    async def connect(door: Door) -> Talk:
        talk = await Talk.with_door(door)
        house.stack.callback(talk.close)
        return talk

    return connect
