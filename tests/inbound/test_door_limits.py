"""Shares of clients and senders: what is put off, for how long, for whom it does not count, and how much is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import House, Talk

from gateway.inbound.door import Door
from gateway.inbound.door_limits import ENTRIES, Rate, Shares, Throttle, client_address, client_key, sender_key
from gateway.inbound.smtp_door import SmtpDoor
from gateway.inbound.xforward import TrustedHosts
from gateway.web.provenance import parse_networks

PROXY = TrustedHosts(parse_networks(["127.0.0.1"]))


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def test_a_share_may_come_at_once_and_then_as_it_grows_again() -> None:
    clock = Clock()
    rate = Rate(4, 60.0, clock)
    for _ in range(4):
        assert rate.wait_seconds("a") == 0
        rate.take("a")
    assert rate.wait_seconds("a") == pytest.approx(15)
    assert rate.wait_seconds("b") == 0
    rate.take("a")  # what does not fit is not counted: who keeps asking does not wait the longer for it
    clock.time += 15
    assert rate.wait_seconds("a") == 0
    rate.take("a")
    assert rate.wait_seconds("a") == pytest.approx(15)
    clock.time += 3600
    for _ in range(4):
        assert rate.wait_seconds("a") == 0
        rate.take("a")
    assert rate.wait_seconds("a") > 0


@pytest.mark.parametrize("most", [1, 3, 7, 1000])
def test_a_whole_share_fits_at_whatever_time(most: int) -> None:
    clock = Clock()
    rate = Rate(most, 600.0, clock)
    for number in range(50):
        clock.time = 1000.1 + number * 777.7 / 3
        key = f"client {number}"
        for _ in range(most):
            assert rate.wait_seconds(key) == 0
            rate.take(key)
        assert rate.wait_seconds(key) > 0


def test_of_many_keys_the_longest_unused_is_forgotten() -> None:
    rate = Rate(1, 60.0, Clock())
    for number in range(ENTRIES):
        rate.take(f"client {number}")
    rate.take("one more")
    assert len(rate) == ENTRIES
    assert rate.wait_seconds("client 0") == 0
    assert rate.wait_seconds("client 1") > 0


def test_what_is_put_off_for_the_sender_costs_the_client_nothing() -> None:
    throttle = Throttle(Shares(mails_per_client=2, mails_per_sender=1), Clock())
    assert throttle.mail("client", "ann") is None
    for _ in range(5):
        spent = throttle.mail("client", "ann")
        assert spent is not None
        assert spent.name == "mails_per_sender"
    assert throttle.mail("client", "bob") is None
    spent = throttle.mail("client", "eve")
    assert spent is not None
    assert spent.name == "mails_per_client"


def test_zero_is_no_limit_and_nobody_is_not_counted() -> None:
    throttle = Throttle(Shares(mails_per_client=0, mails_per_sender=1), Clock())
    assert [throttle.mail("client", "") for _ in range(50)] == [None] * 50


def test_whom_a_client_and_a_sender_count_for() -> None:
    addresses = ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "::1", "::ffff:0:1", "fe80::1%eth0")
    assert [client_address(peer) for peer in addresses] == ["192.0.2.1", "192.0.2.1", *addresses[2:]]
    assert client_key("192.0.2.1") == client_key("::ffff:192.0.2.1") == "192.0.2.1"
    assert client_key("2001:db8::1") == client_key("2001:db8::ffff:1%eth0") == "2001:db8::/64"
    assert client_key("unknown") == "unknown"
    assert sender_key("", "Ann@example.org", "192.0.2.1") == sender_key("", "ann@Example.org", "192.0.2.99")
    assert sender_key("", "ann@example.org", "192.0.2.1") != sender_key("", "ann@example.org", "198.51.100.1")
    assert sender_key("ann", "a@example.org", "192.0.2.1") == sender_key("ann", "b@example.org", "198.51.100.1")
    assert sender_key("", "", "192.0.2.1") == ""


async def open_door(house: House, **shares: int) -> Door:
    """A door whose clients come through a proxy: so they may come from anywhere."""
    listen = "127.0.0.1:0?proxy=yes"
    return await house.open_door(SmtpDoor, listen=listen, trusted_hosts=PROXY, shares=Shares(**shares))


async def client_of(door: Door, address: str = "192.0.2.1") -> Talk:
    talk = await Talk.with_door(door)
    kind = "TCP6" if ":" in address else "TCP4"
    await talk.send(f"PROXY {kind} {address} {address} 4711 25\r\n".encode())
    return talk


async def greeted(door: Door, address: str = "192.0.2.1") -> Talk:
    talk = await client_of(door, address)
    assert (await talk.reply()).startswith("220")
    await talk.say("EHLO x")
    return talk


async def test_mails_of_a_client_are_put_off_in_whatever_session_they_come(house: House) -> None:
    door = await open_door(house, mails_per_client=3)
    first, second = await greeted(door, "2001:db8::1"), await greeted(door, "2001:db8::2")
    for talk in (first, second, first):
        assert (await talk.say("MAIL FROM:<ann@example.org>")).startswith("250")
        await talk.say("RSET")
    reply = await second.say("MAIL FROM:<ann@example.org>")
    assert reply == "450 4.7.1 too many mails from your address lately, try again later"
    assert (await second.say("RCPT TO:<posts@localhost>")).startswith("503")
    assert (await second.say("NOOP")).startswith("250"), "the session goes on"
    assert house.log.counters["throttled"] == 1
    first.close()
    second.close()


async def test_recipients_beyond_the_share_are_put_off_and_the_others_get_their_mail(house: House) -> None:
    talk = await greeted(await open_door(house, recipients_per_client=2))
    await talk.say("MAIL FROM:<>")
    for name, reply in (("a", "250"), ("b", "250"), ("c", "450 4.7.1 too many recipients from your address")):
        assert (await talk.say(f"RCPT TO:<{name}@help.example.org>")).startswith(reply)
    await talk.say("DATA")
    assert (await talk.say("x\r\n.")).startswith("250")
    (ticket,) = await house.tickets()
    assert ticket.headers["rcpt_to"] == ["a@help.example.org", "b@help.example.org"]
    talk.close()


async def test_a_sender_is_put_off_by_name_and_his_neighbours_are_not(house: House) -> None:
    talk = await greeted(await open_door(house, mails_per_sender=1))
    for mail_from, reply in (
        ("ann@example.org", "250"),
        ("ANN@example.org", "450 4.7.1 too many mails from this sender"),
        ("bob@example.org", "250"),
        ("", "250"),
        ("", "250"),
    ):
        assert (await talk.say(f"MAIL FROM:<{mail_from}>")).startswith(reply)
        await talk.say("RSET")
    talk.close()


async def test_who_made_too_many_errors_is_met_at_the_entrance(house: House) -> None:
    door = await open_door(house, errors_per_client=3)
    talk = await greeted(door)
    await talk.say("MAIL FROM:<ann@example.org>")
    for _ in range(3):
        assert (await talk.say("RCPT TO:<nobody@localhost>")).startswith("550")
    again = await client_of(door)
    assert (await again.reply()).startswith("421 4.7.0 too many errors from your address")
    assert await again.reply() == ""
    other = await client_of(door, "192.0.2.2")
    assert (await other.reply()).startswith("220")
    for one in (talk, again, other):
        one.close()


@pytest.mark.parametrize("who", ["this host", "a trusted host", "the socket"])
async def test_who_speaks_for_others_has_no_share(who: str, house: House, tmp_path: Path) -> None:
    shares = Shares(mails_per_client=1, mails_per_sender=1, recipients_per_client=1, errors_per_client=1)
    listen = f"unix:{tmp_path}/s" if who == "the socket" else "127.0.0.1:0"
    hosts = PROXY if who == "a trusted host" else None
    door = await house.open_door(SmtpDoor, listen=listen, trusted_hosts=hosts, shares=shares)
    talk = await Talk.with_door(door)
    await talk.reply()
    await talk.say("EHLO x")
    for _ in range(3):
        for line in ("MAIL FROM:<ann@example.org>", "RCPT TO:<posts@localhost>", "RSET"):
            assert (await talk.say(line)).startswith("250")
        assert (await talk.say("NONSENSE")).startswith("500")
    talk.close()
    assert house.log.counters["throttled"] == 0


async def test_a_trusted_host_may_have_any_number_of_connections(house: House) -> None:
    door = await house.open_door(trusted_hosts=PROXY, connections_per_client=1)
    talks = [await Talk.with_door(door) for _ in range(3)]
    assert [(await talk.reply())[:3] for talk in talks] == ["220"] * 3
    for talk in talks:
        talk.close()


async def test_in_a_crowd_one_client_has_a_fifth_of_his_connections(house: House) -> None:
    listen = "127.0.0.1:0?proxy=yes"
    limits = {"connections": 10, "connections_per_client": 10, "crowded_idle_seconds": 60.0}
    door = await house.open_door(SmtpDoor, listen=listen, trusted_hosts=PROXY, **limits)
    talks = [await greeted(door) for _ in range(8)]
    refused = await client_of(door)
    assert (await refused.reply()).startswith("421 4.7.0 too many connections from your address")
    talks += [await greeted(door, "192.0.2.2") for _ in range(2)]
    assert (await talks[0].say("MAIL FROM:<ann@example.org>")).startswith("250"), "who is in may stay"
    for talk in (*talks, refused):
        talk.close()
