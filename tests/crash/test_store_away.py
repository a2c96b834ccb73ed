"""The seeds' case with a whole gateway: its store is locked away, a member posts by mail, and everybody hears in time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, Sink
from test_notices import SENDER, a_house, mail, move_store, notices_to, running, steps, until

sys.path.append(str(Path(__file__).parents[1] / "fakes"))
from sms_receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


def command(house: House, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "gateway.cli", *words]
    return subprocess.run(
        line, env=house.environment(), capture_output=True, text=True, cwd=house.folder.parent, timeout=60
    )


async def sit_out_the_outage(house: House, sink: Sink, receiver: Receiver) -> None:
    """The store is away: 250, one SMS, one notice, and no command makes another store or says that there is nothing."""
    await asyncio.to_thread(mail, house, "posts@in.test")
    [alarm] = await asyncio.to_thread(receiver.wait_for, 1)
    assert "critical: the store cannot be reached" in alarm["title"]
    assert "mail is still taken in and waits in the queue" in alarm["message"]
    await until(lambda: notices_to(sink) == [1], house)
    for words in (["mails"], ["keys", "add", "shop"], ["reconcile"], ["db", "upgrade"]):
        said = await asyncio.to_thread(command, house, *words)
        assert said.returncode == 75, (words, said)
    looked = await asyncio.to_thread(command, house, "doctor", "--json")
    assert "its file is gone" in looked.stdout
    assert not (house.folder / "store.db").exists()


async def hear_that_it_is_over(house: House, sink: Sink, receiver: Receiver) -> None:
    """The store is back: the post is there, "over again" goes out, and everything was told once."""
    messages = await asyncio.to_thread(receiver.wait_for, 2)
    assert "over again: the store cannot be reached" in messages[1]["title"]
    await until(lambda: len(house.list("posts")) == 1, house)
    await until(lambda: [row["disposition"] for row in house.list("emails")] == ["relayed"], house)
    await until(lambda: "notice_sent" in steps(house), house)
    assert steps(house).count("notice_sent") == 1
    assert notices_to(sink) == [1]
    assert (await asyncio.to_thread(house.balance))["missing"] == []


async def test_a_store_locked_away_under_a_gateway_at_work_is_told_once_to_poster_and_admin(
    tmp_path: Path, receiver: Receiver
) -> None:
    async with Sink() as sink:
        house = a_house(tmp_path / "house", sink.port, GATEWAY_ADMIN_URLS=receiver.url)
        with running(house):
            await until(lambda: "gateway-serving" in house.log(), house)
            move_store(house, away=True)
            await sit_out_the_outage(house, sink, receiver)
            move_store(house, away=False)
            await hear_that_it_is_over(house, sink, receiver)
            assert await asyncio.to_thread(house.stop) == 0
        with running(house):  # and nothing of it comes again
            await asyncio.to_thread(mail, house, "posts@in.test", sender="bob@example.org")
            await until(lambda: len(house.list("posts")) == 2, house)
            assert await asyncio.to_thread(house.stop) == 0
        assert [to for to, _ in sink.taken] == [SENDER]
        assert len(receiver.messages) == 2, receiver.messages


async def test_a_gateway_that_finds_its_store_gone_opens_its_doors_and_makes_no_other(
    tmp_path: Path, receiver: Receiver
) -> None:
    async with Sink() as sink:
        house = a_house(tmp_path / "house", sink.port, GATEWAY_ADMIN_URLS=receiver.url)
        with running(house):
            await until(lambda: "gateway-serving" in house.log(), house)
            assert await asyncio.to_thread(house.stop) == 0
        move_store(house, away=True)
        with running(house):
            await sit_out_the_outage(house, sink, receiver)
            assert "put it back" in receiver.messages[0]["message"]
            move_store(house, away=False)
            await hear_that_it_is_over(house, sink, receiver)
            assert await asyncio.to_thread(house.stop) == 0
        assert len(receiver.messages) == 2, receiver.messages
