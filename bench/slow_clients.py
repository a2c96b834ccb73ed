"""What slow clients cost the others: 50 ordinary clients alone, and beside 500 that keep the door busy with nothing.

The gateway's SMTP door as a process of its own (`gateway run smtp`) with its SQLite queue on a file system in memory where there
is one (or in BENCH_DIR): on a disk that others use, its stalls are the p99, and tell nothing of the door.  The slow ones come from
127.0.0.2 to 127.0.0.60, in equal parts: silent; a byte a second in a command, in a header, in a text; 200 KB of a mail and then
a byte a second; a command of 60 KB without an end; never reading a reply.  Who is shown out comes again a second later.
Each keeps time for itself: strangers do not act in step.  BENCH_IN_STEP=1 has them do so, and shows what a concerted burst costs.
Rounds in pairs, without and with them, so that both meet the same weather; `time` is from the connect to the final 250.
Memory is the door's: VmRSS after the rounds without and with the slow ones, VmHWM at the end.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

SECONDS = float(os.environ.get("BENCH_SECONDS", "6"))
IS_IN_STEP = bool(os.environ.get("BENCH_IN_STEP"))
PAIRS, ORDINARY, SLOW, ADDRESSES = 5, 50, 500, 59
PAUSE_SECONDS = 0.4
GOAL = 2.0
IN_MEMORY = "/dev/shm"
TO_DATA = (b"EHLO bench.example\r\n", b"MAIL FROM:<ann@example.org>\r\n", b"RCPT TO:<posts@localhost>\r\n", b"DATA\r\n")
A_MAIL = b"Subject: bench\r\n\r\n" + b"The quick brown fox jumps over the lazy dog.\r\n" * 80 + b".\r\n"


# The door


class Gateway:
    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        settings = {
            "GATEWAY_DATA_DIR": str(folder / "var"),
            "GATEWAY_SMTP_LISTEN": f"127.0.0.1:{self.port}",
            "GATEWAY_WEB_LISTEN": "127.0.0.1:0",
            "GATEWAY_RELAY_URLS": "capture:",
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
        self._log = (folder / "log").open("wb")
        command = [str(Path(sys.executable).with_name("gateway")), "run", "smtp"]
        self._process = subprocess.Popen(command, env=kept | settings, cwd=folder, stderr=self._log)

    def memory_kb(self, key: str) -> int:
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
        raise LookupError(key)

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def opened(self) -> None:
        async with asyncio.timeout(60):
            while True:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.1)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._log.close()


# Ordinary clients


async def hear(reader: asyncio.StreamReader, code: bytes) -> None:
    while True:
        line = await reader.readline()
        if not line.startswith(code):
            raise ConnectionError(f"the door said {line!r} for {code!r}")
        if line[3:4] == b" ":
            return


async def post(port: int) -> float:
    """Seconds from the connect to the 250 of the mail."""
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await hear(reader, b"220")
        for command in TO_DATA:
            writer.write(command)
            await hear(reader, b"354" if command == TO_DATA[-1] else b"250")
        writer.write(A_MAIL)
        await hear(reader, b"250")
        took = time.perf_counter() - begun
        writer.write(b"QUIT\r\n")
        await hear(reader, b"221")
    finally:
        writer.close()
    return took


async def run_ordinary(port: int, seconds: float, dice: random.Random) -> list[float]:
    end = time.perf_counter() + seconds

    async def one() -> list[float]:
        times = []
        await asyncio.sleep(dice.uniform(0, PAUSE_SECONDS))
        while time.perf_counter() < end:
            times.append(await post(port))
            await asyncio.sleep(dice.uniform(0, 2 * PAUSE_SECONDS))
        return times

    return [seconds for times in await asyncio.gather(*(one() for _ in range(ORDINARY))) for seconds in times]


# Slow clients


class Slow:
    """One connection; what it does is one of `WAYS`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def write(self, octets: bytes) -> None:
        self.writer.write(octets)
        await self.writer.drain()

    async def drip(self) -> None:
        while True:
            await self.write(b"x")
            await a_second()

    async def begin_data(self) -> None:
        for command in TO_DATA:
            await self.write(command)
            await hear(self.reader, b"354" if command == TO_DATA[-1] else b"250")

    async def be_silent(self) -> None:
        await self.reader.read()

    async def drip_command(self) -> None:
        await self.write(b"MAIL FROM:<")
        await self.drip()

    async def drip_header(self) -> None:
        await self.begin_data()
        await self.write(b"Subject: ")
        await self.drip()

    async def drip_text(self) -> None:
        await self.begin_data()
        await self.write(b"Subject: x\r\n\r\n")
        await self.drip()

    async def hoard(self) -> None:
        await self.begin_data()
        await self.write(b"Subject: x\r\n\r\n" + b"x" * 200_000)
        await self.drip()

    async def never_end(self) -> None:
        await self.write(b"EHLO " + b"x" * 60_000)
        await self.drip()

    async def be_deaf(self) -> None:
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await self.write(b"EHLO x\r\nMAIL FROM:<ann@example.org>\r\n" + b"RCPT TO:<posts@localhost>\r\n" * 10_000)
        await asyncio.sleep(3600)


WAYS: tuple[Callable[[Slow], Awaitable[None]], ...] = (
    Slow.be_silent,
    Slow.drip_command,
    Slow.drip_header,
    Slow.drip_text,
    Slow.hoard,
    Slow.never_end,
    Slow.be_deaf,
)


async def be_slow(port: int, number: int, inside: set[int]) -> None:
    await asyncio.sleep(0 if IS_IN_STEP else random.uniform(0, 1))
    while True:
        writer = None
        with suppress(OSError, asyncio.IncompleteReadError):
            own = (f"127.0.0.{2 + number % ADDRESSES}", 0)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=own)
            await hear(reader, b"220")
            inside.add(number)
            await WAYS[number % len(WAYS)](Slow(reader, writer))
        if writer is not None:
            writer.close()
        await a_second()


async def a_second() -> None:
    await asyncio.sleep(1 if IS_IN_STEP else random.uniform(0.5, 1.5))


async def crowd(port: int) -> None:
    """A process full of slow clients; a line when all of them are inside."""
    inside: set[int] = set()
    tasks = [asyncio.create_task(be_slow(port, number, inside)) for number in range(SLOW)]
    while len(inside) < SLOW:
        await asyncio.sleep(0.05)
    print("inside", flush=True)
    await asyncio.gather(*tasks)


@asynccontextmanager
async def crowded(port: int) -> AsyncIterator[None]:
    command = [sys.executable, "-m", "bench.slow_clients", str(port)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(120):
            assert await process.stdout.readline() == b"inside\n"
        await asyncio.sleep(2)  # what they do when they come in is done
        yield
    finally:
        process.kill()
        await process.wait()


# The measure


def centile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))] * 1000


def shown(name: str, times: list[float], seconds: float) -> str:
    spent = "".join(f"{centile(times, share):9.1f}" for share in (0.5, 0.95, 0.99))
    return f"{name:<24}{spent}{len(times) / seconds:9.0f}/s"


async def measure(gateway: Gateway) -> None:
    dice = random.Random(1)
    await gateway.opened()
    await run_ordinary(gateway.port, SECONDS / 2, dice)
    alone: list[list[float]] = []
    beside: list[list[float]] = []
    memory = [0, 0]
    spent = [0.0, 0.0]
    for _ in range(PAIRS):
        begun = gateway.processor_seconds()
        alone.append(await run_ordinary(gateway.port, SECONDS, dice))
        spent[0] += gateway.processor_seconds() - begun
        memory[0] = memory[0] or gateway.memory_kb("VmRSS")
        async with crowded(gateway.port):
            begun = gateway.processor_seconds()
            beside.append(await run_ordinary(gateway.port, SECONDS, dice))
            spent[1] += gateway.processor_seconds() - begun
            memory[1] = max(memory[1], gateway.memory_kb("VmRSS"))
    for name, rounds, used in (("alone", alone, spent[0]), (f"beside {SLOW} slow ones", beside, spent[1])):
        line = shown(name, [seconds for times in rounds for seconds in times], PAIRS * SECONDS)
        print(f"{line}{used / (PAIRS * SECONDS):11.0%}")
    pairs = [centile(two, 0.99) / centile(one, 0.99) for one, two in zip(alone, beside, strict=True)]
    print(f"p99 beside / alone, in pairs: {' '.join(f'{ratio:.2f}' for ratio in pairs)}", end="")
    print(f"; median {statistics.median(pairs):.2f} (goal: at most {GOAL:g})")
    high = gateway.memory_kb("VmHWM")
    print(
        f"memory of the door: {memory[0] // 1024} MB alone, {memory[1] // 1024} MB beside them, at most {high // 1024} MB"
    )


def folder_for_the_queue() -> str | None:
    return os.environ.get("BENCH_DIR") or (IN_MEMORY if Path(IN_MEMORY).is_dir() else None)


def main() -> None:
    print(f"slow_clients: milliseconds a mail of {ORDINARY} ordinary clients, and the door's share of a processor")
    print(f"{'':<24}{'p50':>9}{'p95':>9}{'p99':>9}{'mails':>11}{'processor':>11}")
    with tempfile.TemporaryDirectory(dir=folder_for_the_queue()) as folder:
        gateway = Gateway(Path(folder))
        try:
            asyncio.run(measure(gateway))
        finally:
            gateway.close()


if __name__ == "__main__":
    asyncio.run(crowd(int(sys.argv[1]))) if len(sys.argv) > 1 else main()
