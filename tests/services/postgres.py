"""A PostgreSQL server of the tests' own: Debian's binaries, a private folder, a free loopback port, fsync as the default is.

One server for each pytest worker, started when the first test asks.  Each test gets a database to itself: copied from one
whose schema is made, or used before and emptied, which is quicker.  The server refuses root, so root runs it as `postgres`.
Without the binaries the tests that ask are skipped by name (TEST_SERVICES=required makes that a failure).
"""

from __future__ import annotations

import asyncio
import ctypes  # noqa: F401  # `die_with` needs it where the server's user can read no module of ours
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.runtime import die_with
from gateway.store.database import open_database

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
SUPERUSER = "postgres"
START_SECONDS = 60
STOP_SECONDS = 30


_EMPTY = """
SET synchronous_commit = off; SET session_replication_role = replica;
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
DO $$ DECLARE name text; BEGIN
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT IN ('alembic_version', 'meta')
    LOOP EXECUTE 'DELETE FROM ' || quote_ident(name); END LOOP;
  DELETE FROM meta WHERE key <> 'epoch';
  FOR name IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'
    LOOP PERFORM setval(name, 1, false); END LOOP;
END $$"""


class PostgresServer:
    """One server; `stop` and `start` again, `freeze` and `thaw` are for the tests of its faults.

    It dies with the thread that started it, so that is never one of a pool.
    """

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._folder = folder
        self._binaries = binaries
        self._user = SUPERUSER if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._used: list[str] = []
        self._template = ""
        self.port = _free_port()

    def make(self) -> None:
        """Makes the cluster."""
        if os.geteuid() == 0:
            shutil.chown(self._folder, SUPERUSER)
        command = [self._binaries / "initdb", "-D", self._folder / "data", "-U", SUPERUSER, "-A", "trust"]
        command += ["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self._as_user())

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        parent = os.getpid()
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self._folder}
        options = [f"-c{name}={value}" for name, value in settings.items()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", *options],
                stdout=log,
                stderr=log,
                preexec_fn=lambda: die_with(parent),
                **self._as_user(),
            )
        ready = [self._binaries / "pg_isready", "-q", "-h", self._folder, "-p", str(self.port), "-t", "1"]
        for _ in range(START_SECONDS * 10):
            if subprocess.run(ready, check=False).returncode == 0:
                return
            if self._process.poll() is not None:
                break
            with socket.socket() as pause:  # pg_isready comes back at once while nobody listens
                pause.settimeout(0.1)
                pause.connect_ex(("127.0.0.1", self.port))
        raise RuntimeError((self._folder / "log").read_text()[-2000:])

    def stop(self, *, how: signal.Signals = signal.SIGINT) -> None:
        """Stops the server: at once (SIGINT, connections are cut), or as in a crash (SIGQUIT)."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(STOP_SECONDS)

    def freeze(self) -> None:
        """Stops every process of the server where it is; connections stay, and nobody answers."""
        for number in self._everybody():
            os.kill(number, signal.SIGSTOP)

    def thaw(self) -> None:
        for number in self._everybody():
            os.kill(number, signal.SIGCONT)

    def run(self, statement: str, database: str = "postgres") -> str:
        """Runs a statement as the superuser; returns what psql prints."""
        command = ["psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-h", self._folder, "-p", str(self.port)]
        done = subprocess.run(
            [*command, "-U", SUPERUSER, "-d", database, "-c", statement], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def new_database(self, *, is_bare: bool = False) -> str:
        """Makes a database, with the schema in it unless it is to be bare; returns its name."""
        if self._used and not is_bare:
            self.run(_EMPTY, self._used[-1])
            return self._used.pop()
        self._databases += 1
        name = f"test_{self._databases}"
        template = "template0" if is_bare else self.make_template()
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def give_back(self, name: str) -> None:
        """Takes back a database whose schema is as it was."""
        self._used.append(name)

    def url(self, database: str, *, user: str = SUPERUSER) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def make_template(self) -> str:
        """The database that new ones are copied from; made at the first call, which is not one of a running loop."""
        if not self._template:
            self._template = "gateway_template"
            self.run(f"CREATE DATABASE {self._template} TEMPLATE template0")
            asyncio.run(_make_schema(self.url(self._template)))
        return self._template

    def _everybody(self) -> list[int]:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [self._process.pid, *map(int, children)]

    def _as_user(self) -> dict[str, object]:
        if os.geteuid() != 0:
            return {"cwd": self._folder}
        entry = pwd.getpwnam(self._user)
        return {"cwd": self._folder, "user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


async def _make_schema(url: str) -> None:
    await (await open_database(url)).close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The worker's server."""
    if not BINARIES:
        pytest.skip("no PostgreSQL server here: `make services` installs one")
    folder = Path(tempfile.mkdtemp(prefix="gateway-pg-"))
    server = PostgresServer(folder, BINARIES[-1])
    try:
        server.make()
        server.start()
        yield server
        server.stop(how=signal.SIGQUIT)  # its folder goes anyway: no time for a last checkpoint
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A new store on the worker's server; its schema is to be left alone."""
    name = postgres_server.new_database()
    yield postgres_server.url(name)
    postgres_server.give_back(name)


@pytest.fixture
def bare_postgres_url(postgres_server: PostgresServer) -> str:
    """A database with nothing in it."""
    return postgres_server.url(postgres_server.new_database(is_bare=True))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new store's URL, on each engine in turn."""
    return f"sqlite:///{tmp_path}/store.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URL where no store was made yet, on each engine in turn."""
    return (
        f"sqlite:///{tmp_path}/store.db" if request.param == "sqlite" else request.getfixturevalue("bare_postgres_url")
    )
