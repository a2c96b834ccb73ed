"""Private RabbitMQ nodes for tests: free ports, folders of their own, ended by pid; nothing of the machine's own service.

`Node` is one node with the epmd it needs; `Cluster` is three of them.  `rabbitmq` is one node for the session, `vhost` a
fresh vhost of it for each test.  Where RabbitMQ is not installed these skip, loudly (`make services` installs it).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

SBIN = Path("/usr/lib/rabbitmq/bin")
START_SECONDS = 180
CALL_SECONDS = 60
BATCH = 25
COOKIE = "gateway-tests"


def missing() -> str:
    """What is not installed; empty when all is there."""
    if not (SBIN / "rabbitmq-server").exists() or shutil.which("epmd") is None:
        return "rabbitmq-server is not installed: its tests did not run; `make services` installs it"
    return ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


class Epmd:
    """The port mapper of the nodes of one test, in the foreground, so that it has a pid to end."""

    def __init__(self) -> None:
        self.port = free_port()
        environment = os.environ | {"ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(self.port)}
        self._process = subprocess.Popen(["epmd"], env=environment)
        deadline = time.monotonic() + START_SECONDS
        while not listens(self.port):  # else a node would start a daemon of its own, which nobody ends
            assert time.monotonic() < deadline, "epmd did not start"
            time.sleep(0.01)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Node:
    """One RabbitMQ node, which lives until `kill` or `end` and can be started again on the same data."""

    def __init__(self, folder: Path, epmd: Epmd, *, name: str = "rabbit", settings: Sequence[str] = ()) -> None:
        self.folder = folder
        self.port = free_port()
        self.name = f"{name}-{uuid.uuid4().hex[:8]}@localhost"
        self._epmd = epmd
        self._dist_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        (folder / "plugins").write_text("[].")
        lines = [f"listeners.tcp.1 = 127.0.0.1:{self.port}", "disk_free_limit.absolute = 50MB", *settings]
        (folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (folder / "advanced.config").write_text(
            "[{kernel, [{inet_dist_use_interface, {127,0,0,1}}, {net_ticktime, 15}]}].\n"
        )
        cookie = folder / ".erlang.cookie"
        cookie.write_text(COOKIE)
        cookie.chmod(0o400)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            "ERL_CRASH_DUMP": str(self.folder / "erl_crash.dump"),
            "ERL_EPMD_PORT": str(self._epmd.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    @property
    def pid(self) -> int:
        assert self._process is not None, "the node was not started"
        return self._process.pid

    def launch(self) -> None:
        """Starts the node without waiting for it."""
        with (self.folder / "out").open("ab") as out:
            self._process = subprocess.Popen(
                [SBIN / "rabbitmq-server"], env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def wait_until_up(self) -> None:
        """Waits until it takes connections and says it has started."""
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"RabbitMQ did not start: {(self.folder / 'out').read_text()[-2000:]}")
            time.sleep(0.1)

    def start(self) -> None:
        self.launch()
        self.wait_until_up()

    def signal(self, number: signal.Signals) -> None:
        """To the node and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def end(self) -> None:
        """Kills it if it runs, stopped or not."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def ctl(self, *arguments: str) -> str:
        done = subprocess.run(
            [SBIN / "rabbitmqctl", "-q", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
        )
        assert done.returncode == 0, f"rabbitmqctl {arguments[0]}: {done.stdout}{done.stderr}"
        return done.stdout

    def url(self, vhost: str = "/", *, user: str = "guest", password: str = "guest") -> str:
        return f"amqp://{user}:{password}@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return len(connection.recv(8)) > 0
        except OSError:
            return False


class Cluster:
    """Three nodes, whose quorum queues have a member on each."""

    def __init__(self, folder: Path) -> None:
        self._epmd = Epmd()
        settings = ["cluster_partition_handling = pause_minority"]
        self.nodes = [Node(folder / name, self._epmd, name=name, settings=settings) for name in ("one", "two", "three")]

    def start(self) -> None:
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_until_up()
        for node in self.nodes[1:]:
            for command in (["stop_app"], ["reset"], ["join_cluster", self.nodes[0].name], ["start_app"]):
                node.ctl(*command)

    def end(self) -> None:
        for node in self.nodes:
            node.end()
        self._epmd.end()

    def leader(self, queue: str, *, asked: Node) -> Node:
        name = self._told(queue, "leader", asked)
        return next(node for node in self.nodes if node.name in name)

    def wait_until_whole(self, queue: str) -> None:
        """Until the queue has all its members again, as every node sees it."""
        deadline = time.monotonic() + START_SECONDS
        while not self._is_whole(queue, self.nodes[0]):
            assert time.monotonic() < deadline, f"{queue} is not whole after {START_SECONDS} s"
            time.sleep(0.5)

    def _is_whole(self, queue: str, asked: Node) -> bool:
        name = f'{{resource, <<"/">>, queue, <<"{queue}">>}}'
        ask = f"{{ok, Q}} = rabbit_amqqueue:lookup({name}), rabbit_amqqueue:info(Q, [online])"
        everywhere = f"[erpc:call(N, fun() -> {ask} end, 5000) || N <- rabbit_nodes:all()]."
        try:
            told = asked.ctl("eval", everywhere)  # one call: each costs more than a second
        except (AssertionError, subprocess.TimeoutExpired):
            return False
        return all(told.count(node.name) == len(self.nodes) for node in self.nodes)

    def _told(self, queue: str, what: str, asked: Node) -> str:
        rows = asked.ctl("list_queues", "--timeout=20", "name", what).splitlines()
        return next((row for row in rows if row.split("\t")[0] == queue), "")


class Vhosts:
    """Fresh vhosts of a node, made in batches: each call of rabbitmqctl costs more than a second."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._ready: list[str] = []

    def take(self) -> str:
        if not self._ready:
            self._ready = [f"t{uuid.uuid4().hex[:12]}" for _ in range(BATCH)]
            names = ",".join(f'<<"{name}">>' for name in self._ready)
            self.node.ctl(
                "eval",
                f"""[begin rabbit_vhost:add(V, <<"gateway-tests">>), rabbit_auth_backend_internal:set_permissions(
                    <<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"gateway-tests">>) end || V <- [{names}]].""",
            )
        return self._ready.pop()


def require() -> None:
    """Skips, saying what is missing."""
    if lacking := missing():
        pytest.skip(lacking)


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Node]:
    """One node for all tests of this session (of this worker)."""
    require()
    folder = Path(tempfile.mkdtemp(prefix="gateway-rabbitmq-"))
    epmd = Epmd()
    node = Node(folder / "node", epmd)
    try:
        node.start()
        yield node
    finally:
        node.end()
        epmd.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def vhosts(rabbitmq: Node) -> Vhosts:
    return Vhosts(rabbitmq)


@pytest.fixture
def amqp_url(rabbitmq: Node, vhosts: Vhosts) -> str:
    """The URL of a vhost that nobody has used."""
    return rabbitmq.url(vhosts.take())
