"""Telling people with a whole gateway: killed at every place of it, with the store away, among machines that answer."""

from __future__ import annotations

import asyncio
import shutil
import smtplib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from house import House, Sink

sys.path.append(str(Path(__file__).parents[1] / "notices"))
from telling_desk import HOSTNAME
from test_loop_guard import HOSTILE_HEADERS, HOSTILE_SENDERS

from gateway.mail.addresses import parse_mailbox

SETTLE_SECONDS = 180
SENDER = "ann@example.org"
MAILBOXES = (
    '[{"address": "closed@in.test", "kind": "refusing_box:RefusingBox"}, {"address": "posts@in.test", "kind": "posts"}]'
)

PLACES = ("notices.written", "notices.told")
MORE = (
    "store.notice_chosen.before",
    "store.notice_chosen.after",
    "notices.chosen",
    "store.notice_told.before",
    "store.notice_told.after",
    "notices.issued",
)
OUTAGE_PLACES = ("outage.recorded",)
MORE_OUTAGE_PLACES = ("outage.claimed", "outage.dot_recorded", "notices.merged")


def sometimes(places: Sequence[str]) -> list[Any]:
    return [pytest.param(place, marks=pytest.mark.long) for place in places]


def a_house(folder: Path, relay_port: int, *, delays: str = "1s 600s", **more: str) -> House:
    folder.mkdir(parents=True)
    values = {
        "GATEWAY_MAILBOXES": MAILBOXES,
        "GATEWAY_DOMAINS": "in.test",
        "GATEWAY_NOTICES__DELAYS": delays,
        "PYTHONPATH": str(Path(__file__).parent),
    }
    return House(folder=folder / "data", relay_url=f"smtp://127.0.0.1:{relay_port}", more=values | more)


def mail(house: House, to: str, *, sender: str = SENDER, header: str = "", socket: Path | None = None) -> None:
    lines = ["From: Ann <ann@example.org>", "Subject: Our garden", f"To: {to}", *([header] if header else [])]
    if "essage-" not in header.lower():
        lines.append(f"Message-ID: <{time.monotonic_ns()}@example.org>")
    octets = "\r\n".join([*lines, "", "Hello", ""]).encode()
    session = smtplib.LMTP(str(socket)) if socket else smtplib.SMTP("127.0.0.1", house.smtp_port, "here.test", 20)
    with session:
        session.ehlo()
        assert session.mail(sender)[0] == 250
        assert session.rcpt(to)[0] == 250
        assert session.data(octets)[0] == 250


@contextmanager
def running(house: House, failpoint: str = "") -> Iterator[None]:
    house.start(failpoint)
    try:
        assert house.wait_ready()
        yield
    finally:
        assert house.process is not None
        if house.process.poll() is None:
            house.kill()


async def until(is_so: Callable[[], bool], house: House) -> None:
    """Looks again and again from outside, as a person would: nothing else tells of another process's work."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not await asyncio.to_thread(is_so):
        assert time.monotonic() < deadline, house.log()[-4000:]
        await asyncio.sleep(0.1)


def notices_to(sink: Sink, recipient: str = SENDER) -> list[int]:
    return [times for (to, _), times in sink.taken.items() if to == recipient]


def steps(house: House) -> list[str]:
    [row] = house.list("mails")
    [story] = house.list("show", str(row["id"]))
    return [str(line["step"]) for line in story["timeline"]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", [*PLACES, *sometimes(MORE)])
async def test_killed_here_the_sender_is_told_exactly_once(tmp_path: Path, place: str) -> None:
    async with Sink() as sink:
        house = a_house(tmp_path / "house", sink.port)
        with running(house, place):
            await asyncio.to_thread(mail, house, "closed@in.test")
            process = house.process
            assert process is not None
            assert await asyncio.to_thread(process.wait, SETTLE_SECONDS) == -9
        with running(house):
            await until(lambda: bool(notices_to(sink)), house)
            await until(lambda: [row["disposition"] for row in house.list("emails")] == ["relayed"], house)
            assert steps(house).count("notice_sent") == 1
        assert notices_to(sink) == [1]


def move_store(house: House, *, away: bool) -> None:
    folder = house.folder.parent / "away"
    folder.mkdir(exist_ok=True)
    source, target = (house.folder, folder) if away else (folder, house.folder)
    # The file itself goes first and comes last: without its WAL it must never be found.
    for name in ("store.db", "store.db-wal", "store.db-shm") if away else ("store.db-wal", "store.db-shm", "store.db"):
        if (source / name).exists():
            shutil.move(source / name, target / name)


async def test_store_away_the_poster_hears_kept_and_when_it_is_back_the_post_is_there(tmp_path: Path) -> None:
    async with Sink() as sink:
        house = a_house(tmp_path / "house", sink.port)
        with running(house):
            await until(lambda: "gateway-serving" in house.log(), house)
            move_store(house, away=True)
            await asyncio.to_thread(mail, house, "posts@in.test")
            await until(lambda: notices_to(sink) == [1], house)
            move_store(house, away=False)
            await until(lambda: len(house.list("posts")) == 1, house)
            await until(lambda: [row["disposition"] for row in house.list("emails")] == ["relayed"], house)
            await until(lambda: "notice_sent" in steps(house), house)
            assert steps(house).count("notice_sent") == 1
        assert notices_to(sink) == [1]


@pytest.mark.parametrize("place", [*OUTAGE_PLACES, *sometimes(MORE_OUTAGE_PLACES)])
async def test_killed_while_the_store_is_away_nobody_is_told_twice(tmp_path: Path, place: str) -> None:
    async with Sink() as sink:
        house = a_house(tmp_path / "house", sink.port)
        with running(house, place):
            await until(lambda: "gateway-serving" in house.log(), house)
            move_store(house, away=True)
            await asyncio.to_thread(mail, house, "posts@in.test")
            if place == "notices.merged":
                await until(lambda: notices_to(sink) == [1], house)
                move_store(house, away=False)
            process = house.process
            assert process is not None
            assert await asyncio.to_thread(process.wait, SETTLE_SECONDS) == -9
        move_store(house, away=False)
        was_told = place in ("outage.recorded", "notices.merged")
        with running(house):
            await until(lambda: len(house.list("posts")) == 1, house)
            if was_told:
                await until(lambda: "notice_sent" in steps(house), house)
                assert [row["disposition"] for row in house.list("emails")] == ["relayed"]
        assert notices_to(sink) == ([1] if was_told else [])


async def test_machines_at_the_real_doors_are_answered_not_once_and_lose_nothing(tmp_path: Path) -> None:
    async with Sink() as sink:
        house = a_house(tmp_path / "house", sink.port)
        with running(house):
            headers = [
                header for header in HOSTILE_HEADERS if HOSTNAME not in header
            ]  # that one is not this house's own
            for header in headers:
                await asyncio.to_thread(mail, house, "closed@in.test", header=header)
            senders = [sender for sender in HOSTILE_SENDERS if sender == "" or is_mailbox(sender)]
            for sender in senders:
                ours = sender.replace("photos@in.example.org", "posts@in.test")
                await asyncio.to_thread(mail, house, "closed@in.test", sender=ours)
            for _ in range(10):
                await asyncio.to_thread(mail, house, "closed@in.test", socket=house.folder / "lmtp.sock")
            sent = len(headers) + len(senders) + 10
            await until(lambda: [row["disposition"] for row in house.list("mails")] == ["held"] * sent, house)
            assert house.list("emails") == []
        assert not sink.taken


def is_mailbox(text: str) -> bool:
    try:
        parse_mailbox(text)
    except ValueError:
        return False
    return True


async def test_two_gateways_that_could_answer_each_other_stop_after_one_answer(tmp_path: Path) -> None:
    async with Sink() as sink:
        here, there = a_house(tmp_path / "here", sink.port), a_house(tmp_path / "there", sink.port)
        boxes = MAILBOXES.replace("in.test", "there.test")
        there.more |= {"GATEWAY_MAILBOXES": boxes, "GATEWAY_DOMAINS": "there.test"}
        here.relay_url = f"smtp://127.0.0.1:{there.smtp_port}"
        there.relay_url = f"smtp://127.0.0.1:{here.smtp_port}"
        with running(here), running(there):
            await asyncio.to_thread(mail, here, "closed@in.test", sender="closed@there.test")
            await until(lambda: [row["disposition"] for row in there.list("mails")] == ["held"], there)
            await until(lambda: [row["disposition"] for row in here.list("emails")] == ["relayed"], here)
            assert [row["disposition"] for row in here.list("mails")] == ["failed"]
            assert there.list("emails") == []
