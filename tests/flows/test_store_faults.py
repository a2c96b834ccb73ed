"""PostgreSQL goes away, dies at COMMIT, or answers late: doors go on saying 250, and what they promised is done once.

Each fault hits one house under traffic, whose queue is a file and whose blobs are files: only the store suffers.  New work is
done within 15 s of the store's return and parked work within a minute; where the store is away an alarm goes out and is
withdrawn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fakes.cut_wire import CutWire
from fakes.scripted_relay import ScriptedRelay
from fakes.sms_receiver import Receiver
from flows.place import Place, house_on, opened
from flows.traffic import Traffic
from services.postgres import PostgresServer

SLOW_SECONDS = 2.0
CUTS = 6


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


class Trouble:
    """What is done to the store while traffic flows; each fault returns the moment from which the store is well again."""

    def __init__(self, server: PostgresServer, wire: CutWire, traffic: Traffic, receiver: Receiver) -> None:
        self.server, self.wire, self.traffic, self.receiver = server, wire, traffic, receiver

    async def restarted(self) -> float:
        """Stopped, until the admins have heard of it, and started."""
        told, place = len(self.receiver.messages), self.traffic.place
        self.server.stop()
        try:
            [raised] = (await asyncio.to_thread(self.receiver.wait_for, told + 1))[told:]
            failed = emails_failed(place)
            await self.traffic.more(4)
            assert emails_failed(place) == failed, "email that came meanwhile left its queue for nothing"
        finally:
            self.server.start()
        assert "critical: the store cannot be reached" in raised["title"], raised
        assert "mail is still taken in" in raised["message"]
        return time.monotonic()

    async def killed_at_commit(self) -> float:
        """A connection dies at COMMIT: by turns before the server hears of it, and after it has done it."""
        for number in range(CUTS):
            cuts = self.wire.cuts
            self.wire.cut_at(b"COMMIT", heard=number % 2 == 1)

            async def is_cut(before: int = cuts) -> bool:
                return self.wire.cuts > before

            await self.traffic.place.until(is_cut)
        return time.monotonic()

    async def backends_killed(self) -> float:
        """An administrator ends every connection of the house, in whatever it was doing."""
        for _ in range(3):
            await self.traffic.more(1)
            self.server.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gateway'")
        return time.monotonic()

    async def slow(self, seconds: float) -> float:
        """Every word to the server takes two seconds longer."""
        self.wire.delay_seconds = SLOW_SECONDS
        try:
            await asyncio.sleep(seconds)  # the length of the fault, which is what is tested
            await self.traffic.more(1)
        finally:
            self.wire.delay_seconds = 0.0
        return time.monotonic()


Fault = Callable[[Trouble], Awaitable[float]]
FAULTS: dict[str, Fault] = {
    "store restarted": Trouble.restarted,
    "killed at COMMIT": Trouble.killed_at_commit,
    "backends killed": Trouble.backends_killed,
}
SHORT = FAULTS | {"queries 2 s slower for 8 s": lambda trouble: trouble.slow(8)}
LONG = FAULTS | {"queries 2 s slower for 60 s": lambda trouble: trouble.slow(60)}


@pytest.mark.parametrize(
    "faults", [pytest.param(SHORT, id="short"), pytest.param(LONG, id="a minute", marks=pytest.mark.long)]
)
async def test_whatever_ails_the_store_doors_say_250_and_what_they_promised_is_done_once(
    faults: dict[str, Fault],
    postgres_server: PostgresServer,
    bare_postgres_url: str,
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    async with ScriptedRelay() as relay, CutWire(postgres_server.port).up() as wire:
        url = urlsplit(bare_postgres_url)._replace(netloc=f"postgres@127.0.0.1:{wire.port}").geturl()
        house = house_on(tmp_path / "house", relay.port, {"database_url": url}, GATEWAY_ADMIN_URLS=receiver.url)
        said = []
        async with opened(house, relay, f"sqlite:///{house.folder}/queue.db") as place:
            traffic = Traffic(place)
            trouble = Trouble(postgres_server, wire, traffic, receiver)
            for name, fault in faults.items():
                async with traffic.flowing():
                    await traffic.more(3)
                    well_since = await fault(trouble)
                said.append(await traffic.recovery(name, well_since))
                await place.until(lambda: every_alarm_is_withdrawn(receiver))
            await traffic.prove()
    print("\n".join([*said, *(str(message["title"]) for message in receiver.messages)]))
    assert (traffic.refusals, traffic.errors) == ({}, {}), "neither door nor client said no"


def emails_failed(place: Place) -> int:
    """How many tickets of email met a fault."""
    lines = place.house.log().splitlines()
    return sum("event='handler-failed' queue='email.send'" in line for line in lines)


async def every_alarm_is_withdrawn(receiver: Receiver) -> bool:
    """Whether the admins have heard of the end of whatever they heard of."""
    titles = [str(message["title"]) for message in receiver.messages]
    return sum("over again" in title for title in titles) * 2 == len(titles)
