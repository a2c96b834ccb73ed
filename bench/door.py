"""The SMTP door beside a plain aiosmtpd, which reads the data of a mail line by line; the same client, the same mails.

Each door is a process of its own, on the event loop it would really run on (ours: uvloop), and keeps nothing: the queue says
yes at once, so that what is measured is the door with its checks and its digest.  One client, one connection, MAIL RCPT DATA
in one write.  `ms` is the processor time of the server for one mail, `/s` what the client saw.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

SIZES = {"4 KB": 4_000, "100 KB": 100_000, "1 MB": 1_000_000}
SECONDS = float(os.environ.get("BENCH_SECONDS", "6")) / 6
KINDS = ("ours", "plain", "plain_uvloop")


# The doors


class YesQueue:
    async def publish(self, tickets: Sequence[Any]) -> None:
        return None


async def open_ours() -> str:
    from gateway.inbound.intake import Intake
    from gateway.inbound.router import MailboxRoute, Router
    from gateway.inbound.smtp_door import SmtpDoor
    from gateway.maillog import MailLog
    from gateway.runtime import utc_now
    from gateway.store.blobs import FileBlobStore

    router = Router([MailboxRoute(address="posts@localhost", kind="posts")], domains=["localhost"])
    folder = Path("/nonexistent")
    log = MailLog(stream=StringIO())
    intake = Intake(
        router,
        YesQueue(),  # type: ignore[arg-type]
        FileBlobStore(folder),
        data_dir=folder,
        clock=utc_now,
        log=log,
        blob_threshold=10**9,
    )
    door = SmtpDoor(intake, listen="127.0.0.1:0", hostname="localhost", log=log)
    await door.start()
    return door.address


async def open_plain() -> str:
    from aiosmtpd.smtp import SMTP

    class Handler:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            return "250 OK"

    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Handler(), loop=loop, hostname="localhost"), "127.0.0.1", 0)
    return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def stand(kind: str) -> None:
    """Tells the address, then the processor time used so far at each line that comes in."""
    print(await (open_ours() if kind == "ours" else open_plain()), flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(time.process_time(), flush=True)


# The client


class Client:
    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.replies = self.socket.makefile("rb")
        self.expect(b"220")
        self.socket.sendall(b"EHLO bench\r\n")
        while self.replies.readline()[3:4] == b"-":
            pass

    def expect(self, code: bytes) -> None:
        line = self.replies.readline()
        assert line.startswith(code), line

    def mail(self, wire: bytes) -> None:
        self.socket.sendall(b"MAIL FROM:<ann@example.org>\r\nRCPT TO:<posts@localhost>\r\nDATA\r\n")
        for code in (b"250", b"250", b"354"):
            self.expect(code)
        self.socket.sendall(wire)
        self.expect(b"250")


def mail_of(size: int) -> bytes:
    text = BytesIO(b"Subject: bench\r\n\r\n")
    text.seek(0, 2)
    while text.tell() < size:
        text.write(b"The quick brown fox jumps over the lazy dog, and nobody knows why it does that.\r\n")
    return text.getvalue() + b".\r\n"


class Server:
    def __init__(self, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.door", kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.client = Client(self.line())

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def used(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return float(self.line())

    def run(self, wire: bytes, seconds: float) -> tuple[int, float, float]:
        """Mails sent, processor seconds of the server, seconds on the clock."""
        self.client.mail(wire)
        count, used, begun = 0, self.used(), time.perf_counter()
        while time.perf_counter() < begun + seconds:
            self.client.mail(wire)
            count += 1
        took = time.perf_counter() - begun
        return count, self.used() - used, took

    def close(self) -> None:
        self.process.communicate()


def measure(servers: dict[str, Server], wire: bytes) -> dict[str, tuple[float, float]]:
    """Server milliseconds a mail and mails a second, each kind in turns so that all meet the same weather."""
    sums = {kind: [0.0, 0.0, 0.0] for kind in servers}
    for _ in range(4):
        for kind, server in servers.items():
            sums[kind] = [a + b for a, b in zip(sums[kind], server.run(wire, SECONDS / 4), strict=True)]
    return {kind: (used / count * 1000, count / took) for kind, (count, used, took) in sums.items()}


def main() -> None:
    servers = {kind: Server(kind) for kind in KINDS}
    try:
        print("door: one connection, processor milliseconds of the server a mail, and mails a second")
        print(f"{'':<10}{'ours':>18}{'plain':>20}{'gain':>8}{'plain, uvloop':>20}{'gain':>8}")
        for name, size in SIZES.items():
            found = measure(servers, mail_of(size))
            cells = {kind: f"{spent:.2f} ms {rate:7.0f}/s" for kind, (spent, rate) in found.items()}
            gain = {kind: f"{found[kind][0] / found['ours'][0]:.1f}x" for kind in KINDS}
            print(
                f"{name:<10}{cells['ours']:>18}{cells['plain']:>20}{gain['plain']:>8}"
                f"{cells['plain_uvloop']:>20}{gain['plain_uvloop']:>8}"
            )
    finally:
        for server in servers.values():
            server.close()


def act(kind: str) -> None:
    if kind == "plain":
        asyncio.run(stand(kind))
        return
    import uvloop

    uvloop.run(stand(kind))


if __name__ == "__main__":
    act(sys.argv[1]) if len(sys.argv) > 1 else main()
