"""XFORWARD at both doors: who may say it, what it says of a mail, and what is left unknown rather than guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import House, Talk

from gateway import app, settings
from gateway.errors import SettingsError
from gateway.inbound.door import Door
from gateway.inbound.lmtp_door import LmtpDoor
from gateway.inbound.smtp_door import SmtpDoor
from gateway.inbound.xforward import TrustedHosts
from gateway.web.provenance import parse_networks

BOTH = pytest.mark.parametrize("kind", [SmtpDoor, LmtpDoor])


def trusted(*hosts: str) -> TrustedHosts:
    return TrustedHosts(parse_networks(hosts))


async def greeted(door: Door) -> tuple[Talk, str]:
    talk = await Talk.with_door(door)
    await talk.reply()
    return talk, await talk.say(f"{talk.hello} mta.example.org")


async def post(talk: Talk) -> None:
    for line in ("MAIL FROM:<ann@example.org>", "RCPT TO:<posts@localhost>"):
        assert (await talk.say(line)).startswith("250")
    assert (await talk.say("DATA")).startswith("354")
    assert (await talk.say("Subject: x\r\n\r\nx\r\n.")).startswith("250 2.0.0 Ok: kept")


async def origins(house: House) -> list[tuple[object, object]]:
    return [(ticket.headers["client"], ticket.headers["helo"]) for ticket in await house.tickets()]


@BOTH
async def test_a_trusted_host_names_the_client_of_the_next_mail_only(kind: type[Door], house: House) -> None:
    talk, hello = await greeted(await house.open_door(kind, trusted_hosts=trusted("127.0.0.0/8")))
    assert "XFORWARD ADDR HELO" in hello
    assert (await talk.say("XFORWARD NAME=c.example.net ADDR=192.0.2.1 PORT=4711")).startswith("250")
    assert (await talk.say("xforward PROTO=ESMTP HELO=c.ex+61mple.net SOURCE=REMOTE")).startswith("250")
    await post(talk)
    await post(talk)
    assert await origins(house) == [("192.0.2.1", "c.example.net"), ("127.0.0.1", "mta.example.org")]
    talk.close()


@BOTH
@pytest.mark.parametrize("hosts", [(), ("192.0.2.0/24",), ("127.0.0.0/8",)])
async def test_only_a_trusted_host_hands_a_mail_over_by_lmtp_as_little_as_by_smtp(
    kind: type[Door], hosts: tuple[str, ...], house: House
) -> None:
    talk, _ = await greeted(await house.open_door(kind, trusted_hosts=trusted(*hosts)))
    await post(talk)
    (ticket,) = await house.tickets()
    assert ticket.headers["by_trusted_host"] is (hosts == ("127.0.0.0/8",))
    talk.close()


@BOTH
async def test_who_may_open_the_socket_may_speak_for_others(kind: type[Door], house: House, tmp_path: Path) -> None:
    talk, hello = await greeted(await house.open_door(kind, listen=f"unix:{tmp_path}/s"))
    assert "XFORWARD ADDR HELO" in hello
    assert (await talk.say("XFORWARD ADDR=IPv6:2001:DB8::1 HELO=b+C3+BCcher.example")).startswith("250")
    await post(talk)
    (ticket,) = await house.tickets()
    origin = [ticket.headers[name] for name in ("client", "helo", "by_trusted_host")]
    assert origin == ["2001:db8::1", "bücher.example", True]
    talk.close()


@pytest.mark.parametrize(
    "words",
    [
        "ADDR=[UNAVAILABLE] HELO=[UNAVAILABLE]",
        "ADDR=192.0.2.1 ADDR=nobody",
        "ADDR=192.0.2.1 HELO=+0D+0A",
        "ADDR=192.0.2.1 HELO=+FF",
        "ADDR=192.0.2.1 HELO=a=b",
        "ADDR=192.0.2.1 HELO=+4",
        "ADDR=192.0.2.1 HELO=" + "a" * 256,
        "ADDR=192.0.2.1 LOGIN=ann",
        "SOURCE=LOCAL",
    ],
)
async def test_what_cannot_be_known_leaves_the_client_unknown(words: str, house: House) -> None:
    talk, _ = await greeted(await house.open_door(SmtpDoor, trusted_hosts=trusted("127.0.0.1")))
    reply = await talk.say(f"XFORWARD {words}")
    assert reply.startswith("250" if "UNAVAILABLE" in words or "LOCAL" in words else "501 5.5.4 XFORWARD: ")
    await post(talk)
    assert await origins(house) == [("unknown", "")]
    talk.close()


@BOTH
async def test_it_comes_after_the_greeting_and_before_mail(kind: type[Door], house: House) -> None:
    talk = await Talk.with_door(await house.open_door(kind, trusted_hosts=trusted("127.0.0.1")))
    await talk.reply()
    assert (await talk.say("XFORWARD ADDR=192.0.2.1")).startswith("503 5.5.1")
    await talk.say(f"{talk.hello} mta.example.org")
    assert (await talk.say("XFORWARD")).startswith("501 5.5.4")
    await talk.say("MAIL FROM:<ann@example.org>")
    assert (await talk.say("XFORWARD ADDR=192.0.2.1")).startswith("503 5.5.1")
    talk.close()


def test_trusted_hosts_are_addresses_and_networks() -> None:
    hosts = trusted("192.0.2.0/24", "2001:db8::/32")
    assert all(client in hosts for client in ("192.0.2.7", "::ffff:192.0.2.7", "2001:db8::9"))
    assert all(client not in hosts for client in ("192.0.3.1", "::1", "local", "unknown", ""))
    with pytest.raises(SettingsError, match=r"trusted_hosts: 'mail\.example\.org' is not an IP address"):
        app.check_values(settings.load(environment={"GATEWAY_TRUSTED_HOSTS": "mail.example.org"}))


async def test_a_mail_server_s_loopback_is_not_ours(house: House) -> None:
    """Only who connects to us directly is a program of this host."""
    talk, _ = await greeted(await house.open_door(SmtpDoor, trusted_hosts=trusted("127.0.0.1")))
    for address in ("127.0.0.1", "IPv6:::1", "IPv6:::ffff:127.0.0.1", "0.0.0.0"):
        assert (await talk.say(f"XFORWARD ADDR={address} HELO=mta")).startswith("250")
        await post(talk)
    assert await origins(house) == [("unknown", "mta")] * 4
    talk.close()
