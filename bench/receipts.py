"""What a receipt costs: publishes that keep one beside publishes into a queue on which no promise hangs, in turns.

One process, 20 publishes in flight, a file of its own for each kind, as fast as the disk allows.  Medians of many short rounds;
where others use the machine the processor's time tells more than the clock's.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from gateway.mail.ids import new_id
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import MAIL_INBOUND, Ticket

SECONDS = float(os.environ.get("BENCH_SECONDS", "6"))
ROUNDS = 31
IN_FLIGHT = 20
BODY = b"x" * 4096
HEADERS = {"rcpt_to": ["posts@localhost"]}
KINDS = {"with": MAIL_INBOUND, "without": "bench"}


async def publish(broker: SqliteBroker, queue: str, seconds: float) -> tuple[float, float]:
    """Publishes a second, and a second of the processor."""
    count, end = 0, time.perf_counter() + seconds

    async def one() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await broker.publish([Ticket(queue=queue, id=new_id(), body=BODY, headers=HEADERS)])
            count += 1

    begun, begun_processor = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))
    return count / (time.perf_counter() - begun), count / (time.process_time() - begun_processor)


async def measure(folder: Path) -> dict[str, list[tuple[float, float]]]:
    rates: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    async with SqliteBroker(folder / "with.db") as with_, SqliteBroker(folder / "without.db") as without:
        brokers = {"with": with_, "without": without}
        for number in range(ROUNDS):
            for kind in sorted(KINDS, reverse=bool(number % 2)):
                rates[kind].append(await publish(brokers[kind], KINDS[kind], SECONDS / ROUNDS))
    return rates


def main() -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        rates = asyncio.run(measure(Path(folder)))
    print(f"receipts: {IN_FLIGHT} publishes in flight, {len(BODY)} B bodies, {ROUNDS} rounds")
    print(f"{'published':<32}{'with':>12}{'without':>12}{'ratio':>10}   goal")
    for index, name in enumerate(("a second", "a second of the processor")):
        with_, without = ([rate[index] for rate in rates[kind]] for kind in ("with", "without"))
        ratio = statistics.median(ours / bare for ours, bare in zip(with_, without, strict=True))
        print(f"{name:<32}{statistics.median(with_):>12.0f}{statistics.median(without):>12.0f}{ratio:>10.2f}   >= 0.80")


if __name__ == "__main__":
    main()
