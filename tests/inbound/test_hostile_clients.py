"""Clients that mean no mail, or do not know how: web browsers, the impatient, drips, floods of octets, crowds."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import suppress

import pytest
from conftest import WAIT_SECONDS, House, Talk

from gateway.inbound.door import Door
from gateway.inbound.lmtp_door import LmtpDoor
from gateway.inbound.smtp_door import SmtpDoor

BOTH = pytest.mark.parametrize("kind", [SmtpDoor, LmtpDoor], ids=["smtp", "lmtp"])
A_MAIL = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<posts@localhost>\r\nDATA\r\n"
REQUEST = (
    b"POST / HTTP/1.1\r\nHost: mx.localhost\r\nContent-Type: text/plain\r\n\r\nEHLO x\r\n" + A_MAIL + b"\r\nx\r\n.\r\n"
)


async def replies_until_closed(talk: Talk) -> list[str]:
    replies = [await talk.reply()]
    while replies[-1]:
        replies.append(await talk.reply())
    return replies[:-1]


@BOTH
@pytest.mark.parametrize("method", ["GET", "post", "PUT", "HEAD", "OPTIONS", "CONNECT", "DELETE", "PATCH", "TRACE"])
async def test_a_web_request_is_shown_out_at_its_first_line(kind: type[Door], method: str, house: House) -> None:
    talk = await Talk.with_door(await house.open_door(kind))
    await talk.reply()
    await talk.send(REQUEST.replace(b"POST", method.encode()))
    assert await replies_until_closed(talk) == ["421 4.7.0 this is a mail server, and no web server, closing"]
    assert house.log.counters["refused"] == 1, "what followed was heard as commands"
    assert await house.tickets() == []
    talk.close()


@BOTH
async def test_who_cannot_wait_for_the_greeting_is_heard_all_the_same(kind: type[Door], house: House) -> None:
    """A careless client, not a hostile one: whether its octets come before our 220 is chance."""
    door = await house.open_door(kind)
    host, _, port = door.address.rpartition(":")
    client = socket.create_connection((host, int(port)))
    client.sendall(b"NOOP\r\nQUIT\r\n")  # the door has not had its turn yet
    talk = Talk(*await asyncio.open_connection(sock=client))
    assert [reply[:3] for reply in await replies_until_closed(talk)] == ["220", "250", "221"]
    talk.close()


@BOTH
@pytest.mark.parametrize("ending", [b"\n", b"\n\r", b"\r", b"\r\r\n", b"\n\r\n"], ids=repr)
async def test_a_command_with_a_bare_cr_or_lf_is_none(kind: type[Door], ending: bytes, house: House) -> None:
    """What a server before us took for one line must not be two here."""
    talk = await Talk.with_door(await house.open_door(kind))
    await talk.reply()
    await talk.say(f"{talk.hello} x")
    await talk.send(b"MAIL FROM:<ann@example.org>" + ending + b"RCPT TO:<posts@localhost>\r\nDATA\r\nQUIT\r\n")
    replies = await replies_until_closed(talk)
    assert replies[-1].startswith("221")
    assert not any(reply.startswith("354") for reply in replies)
    assert any(reply.startswith("500 5.5.2") for reply in replies)
    talk.close()


@BOTH
async def test_octets_of_all_kinds_are_answered_and_do_no_harm(kind: type[Door], house: House) -> None:
    dice = random.Random(6)
    door = await house.open_door(kind, hard_errors=10**6, junk_commands=10**6)
    strange = [
        b"\0",
        b"\r",
        b"\xff",
        b"\x80",
        b"\xc3",
        b"\xc3\xa9",
        b"\xed\xb2\x80",
        b"<",
        b">",
        b" ",
        b"\t",
        b"\x1b",
        b"@",
        b":",
        b"a",
    ]
    verbs = [
        b"EHLO ",
        b"LHLO ",
        b"HELO ",
        b"MAIL FROM:<",
        b"RCPT TO:<",
        b"VRFY ",
        b"XFORWARD ADDR=",
        b"NOOP ",
        b"RSET ",
        b"",
    ]
    talk = await Talk.with_door(door)
    await talk.reply()
    await talk.say(f"{talk.hello} x")
    for _ in range(600):
        line = (
            dice.choice(verbs)
            + b"".join(dice.choices(strange, k=dice.randrange(1, 9)))
            + dice.choice([b">", b"", b"@localhost>"])
        )
        reply = await talk.say(line)
        if reply.startswith("502 5.5.1 Too many") or not reply:
            talk.close()
            talk = await Talk.with_door(door)
            await talk.reply()
            continue
        assert reply[:3].isdigit(), (line, reply)
        assert reply.isprintable(), (line, reply)
        assert not reply.startswith("451"), (line, reply)
    assert house.log.counters["door-fault"] == 0
    talk.close()


async def test_octets_of_a_name_that_are_no_text_are_kept_as_question_marks(house: House) -> None:
    talk = await Talk.with_door(await house.open_door())
    await talk.reply()
    names = {b"\xff": "?", b"a\x80b c": "a?b c", b"\xed\xb2\x80": "???", "bücher".encode(): "bücher"}
    for name in names:
        for line in (b"EHLO " + name, b"MAIL FROM:<ann@example.org>", b"RCPT TO:<posts@localhost>"):
            assert (await talk.say(line)).startswith("250")
        assert (await talk.say("DATA")).startswith("354")
        assert (await talk.say(".")).startswith("250")
    assert sorted(str(ticket.headers["helo"]) for ticket in await house.tickets()) == sorted(names.values())
    talk.close()


async def drip(talk: Talk, door: Door) -> str:
    """Sends an octet every now and then until the door has had enough; the last word may be lost with the connection."""
    answer = asyncio.create_task(talk.reply())
    async with asyncio.timeout(WAIT_SECONDS):
        while door._sessions:
            with suppress(ConnectionError):
                await talk.send(b"x")
            await asyncio.sleep(0.02)  # the drip itself
    return await answer


@BOTH
@pytest.mark.parametrize("where", ["a command", "the header", "the text"])
async def test_who_drips_is_ended_wherever_he_does_it(kind: type[Door], where: str, house: House) -> None:
    door = await house.open_door(kind, idle_seconds=0.3, data_bytes_per_second=500.0)
    talk = await Talk.with_door(door)
    if where == "a command":
        await talk.reply()
        await talk.send(b"MAIL FROM:<")
    else:
        await talk.begin_data()
        await talk.send(b"Subject: x" + b"\r\n\r\n" * (where == "the text"))
    assert (await drip(talk, door))[:9] in ("421 4.4.2", "")
    assert await house.tickets() == []
    talk.close()


async def test_a_session_that_brings_no_mail_ends_however_busy_it_is(house: House) -> None:
    talk = await Talk.with_door(await house.open_door(session_seconds=0.4, junk_commands=10**9))
    await talk.begin_data()
    assert (await talk.say("x\r\n.")).startswith("250")
    await talk.say("MAIL FROM:<ann@example.org>")
    reply = "250"
    async with asyncio.timeout(WAIT_SECONDS):
        while reply.startswith("250"):
            reply = await talk.say("RCPT TO:<posts@localhost>")  # one named twice is one, and no error
    assert reply.startswith("421 4.4.2")
    talk.close()


async def test_a_mail_gives_a_session_new_time(house: House) -> None:
    door = await house.open_door(session_seconds=0.4)
    talk = await Talk.with_door(door)
    await talk.begin_data()
    (session,) = door._sessions
    began = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < began + 0.6:
        assert (await talk.say("x\r\n.")).startswith("250")
        for line in ("MAIL FROM:<ann@example.org>", "RCPT TO:<posts@localhost>", "DATA"):
            assert (await talk.say(line))[:3] in ("250", "354")
    assert session in door._sessions
    talk.close()


async def test_in_a_crowd_there_is_less_patience_with_the_silent(house: House) -> None:
    door = await house.open_door(connections=10, crowded_idle_seconds=0.2)
    talks = [await Talk.with_door(door) for _ in range(8)]
    for talk in talks:
        assert (await talk.reply()).startswith("220")
    silent = asyncio.create_task(talks[0].reply())
    ninth = await Talk.with_door(door)
    assert (await ninth.reply()).startswith("220")
    assert (await silent).startswith("421 4.4.2")
    for talk in (*talks[1:], ninth):
        assert (await talk.reply()).startswith("421 4.4.2")
    assert house.log.counters["smtp-door-crowded"] == 1
    later = await Talk.with_door(door)
    assert (await later.reply()).startswith("220")
    await asyncio.sleep(0.3)  # longer than the patience in a crowd
    assert (await later.say("NOOP")).startswith("250")
    for talk in (*talks, ninth, later):
        talk.close()
