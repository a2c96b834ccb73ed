"""What holds at the SMTP and at the LMTP door alike: ends of data, many recipients, large mails, a loop that never waits."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from conftest import WAIT_SECONDS, House, Talk

from gateway.errors import QueueUnavailable
from gateway.inbound.door import Door
from gateway.inbound.incoming import FREE_BYTES
from gateway.inbound.intake import IntakeLimits
from gateway.inbound.lmtp_door import LmtpDoor
from gateway.inbound.smtp_door import SmtpDoor
from gateway.queue.ticket import Ticket

BOTH = pytest.mark.parametrize("kind", [SmtpDoor, LmtpDoor], ids=["smtp", "lmtp"])
SMUGGLED = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<posts@localhost>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
# What some server somewhere takes for an end of data, and must be none here.
ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\n.\r",
    b"\r.\n",
    b"\r\n.\r\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n. \r\n",
]
MEGABYTE = 1024 * 1024


@BOTH
@pytest.mark.parametrize("end", ENDS, ids=lambda end: repr(end)[2:-1])
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "byte by byte"])
async def test_no_end_of_others_smuggles_a_mail(kind: type[Door], end: bytes, is_whole: bool, house: House) -> None:
    talk = await Talk.with_door(await house.open_door(kind))
    await talk.begin_data()
    wire = b"Subject: outer\r\n\r\nfirst" + end + SMUGGLED + b"\r\n.\r\nQUIT\r\n"
    for piece in [wire] if is_whole else [wire[i : i + 1] for i in range(len(wire))]:
        await talk.send(piece)

    first, second = await talk.reply(), await talk.reply()

    assert first.startswith(("250 2.0.0", "554 5.6.0")), first
    assert second.startswith("221"), "what came after the variant was read as commands"
    for ticket in await house.tickets():
        assert ticket.headers["mail_from"] == "ann@example.org"
        rest = ticket.body.replace(b"\r\n", b"")
        assert not {b"\r"[0], b"\n"[0], 0} & set(rest), "a bare CR, LF or NUL was stored"
    talk.close()


class SlowQueue:
    """Confirms only what it is told to."""

    def __init__(self) -> None:
        self.offered: list[Ticket] = []
        self.asked, self.confirmed = asyncio.Event(), asyncio.Event()

    async def publish(self, tickets: Sequence[Ticket]) -> None:
        self.offered += tickets
        self.asked.set()
        await self.confirmed.wait()


@BOTH
async def test_of_ten_thousand_recipients_a_thousand_are_taken_and_452_for_the_rest(
    kind: type[Door], house: House
) -> None:
    talk = await Talk.with_door(await house.open_door(kind))
    await talk.reply()
    await talk.say(f"{talk.hello} client")
    commands = b"".join(b"RCPT TO:<r%d@help.example.org>\r\n" % number for number in range(10_000))
    sending = asyncio.create_task(talk.send(b"MAIL FROM:<ann@example.org>\r\n" + commands))
    assert (await talk.reply()).startswith("250")
    replies = [(await talk.reply())[:9] for _ in range(10_000)]
    await sending
    assert replies[:1000] == ["250 2.1.5"] * 1000
    assert replies[1000:] == ["452 4.5.3"] * 9000
    assert (await talk.say("DATA")).startswith("354")
    first = await talk.say("x\r\n.")
    assert first.startswith("250 2.0.0 Ok: kept as ")
    if kind is LmtpDoor:
        assert {await talk.reply() for _ in range(999)} == {first}
    assert (await talk.say("NOOP")).startswith("250")
    tickets = await house.tickets()
    assert [len(ticket.headers["rcpt_to"]) for ticket in tickets] == [100] * 10
    assert {ticket.id for ticket in tickets} == {first.rpartition(" ")[2]}
    assert len({name for ticket in tickets for name in ticket.headers["rcpt_to"]}) == 1000
    talk.close()


@BOTH
async def test_a_client_with_thousands_of_commands_leaves_others_their_turn(kind: type[Door], house: House) -> None:
    talk = await Talk.with_door(await house.open_door(kind, junk_commands=10_000))
    await talk.reply()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    await talk.say(f"{talk.hello} client")
    waiting = asyncio.create_task(others())
    await talk.send(b"NOOP\r\n" * 5_000)
    replies = [await talk.reply() for _ in range(5_000)]
    waiting.cancel()
    assert set(replies) == {"250 2.0.0 OK"}
    assert turns > 5_000 / 64
    talk.close()


@BOTH
async def test_no_reply_is_given_before_every_ticket_is_confirmed(kind: type[Door], house: House) -> None:
    queue = SlowQueue()
    talk = await Talk.with_door(await house.open_door(kind, intake=house.intake(broker=queue)))
    await talk.reply()
    await talk.say(f"{talk.hello} client")
    await talk.say("MAIL FROM:<ann@example.org>")
    for number in range(250):
        await talk.say(f"RCPT TO:<r{number}@help.example.org>")
    await talk.say("DATA")
    await talk.send(b"\r\n" + b"x" * 300_000 + b"\r\n.\r\n")
    answer = asyncio.create_task(talk.reply())
    await asyncio.wait_for(queue.asked.wait(), 10)
    assert [len(ticket.headers["rcpt_to"]) for ticket in queue.offered] == [100, 100, 50]
    for ticket in queue.offered:
        assert (ticket.body, ticket.headers["size"]) == (b"", 300_004)
        assert len(await house.blobs.get(str(ticket.headers["blob"]))) == 300_004
        assert ticket.headers["blob"] == f"sha256:{ticket.headers['sha256']}"
    assert not answer.done()
    queue.confirmed.set()
    assert (await answer).startswith("250 2.0.0 Ok: kept as")
    talk.close()


async def test_a_queue_that_fails_is_told_to_each_recipient(house: House) -> None:
    class Down:
        async def publish(self, tickets: Any) -> None:
            raise QueueUnavailable("down")

    talk = await Talk.with_door(await house.open_door(LmtpDoor, intake=house.intake(broker=Down())))
    await talk.reply()
    for line in ("LHLO a", "MAIL FROM:<>", "RCPT TO:<posts@localhost>", "RCPT TO:<postmaster>", "DATA"):
        await talk.say(line)
    assert (await talk.say("x\r\n.")).startswith("451 4.3.0")
    assert (await talk.reply()).startswith("451 4.3.0")
    assert (await talk.say("NOOP")).startswith("250")
    talk.close()


@BOTH
async def test_large_mails_beyond_the_room_are_452_and_small_ones_go_on(kind: type[Door], house: House) -> None:
    intake = house.intake(limits=IntakeLimits(room_bytes=2 * MEGABYTE))
    door = await house.open_door(kind, intake=intake)
    first, second, third, small = [await Talk.with_door(door) for _ in range(4)]
    for talk in (first, second, small):
        await talk.begin_data()
    await third.reply()
    await first.send(b"\r\n" + b"x" * (2 * MEGABYTE))
    while intake.room.held < MEGABYTE * 3 // 2:
        await asyncio.sleep(0)  # what the client has sent the door has yet to read
    await second.send(b"x" * MEGABYTE + b"\r\n.\r\n")
    assert (await second.reply()).startswith("452 4.3.1")
    assert (await small.say(b"\r\n" + b"y" * (FREE_BYTES - 4) + b"\r\n.")).startswith("250")
    for line in (f"{kind.session.hello} a", f"MAIL FROM:<> SIZE={3 * MEGABYTE}", "RCPT TO:<posts@localhost>"):
        assert (await third.say(line)).startswith("250")
    assert (await third.say("DATA")).startswith("452 4.3.1"), "what cannot fit is not even asked for"
    assert (await first.say("\r\n.")).startswith("250")
    assert intake.room.held == 0
    for talk in (first, second, third, small):
        talk.close()


async def test_a_client_gone_within_a_large_mail_gives_its_room_back(house: House) -> None:
    intake = house.intake()
    door = await house.open_door(intake=intake)
    talk = await Talk.with_door(door)
    await talk.begin_data()
    await talk.send(b"x" * MEGABYTE)
    talk.close()
    await talk.writer.wait_closed()
    await door.close()
    assert intake.room.held == 0


@asynccontextmanager
async def longest_wait() -> AsyncIterator[list[float]]:
    """How long the loop kept others waiting, in seconds; looked at every five milliseconds."""
    waits = [0.0]

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)  # the measure itself
            waits[0] = max(waits[0], time.perf_counter() - before - 0.005)

    watching = asyncio.create_task(watch())
    try:
        yield waits
    finally:
        watching.cancel()


SHAPES = {
    "lines": b"The quick brown fox jumps over the lazy dog, and again and again.\r\n",
    "dots": b"..\r\n",
    "empty lines": b"\r\n",
    "one line": b"x" * 64,
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_mail_of_35_megabytes_never_stops_the_loop(shape: str, house: House) -> None:
    door = await house.open_door()
    size = 35 * MEGABYTE
    line = SHAPES[shape]
    wire = b"Subject: large\r\n\r\n" + line * ((size - 100) // len(line)) + b"\r\n.\r\n"

    def send() -> str:
        import socket

        host, _, port = door.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=60) as connection,
            connection.makefile("rb") as replies,
        ):
            for command in (b"EHLO a\r\n", b"MAIL FROM:<>\r\nRCPT TO:<posts@localhost>\r\nDATA\r\n"):
                connection.sendall(command)
                while not replies.readline().startswith((b"250 ENHANCED", b"354")):
                    pass
            connection.sendall(wire)
            return replies.readline().decode()

    for _ in range(3):  # a machine with other work may look like a wait of ours, but not three times
        async with longest_wait() as waits:
            reply = await asyncio.to_thread(send)
        assert reply.startswith("250 2.0.0"), reply
        if waits[0] < 0.1:
            break
    assert waits[0] < 0.1, f"the loop was kept for {waits[0] * 1000:.0f} ms"
    ticket = (await house.tickets())[0]
    kept = await house.blobs.get(str(ticket.headers["blob"]))
    assert kept.count(b"\r\n") == wire.count(b"\r\n") - 1
    assert Counter(kept[-3:]) == Counter((wire[:-3].replace(b"\r\n..", b"\r\n."))[-3:])


class Deaf:
    """A client that waits for the greeting and never reads another word."""

    def __init__(self, door: Door) -> None:
        host, _, port = door.address.rpartition(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect((host, int(port)))
        self.socket.setblocking(False)
        self.is_greeted = False

    async def say(self, octets: bytes) -> None:
        loop = asyncio.get_running_loop()
        if not self.is_greeted:
            assert (await loop.sock_recv(self.socket, 4096)).startswith(b"220")
            self.is_greeted = True
        await loop.sock_sendall(self.socket, octets)

    async def say_until_cut_off(self, octets: bytes) -> None:
        with suppress(OSError):
            while True:
                await self.say(octets)


async def true(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


@BOTH
async def test_a_client_that_reads_no_replies_loses_its_place(kind: type[Door], house: House) -> None:
    door = await house.open_door(kind, idle_seconds=0.5, linger_seconds=0.5)
    client = Deaf(door)
    house.stack.callback(client.socket.close)
    async with asyncio.timeout(WAIT_SECONDS):
        await client.say(f"{kind.session.hello} x\r\nMAIL FROM:<ann@example.org>\r\n".encode())
        await client.say_until_cut_off(b"RCPT TO:<posts@localhost>\r\n" * 1000)
        await true(lambda: not door._sessions)


async def test_a_client_that_does_not_take_the_reply_to_its_mail_loses_its_place(house: House) -> None:
    door = await house.open_door(SmtpDoor, idle_seconds=0.5, linger_seconds=0.5)
    client = Deaf(door)
    house.stack.callback(client.socket.close)
    async with asyncio.timeout(WAIT_SECONDS):
        await client.say(b"EHLO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<posts@localhost>\r\nDATA\r\n")
        await true(lambda: any(session._in_data for session in door._sessions))
        (session,) = door._sessions
        await client.say(b"Subject: x\r\n")
        await true(lambda: session._incoming is not None and session._incoming.wire_bytes)
        session._writer.write(b"250 one of many replies\r\n" * 400_000)  # more than the kernel keeps for a client
        await client.say(b"\r\nx\r\n.\r\n")
        await session.gone.wait()
    assert len(await house.tickets()) == 1


@BOTH
async def test_a_recipient_named_in_another_case_is_the_same_one(kind: type[Door], house: House) -> None:
    talk = await Talk.with_door(await house.open_door(kind))
    await talk.reply()
    named = ("posts@localhost", "Posts@LOCALHOST", '"posts"@localhost', "posts+a@localhost", "POSTS+A@localhost")
    for line in (f"{talk.hello} x", "MAIL FROM:<ann@example.org>", *(f"RCPT TO:<{name}>" for name in named)):
        assert (await talk.say(line)).startswith("250")
    await talk.say("DATA")
    await talk.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
    for _ in named if kind is LmtpDoor else named[:1]:
        assert (await talk.reply()).startswith("250 2.0.0 Ok: kept")
    (ticket,) = await house.tickets()
    assert ticket.headers["rcpt_to"] == ["posts@localhost", "posts+a@localhost", "POSTS+A@localhost"]
    talk.close()
