"""A whole gateway as a process of its own for crash tests, and the peers it talks to: mail clients, a relay, an app."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

READY_SECONDS = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class House:
    """`gateway run` on private ports and a private folder."""

    folder: Path
    relay_url: str
    smtp_port: int = field(default_factory=free_port)
    web_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    more: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
        return (
            kept
            | {
                "GATEWAY_DATA_DIR": str(self.folder),
                "GATEWAY_SMTP_LISTEN": f"127.0.0.1:{self.smtp_port}",
                "GATEWAY_WEB_LISTEN": f"127.0.0.1:{self.web_port}",
                "GATEWAY_RELAY_URLS": self.relay_url,
                "GATEWAY_RETRY_LADDER": "1s 1s 2s 2s 4s",
                "GATEWAY_UNKNOWN_WAIT": "1s",
                "GATEWAY_LIMITS__CLAIM": "2s",
                "GATEWAY_MIN_FREE_BYTES": "1m",
            }
            | self.more
        )

    def start(self, failpoint: str = "", *services: str) -> None:
        environment = self.environment() | ({"GATEWAY_FAILPOINT": failpoint} if failpoint else {})
        log = (self.folder.parent / "gateway.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "run", *services],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=self.folder.parent,
        )
        log.close()

    def wait_ready(self) -> bool:
        """Waits until the SMTP door answers; False when the process died first."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                return False
            try:
                with socket.create_connection(("127.0.0.1", self.smtp_port), timeout=1) as connection:
                    if connection.recv(3) == b"220":
                        return True
            except OSError:
                time.sleep(0.02)  # polling for a listening port: there is nothing else to wait on
        raise AssertionError(f"the gateway did not come up; log: {self.log()[-3000:]}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def log(self) -> str:
        return (self.folder.parent / "gateway.log").read_text(errors="replace")

    def list(self, *words: str) -> list[dict[str, object]]:
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *words, "--json"],
            env=self.environment(),
            capture_output=True,
            cwd=self.folder.parent,
            timeout=60,
        )
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        return [json.loads(line) for line in done.stdout.splitlines()]

    def balance(self) -> dict[str, object]:
        """What `gateway reconcile` counts: whatever happened, it must balance."""
        [found] = self.list("reconcile")
        return found


class Sink:
    """A relay that takes everything: counts (recipient, Message-ID) once its 250 is on the way."""

    def __init__(self) -> None:
        self.taken: Counter[tuple[str, str]] = Counter()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Sink:
        self._server = await asyncio.start_server(self._session, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the gateway was killed: that is the test
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recipient = ""
        writer.write(b"220 sink ESMTP\r\n")
        while line := (await reader.readline()).decode("latin-1").strip():
            verb = line.upper().split(":")[0].split(" ")[0]
            if verb == "RCPT":
                recipient = line.partition("<")[2].partition(">")[0]
            if verb == "DATA":
                writer.write(b"354 go on\r\n")
                octets = await reader.readuntil(b"\r\n.\r\n")
                headers = octets.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
                message_id = next(
                    item.partition(":")[2].strip() for item in headers if item.lower().startswith("message-id")
                )
                self.taken[(recipient, message_id)] += 1
            writer.write(
                b"221 bye\r\n" if verb == "QUIT" else b"250 sink\r\n" if verb == "EHLO" else b"250 2.0.0 taken\r\n"
            )
            await writer.drain()


@dataclass
class Poster:
    """Mails one mail after the other as an MTA would: what was not answered is sent again, the same octets."""

    port: int
    kept: dict[str, list[str]] = field(default_factory=dict)

    def post(self, token: str, deadline: float) -> None:
        octets = (
            f"From: poster@localhost\r\nTo: posts@localhost\r\nSubject: {token}\r\nMessage-ID: <{token}@test.localhost>\r\n"
            f"\r\nThe text of {token}.\r\n"
        ).encode()
        while time.monotonic() < deadline:
            try:
                with smtplib.SMTP("127.0.0.1", self.port, local_hostname="poster.localhost", timeout=10) as session:
                    session.ehlo()
                    session.mail("poster@localhost")
                    session.rcpt("posts@localhost")
                    code, text = session.data(octets)
                if code == 250:
                    self.kept.setdefault(token, []).append(text.decode().rsplit(" ", 1)[-1])
                    return
            except (OSError, smtplib.SMTPException):
                pass
            time.sleep(0.05)  # an MTA's retry interval, not synchronisation
        raise AssertionError(f"{token} was never answered")
