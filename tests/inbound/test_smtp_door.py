"""The door before real sockets: end of data, limits, faults, closing."""

from __future__ import annotations

import asyncio
import random
import smtplib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from conftest import House, Talk

from gateway.errors import QueueUnavailable, StorageFault
from gateway.maillog import MailLog
from gateway.runtime import Stop

Connect = Callable[[Any], Awaitable[Talk]]
SMUGGLED = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<posts@localhost>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
ENDS_OF_OTHERS = [
    before + b"." + after
    for before in (b"\n", b"\r", b"\r\n", b"\n\r", b"\r\r\n", b"\0\r\n", b"\r\n\0", b"\n\n")
    for after in (b"\n", b"\r", b"\r\n", b"\r\r\n", b"\n\r\n", b"\0\r\n", b" \r\n", b"\r\0\n")
    if (before, after) not in ((b"\r\n", b"\r\n"), (b"\r\r\n", b"\r\n"), (b"\0\r\n", b"\r\n"))
]


@pytest.mark.parametrize("variant", ENDS_OF_OTHERS, ids=lambda variant: repr(variant)[2:-1])
async def test_only_crlf_dot_crlf_ends_the_data(variant: bytes, house: House, talk_with: Connect) -> None:
    talk = await talk_with(await house.open_door())
    await talk.begin_data()
    await talk.send(b"Subject: outer\r\n\r\nfirst" + variant + SMUGGLED + b"\r\n.\r\nQUIT\r\n")

    first, second = await talk.reply(), await talk.reply()

    assert first.startswith(("250", "554 5.6.0")), first
    assert second.startswith("221"), "what came after the variant was read as commands"
    for ticket in await house.tickets():
        assert ticket.headers["mail_from"] == "ann@example.org"
        assert b"Subject: smuggled" in ticket.body


async def test_commands_after_the_final_dot_are_a_transaction_of_their_own(house: House, talk_with: Connect) -> None:
    talk = await talk_with(await house.open_door())
    await talk.begin_data()
    await talk.send(b"first\r\n.\r\nMAIL FROM:<bob@example.org>\r\nRCPT TO:<posts@localhost>\r\n")
    assert [(await talk.reply())[:3] for _ in range(3)] == ["250"] * 3
    assert (await talk.say("DATA"))[:3] == "354"
    assert (await talk.say("second\r\n."))[:3] == "250"
    found = {ticket.headers["mail_from"]: ticket.body for ticket in await house.tickets()}
    assert found == {"ann@example.org": b"first\r\n", "bob@example.org": b"second\r\n"}


async def test_the_octets_are_kept_exactly_however_they_are_cut(house: House, talk_with: Connect) -> None:
    dice = random.Random(7)
    talk = await talk_with(await house.open_door())
    await talk.reply()
    await talk.say("EHLO client")
    sent = []
    for _ in range(60):
        lines = [
            dice.choice([b"", b".", b"..", b".x", b"x.", b"x" * 1500, b"\xe4\xf6", b"-- "])
            for _ in range(dice.randrange(12))
        ]
        octets = b"".join(line + b"\r\n" for line in lines)
        sent.append(octets)
        for line in ("MAIL FROM:<ann@example.org>", "RCPT TO:<posts@localhost>", "DATA"):
            await talk.say(line)
        wire = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"
        while wire:
            cut = dice.choice([1, 2, 3, 4, 5, 100])
            await talk.send(wire[:cut])
            wire = wire[cut:]
            await asyncio.sleep(0)  # lets the door read this piece alone
        assert (await talk.reply()).startswith("250")
    kept = [ticket.body for ticket in await house.tickets()]
    assert sorted(kept) == sorted(sent)


@pytest.mark.parametrize("distance", range(-6, 7))
async def test_an_end_across_the_border_of_the_buffer_is_seen(distance: int, house: House, talk_with: Connect) -> None:
    talk = await talk_with(await house.open_door(intake=house.intake(blob_threshold=10**9)))
    await talk.begin_data()
    body = b"Subject: x\r\n\r\n" + b"y" * (128 * 1024 - 16 + distance) + b"\r\n"
    await talk.send(body + b".\r\nNOOP\r\n")
    assert (await talk.reply()).startswith("250 2.0.0 Ok: kept")
    assert (await talk.reply()).startswith("250")
    (ticket,) = await house.tickets()
    assert ticket.body == body


async def test_a_real_client_sends_a_mail_of_many_long_lines(house: House) -> None:
    door = await house.open_door()
    octets = b"Subject: long\r\n\r\n" + b"\r\n".join(b".%d " % n + b"z" * 5000 for n in range(50)) + b"\r\n"

    def send() -> None:
        host, _, port = door.address.rpartition(":")
        with smtplib.SMTP(host, int(port)) as client:
            client.sendmail("ann@example.org", ["posts@localhost", "postmaster@localhost"], octets)

    await asyncio.to_thread(send)
    (ticket,) = await house.tickets()
    assert ticket.body == octets
    assert ticket.headers["rcpt_to"] == ["posts@localhost", "postmaster@localhost"]
    assert ticket.headers["client"] == "127.0.0.1"
    assert ticket.headers["door"] == "smtp"


@pytest.mark.parametrize(
    "fault", [QueueUnavailable("secret path"), StorageFault("secret path"), RuntimeError("secret path")]
)
async def test_a_fault_of_ours_is_451_without_its_text(fault: Exception, house: House, talk_with: Connect) -> None:
    class Broken:
        async def publish(self, tickets: Any) -> None:
            raise fault

    talk = await talk_with(await house.open_door(intake=house.intake(broker=Broken())))
    await talk.begin_data()
    reply = await talk.say("Subject: x\r\n\r\nx\r\n.")
    assert reply.startswith("451 4.3.0")
    assert "secret" not in reply
    assert (await talk.say("NOOP")).startswith("250")


async def test_a_fault_while_a_command_is_handled_is_451(house: House, talk_with: Connect) -> None:
    intake = house.intake()
    intake.check_recipient = lambda rcpt_to, **_: 1 / 0  # type: ignore[method-assign,assignment]
    talk = await talk_with(await house.open_door(intake=intake))
    await talk.reply()
    await talk.say("EHLO client")
    await talk.say("MAIL FROM:<ann@example.org>")
    reply = await talk.say("RCPT TO:<posts@localhost>")
    assert reply.startswith("451 4.3.0")
    assert "division" not in reply


async def test_a_queue_that_does_not_answer_is_451_in_time(house: House, talk_with: Connect) -> None:
    from gateway.inbound.intake import IntakeLimits

    class Silent:
        async def publish(self, tickets: Any) -> None:
            await asyncio.Event().wait()

    intake = house.intake(broker=Silent(), limits=IntakeLimits(publish_seconds=0.05))
    talk = await talk_with(await house.open_door(intake=intake))
    await talk.begin_data()
    assert (await talk.say("x\r\n.")).startswith("451 4.3.0")


async def test_a_full_disk_is_452_before_the_mail_is_sent(house: House, talk_with: Connect) -> None:
    talk = await talk_with(await house.open_door(intake=house.intake(min_free_bytes=10**18)))
    await talk.reply()
    await talk.say("EHLO client")
    assert (await talk.say("MAIL FROM:<ann@example.org>")).startswith("452 4.3.1")


async def test_more_connections_than_a_client_may_have_are_turned_away(house: House, talk_with: Connect) -> None:
    door = await house.open_door(connections_per_client=2)
    first, second, third = [await talk_with(door) for _ in range(3)]
    assert (await first.reply()).startswith("220")
    assert (await second.reply()).startswith("220")
    assert (await third.reply()).startswith("421 4.7.0")
    assert await third.reply() == ""
    assert (await first.say("QUIT")).startswith("221")
    assert await first.reply() == ""
    fourth = await talk_with(door)
    assert (await fourth.reply()).startswith("220")


async def test_a_silent_client_is_told_and_left(house: House, talk_with: Connect) -> None:
    talk = await talk_with(await house.open_door(idle_seconds=0.1))
    assert (await talk.reply()).startswith("220")
    assert (await talk.reply()).startswith("421 4.4.2")
    assert await talk.reply() == ""


async def test_data_slower_than_the_limit_is_ended(house: House, talk_with: Connect) -> None:
    talk = await talk_with(await house.open_door(idle_seconds=0.3, data_bytes_per_second=1000.0))
    await talk.begin_data()
    answer = asyncio.create_task(talk.reply())
    while not answer.done():
        await talk.send(b"x")
        await asyncio.sleep(0.05)  # the drip itself, about 20 bytes a second
    assert (await answer).startswith("421 4.4.2")
    assert await house.tickets() == []


async def test_data_that_keeps_the_pace_may_take_longer_than_the_idle_time(house: House, talk_with: Connect) -> None:
    talk = await talk_with(await house.open_door(idle_seconds=0.3, data_bytes_per_second=100.0))
    await talk.begin_data()
    for _ in range(8):
        await talk.send(b"x" * 98 + b"\r\n")
        await asyncio.sleep(0.1)  # the pace: a thousand bytes a second for longer than the idle time
    assert (await talk.say(".")).startswith("250")


async def test_closing_tells_idle_sessions_and_answers_data_under_way(house: House, talk_with: Connect) -> None:
    door = await house.open_door()
    idle, busy = await talk_with(door), await talk_with(door)
    await idle.reply()
    await busy.begin_data()
    closing = asyncio.create_task(door.close())
    assert (await idle.reply()).startswith("421 4.3.2")
    assert await idle.reply() == ""
    await busy.send(b"Subject: last\r\n\r\nx\r\n.\r\n")
    assert (await busy.reply()).startswith("250 2.0.0 Ok: kept")
    assert (await busy.reply()).startswith("421 4.3.2")
    assert await busy.reply() == ""
    await closing
    assert len(await house.tickets()) == 1


async def test_data_that_never_ends_does_not_keep_the_door_from_closing(house: House, talk_with: Connect) -> None:
    door = await house.open_door(drain_seconds=0.1)
    talk = await talk_with(door)
    await talk.begin_data()
    await door.close()
    assert await talk.reply() == ""


async def test_the_service_ends_when_it_is_asked_to(house: House, talk_with: Connect) -> None:
    door = await house.open_door()
    stop = Stop()
    serving = asyncio.create_task(door.serve(stop))
    talk = await talk_with(door)
    assert (await talk.reply()).startswith("220")
    stop.set()
    await serving
    with pytest.raises(OSError):
        await talk_with(door)


async def test_a_client_gone_within_its_data_leaves_nothing(house: House, talk_with: Connect) -> None:
    door = await house.open_door()
    talk = await talk_with(door)
    await talk.begin_data()
    await talk.send(b"Subject: half\r\n\r\nof a mail\r\n.\r")
    talk.close()
    await talk.writer.wait_closed()
    await door.close()
    assert await house.tickets() == []


async def test_who_says_no_more_after_the_dot_hears_the_answer(house: House, talk_with: Connect) -> None:
    """Scripts and scanners write the dot and QUIT, close their half and perhaps read."""
    door = await house.open_door()
    for _ in range(3):
        talk = await talk_with(door)
        await talk.begin_data()
        await talk.send(b"Subject: x\r\n\r\nx\r\n.\r\nQUIT\r\n")
        talk.writer.write_eof()
        assert [(await talk.reply())[:3] for _ in range(3)] == ["250", "221", ""]
    assert len(await house.tickets()) == 3
    async with asyncio.timeout(10):
        while door._sessions:
            await next(iter(door._sessions)).gone.wait()
    assert door.log.counters["door-fault"] == 0


async def test_endless_data_is_cut_off(house: House, talk_with: Connect) -> None:
    talk = await talk_with(await house.open_door(mail_bytes=10_000))
    await talk.begin_data()

    async def flood() -> None:
        while True:
            await talk.send(b"x" * 65536)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(flood(), 10)
    assert await house.tickets() == []


async def test_refusals_are_logged_and_counted(house: House, talk_with: Connect) -> None:
    talk = await talk_with(await house.open_door())
    await talk.reply()
    await talk.say("EHLO client")
    await talk.say("MAIL FROM:<ann@example.org>")
    await talk.say("RCPT TO:<nobody@localhost>")
    assert house.log.counters["refused"] == 1


class _Full:
    """A stderr that takes nothing: its disk is full, or nobody reads it any more."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space"), ValueError("closed")])
async def test_a_kept_mail_is_250_though_the_log_cannot_be_written(
    error: Exception, house: House, talk_with: Connect
) -> None:
    house.log = MailLog(stream=_Full(error))
    talk = await talk_with(await house.open_door())
    await talk.begin_data()
    assert (await talk.say("Subject: x\r\n\r\nx\r\n.")).startswith("250 2.0.0 Ok: kept as")
    assert len(await house.tickets()) == 1
    assert house.log.counters["mail-queued"] == 1
    assert house.log.counters["log-lost"] >= 1


async def test_a_fault_that_cannot_be_told_is_still_451(house: House, talk_with: Connect) -> None:
    intake = house.intake()
    intake.check_recipient = lambda rcpt_to, **_: 1 / 0  # type: ignore[method-assign,assignment]
    house.log.door_fault = lambda **facts: {}["secret"]  # type: ignore[method-assign]
    talk = await talk_with(await house.open_door(intake=intake))
    await talk.reply()
    await talk.say("EHLO client")
    await talk.say("MAIL FROM:<ann@example.org>")
    assert await talk.say("RCPT TO:<posts@localhost>") == (
        "451 4.3.0 a fault of ours, the mail is not kept; try again later"
    )


@pytest.mark.parametrize("command", ["HELP", "NOOP", "RSET", "VRFY ann", "EHLO c"])
async def test_who_pipelines_a_flood_is_served_in_turn_and_ended(
    command: str, house: House, talk_with: Connect
) -> None:
    door = await house.open_door()
    floods = [await talk_with(door) for _ in range(5)]
    for flood in floods:
        assert (await flood.reply()).startswith("220")
        flood.writer.write(f"{command}\r\n".encode() * 20_000)
    talk = await talk_with(door)
    async with asyncio.timeout(2):
        await talk.begin_data()
        assert (await talk.say("Subject: x\r\n\r\nx\r\n.")).startswith("250")
    for flood in floods:
        replies = [await flood.reply()]
        while replies[-1] and not replies[-1].startswith("421"):
            replies.append(await flood.reply())
        assert len(replies) <= 102


async def test_a_flood_without_a_limit_lets_others_have_their_turn_after_each_command(
    house: House, talk_with: Connect
) -> None:
    door = await house.open_door(junk_commands=10**9)
    flood = await talk_with(door)
    await flood.reply()
    flood.writer.write(b"HELP\r\n" * 2_000)
    await flood.reply()
    assert (await flood.reply()).startswith("214")
    talk = await talk_with(door)
    await talk.begin_data()
    assert b"214" in await flood.reader.readexactly(3), "the flood was over before the other client was served"
    assert (await talk.say("Subject: x\r\n\r\nx\r\n.")).startswith("250")


async def test_commands_count_as_junk_only_since_the_last_mail(house: House, talk_with: Connect) -> None:
    talk = await talk_with(await house.open_door(junk_commands=5))
    await talk.begin_data()
    for _ in range(4):
        assert (await talk.say("x\r\n.")).startswith("250")
        for line in (
            "NOOP",
            "NOOP",
            "RSET",
            "NOOP",
            "RSET",
            "MAIL FROM:<ann@example.org>",
            "RCPT TO:<posts@localhost>",
        ):
            assert (await talk.say(line)).startswith("250")
        assert (await talk.say("DATA")).startswith("354")
