"""The PROXY protocol at a door: whose header is believed, what is none, and what it makes of a mail's client."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from conftest import House, Talk

from gateway import app, settings
from gateway.errors import SettingsError
from gateway.inbound.door import Door
from gateway.inbound.door_limits import Shares
from gateway.inbound.lmtp_door import LmtpDoor
from gateway.inbound.smtp_door import SmtpDoor
from gateway.inbound.xforward import TrustedHosts
from gateway.web.provenance import parse_networks

BOTH = pytest.mark.parametrize("kind", [SmtpDoor, LmtpDoor], ids=["smtp", "lmtp"])
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4 = bytes([192, 0, 2, 1, 198, 51, 100, 1]) + struct.pack("!HH", 4711, 25)
V6 = bytes.fromhex("20010db8" + "0" * 23 + "1") * 2 + struct.pack("!HH", 4711, 25)
TLV = b"\x20\x00\x05hello"


def binary(command: int, family: int, rest: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


BELIEVED = {
    b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 25\r\n": "192.0.2.1",
    b"PROXY TCP6 2001:DB8::1 2001:db8::2 4711 25\r\n": "2001:db8::1",
    b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 0 65535\r\n": "192.0.2.1",
    b"PROXY UNKNOWN\r\n": "unknown",
    b"PROXY UNKNOWN 192.0.2.1 ::1 whatever\r\n": "unknown",
    b"PROXY TCP4 127.0.0.1 127.0.0.1 4711 25\r\n": "unknown",
    b"PROXY TCP6 ::1 ::1 4711 25\r\n": "unknown",
    binary(0x21, 0x11, V4): "192.0.2.1",
    binary(0x21, 0x11, V4 + TLV): "192.0.2.1",
    binary(0x21, 0x21, V6): "2001:db8::1",
    binary(0x21, 0x31, bytes(216)): "unknown",
    binary(0x21, 0x00, b""): "unknown",
    binary(0x20, 0x00, b""): "unknown",
    binary(0x20, 0x11, V4): "unknown",
    binary(0x21, 0x11, bytes([127, 0, 0, 1]) + V4[4:]): "unknown",
}
NO_HEADERS = [
    b"EHLO x\r\n",
    b"\r\n\r\n\0\r\nQUIT\r",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 4711\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 25\n",
    b"PROXY TCP4 2001:db8::1 2001:db8::2 4711 25\r\n",
    b"PROXY TCP6 192.0.2.1 192.0.2.2 4711 25\r\n",
    b"PROXY TCP4 192.0.2.256 198.51.100.1 4711 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 04711 25\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 65536\r\n",
    b"PROXY TCP4  192.0.2.1 198.51.100.1 4711 25\r\n",
    b"PROXY UDP4 192.0.2.1 198.51.100.1 4711 25\r\n",
    b"proxy TCP4 192.0.2.1 198.51.100.1 4711 25\r\n",
    b"PROXY UNKNOWN " + b"x" * 93 + b"\r\n",
    b"PROXY X\r\nEHLO a\r\n",
    binary(0x11, 0x11, V4),
    binary(0x22, 0x11, V4),
    binary(0x21, 0x12, V4),
    binary(0x21, 0x41, V4),
    binary(0x21, 0x11, V4[:8]),
    binary(0x21, 0x21, V4),
    binary(0x21, 0x11, V4, length=5000),
]


async def open_behind_proxy(
    house: House, kind: type[Door] = SmtpDoor, trusted: str = "127.0.0.1", **limits: object
) -> Door:
    hosts = TrustedHosts(parse_networks([trusted]))
    return await house.open_door(kind, listen="127.0.0.1:0?proxy=yes", trusted_hosts=hosts, **limits)


async def come_as(door: Door, header: bytes) -> Talk:
    talk = await Talk.with_door(door)
    await talk.send(header)
    return talk


@BOTH
@pytest.mark.parametrize("header", BELIEVED, ids=lambda header: repr(header)[2:45])
async def test_a_trusted_host_names_its_client(kind: type[Door], header: bytes, house: House) -> None:
    talk = await come_as(await open_behind_proxy(house, kind), header)
    await talk.begin_data()
    assert (await talk.say("Subject: x\r\n\r\nx\r\n.")).startswith("250 2.0.0 Ok: kept")
    (ticket,) = await house.tickets()
    assert (ticket.headers["client"], ticket.headers["helo"]) == (BELIEVED[header], "client.example.org")
    assert ticket.headers["by_trusted_host"] is False  # the balancer is trusted, not whom it brings
    talk.close()


@pytest.mark.parametrize("header", NO_HEADERS, ids=lambda header: repr(header)[2:45])
async def test_what_is_no_header_closes_the_connection(header: bytes, house: House) -> None:
    talk = await come_as(await open_behind_proxy(house), header)
    assert await talk.reply() == ""
    assert house.log.counters["proxy-refused"] == 1
    talk.close()


async def test_a_header_may_come_in_pieces(house: House) -> None:
    talk = await come_as(await open_behind_proxy(house), b"")
    for octet in binary(0x21, 0x11, V4 + TLV):
        await talk.send(bytes([octet]))
    await talk.begin_data()
    talk.close()


@pytest.mark.parametrize("header", [b"", b"PROXY TCP4 192.0", binary(0x21, 0x11, V4)[:20]])
async def test_a_header_that_does_not_come_in_time_closes_the_connection(header: bytes, house: House) -> None:
    talk = await come_as(await open_behind_proxy(house, proxy_seconds=0.05), header)
    assert await talk.reply() == ""
    assert house.log.counters["proxy-refused"] == 1
    talk.close()


async def test_a_proxy_that_looks_whether_we_are_there_leaves_nothing(house: House) -> None:
    door = await open_behind_proxy(house)
    talk = await Talk.with_door(door)
    talk.writer.write_eof()
    assert await talk.reply() == ""
    talk.close()


@pytest.mark.parametrize("header", [b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 25\r\n", binary(0x21, 0x11, V4)])
async def test_nobody_else_is_believed(header: bytes, house: House) -> None:
    """Other hosts speak for themselves there, and a header of theirs is no header."""
    door = await open_behind_proxy(house, trusted="192.0.2.0/24")
    talk = await Talk.with_door(door)
    await talk.begin_data()
    assert (await talk.say("x\r\n.")).startswith("250")
    (ticket,) = await house.tickets()
    assert ticket.headers["client"] == "127.0.0.1"
    liar = await Talk.with_door(door)
    assert (await liar.reply()).startswith("220")
    assert (await liar.say(header.rstrip())).startswith("500 5.5.2")
    talk.close()
    liar.close()


async def test_a_door_that_was_not_told_so_expects_no_header(house: House) -> None:
    door = await house.open_door(trusted_hosts=TrustedHosts(parse_networks(["127.0.0.1"])))
    talk = await Talk.with_door(door)
    assert (await talk.reply()).startswith("220")
    assert (await talk.say("PROXY TCP4 192.0.2.1 198.51.100.1 4711 25")).startswith("500 5.5.2")
    talk.close()


async def test_what_the_client_says_behind_the_header_is_his_first_command(house: House) -> None:
    talk = await come_as(await open_behind_proxy(house), b"PROXY TCP4 192.0.2.1 198.51.100.1 1 25\r\nNOOP\r\n")
    assert [(await talk.reply())[:3] for _ in range(2)] == ["220", "250"]
    talk.close()


async def test_connections_count_for_the_client_and_not_for_the_proxy(house: House) -> None:
    door = await open_behind_proxy(house, connections_per_client=1)
    header = b"PROXY TCP6 2001:db8::%d 2001:db8:1::1 4711 25\r\n"
    other = b"PROXY TCP4 198.51.100.7 198.51.100.1 4711 25\r\n"
    talks = [await come_as(door, one) for one in (header % 1, other)]
    assert [(await talk.reply())[:3] for talk in talks] == ["220", "220"]
    same = await come_as(door, header % 2)
    assert (await same.reply()).startswith("421 4.7.0 too many connections")
    for talk in (*talks, same):
        talk.close()


async def test_the_client_may_not_speak_for_others_because_its_proxy_may(house: House) -> None:
    talk = await come_as(await open_behind_proxy(house), b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 25\r\n")
    await talk.reply()
    assert "XFORWARD" not in await talk.say("EHLO x")
    assert (await talk.say("XFORWARD ADDR=198.51.100.9")).startswith("550 5.7.1")
    talk.close()


async def test_shares_count_for_the_client_behind_the_proxy(house: House) -> None:
    door = await open_behind_proxy(house, shares=Shares(mails_per_client=1))
    for client, reply in (("192.0.2.1", "250"), ("192.0.2.1", "450 4.7.1 too many mails"), ("192.0.2.2", "250")):
        talk = await come_as(door, f"PROXY TCP4 {client} 198.51.100.1 4711 25\r\n".encode())
        await talk.reply()
        await talk.say("EHLO x")
        assert (await talk.say("MAIL FROM:<>")).startswith(reply)
        talk.close()


def test_the_setting_is_checked(tmp_path: Path) -> None:
    environment = {"GATEWAY_DATA_DIR": str(tmp_path), "GATEWAY_SMTP_LISTEN": "127.0.0.1:25?proxy=yes"}
    with pytest.raises(SettingsError, match=r"smtp_listen: proxy=yes: nobody's PROXY header would be believed"):
        app.check_values(settings.load(environment=environment))
    found = settings.load(environment=environment | {"GATEWAY_TRUSTED_HOSTS": "192.0.2.1"})
    app.check_values(found)
    assert found.smtp_place == "127.0.0.1:25"
    for wrong, why in (("?proxy=perhaps", "proxy is yes or no"), ("?mode=0660", "there is proxy")):
        with pytest.raises(SettingsError, match=why):
            app.check_values(settings.load(environment={"GATEWAY_SMTP_LISTEN": f"127.0.0.1:25{wrong}"}))
