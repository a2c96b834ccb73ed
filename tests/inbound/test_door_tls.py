"""TLS at the door before real sockets: what does not survive it, handshakes that fail, certificates that change."""

from __future__ import annotations

import asyncio
import json
import ssl
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
import trustme
from conftest import MX, House, Talk, write_pair

from gateway.inbound.certificate import Certificates, Pair, judge
from gateway.inbound.door import Door
from gateway.inbound.smtp_door import SmtpDoor
from gateway.maillog import MailLog

SMUGGLED = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<posts@localhost>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
TWELVE_ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\n.\r",
    b"\r.\n",
    b"\r\r\n.\r\r\n",
    b"\n\n.\n\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
]


async def secured_talk(house: House, certificates: Certificates, context: ssl.SSLContext, **limits: Any) -> Talk:
    door = await house.open_door(certificates=certificates, **limits)
    return await after_starttls(door, context, house)


async def after_starttls(door: Door, context: ssl.SSLContext, house: House) -> Talk:
    talk = await ready_to_start(door, house)
    await talk.start_tls(context)
    return talk


async def ready_to_start(door: Door, house: House) -> Talk:
    """A client that has heard 220."""
    talk = await Talk.with_door(door)
    house.stack.callback(talk.close)
    await talk.reply()
    assert "STARTTLS" in await talk.say("EHLO client")
    assert (await talk.say("STARTTLS")).startswith("220 2.0.0")
    return talk


async def begin_data(talk: Talk) -> None:
    for line in ("EHLO client", "MAIL FROM:<ann@example.org>", "RCPT TO:<posts@localhost>"):
        assert (await talk.say(line)).startswith("250")
    assert (await talk.say("DATA")).startswith("354")


def serial(talk: Talk) -> Any:
    return talk.writer.get_extra_info("peercert")["serialNumber"]


@pytest.mark.parametrize("end", TWELVE_ENDS, ids=lambda end: repr(end)[2:-1])
async def test_no_end_of_others_smuggles_a_mail_under_tls(
    end: bytes, house: House, certificates: Certificates, client_context: ssl.SSLContext
) -> None:
    talk = await secured_talk(house, certificates, client_context)
    await begin_data(talk)
    await talk.send(b"Subject: outer\r\n\r\nfirst" + end + SMUGGLED + b"\r\n.\r\nQUIT\r\n")
    assert (await talk.reply()).startswith("554 5.6.0")
    assert (await talk.reply()).startswith("221"), "what came after the variant was read as commands"
    assert await house.tickets() == []


async def test_a_large_mail_is_kept_octet_by_octet_and_says_how_it_came(
    house: House, certificates: Certificates, client_context: ssl.SSLContext
) -> None:
    talk = await secured_talk(house, certificates, client_context)
    await begin_data(talk)
    octets = b"Subject: large\r\n\r\n" + b"0123456789abcdef" * 60 * 1024 + b"\r\n"
    assert (await talk.say(octets + b".")).startswith("250 2.0.0 Ok: kept")
    (ticket,) = await house.tickets()
    assert await house.blobs.get(str(ticket.headers["blob"])) == octets
    assert ticket.headers["tls"].startswith("TLSv1.3 TLS_")
    assert ticket.headers["auth"] == ""


async def test_plain_octets_in_a_packet_of_their_own_behind_starttls_end_the_session(
    house: House, certificates: Certificates
) -> None:
    door = await house.open_door(certificates=certificates)
    talk = await ready_to_start(door, house)
    await talk.send(SMUGGLED + b"\r\n.\r\n")
    assert not (await talk.reader.read()).startswith((b"2", b"3", b"5"))
    await nobody_is_left(door)
    assert await house.tickets() == []
    assert house.log.counters["handshake-failed"] == 1


async def test_octets_that_came_before_220_went_out_end_the_session(house: House, certificates: Certificates) -> None:
    talk = await Talk.with_door(await house.open_door(certificates=certificates))
    await talk.reply()
    await talk.say("EHLO client")
    await talk.send(b"STARTTLS\r\nRSET\r\n")
    assert (await talk.reply()).startswith("554 5.5.0")
    assert await talk.reply() == ""


async def nobody_is_left(door: Door) -> None:
    async with asyncio.timeout(10):
        while door._sessions:
            await next(iter(door._sessions)).gone.wait()
    assert not door._clients


@pytest.mark.parametrize("is_from_start", [False, True])
async def test_a_handshake_that_does_not_come_is_ended_in_time(
    is_from_start: bool, house: House, certificates: Certificates
) -> None:
    door = await house.open_door(certificates=certificates, handshake_seconds=0.1)
    talk = await silent_client(door, house, is_from_start)
    assert await talk.reader.read() == b""
    await nobody_is_left(door)


async def test_closing_does_not_wait_for_a_handshake(house: House, certificates: Certificates) -> None:
    door = await house.open_door(certificates=certificates, drain_seconds=5.0)
    talk = await ready_to_start(door, house)
    while not all(session._is_shaking_hands for session in door._sessions) or not door._sessions:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await door.close()
    assert await talk.reader.read() == b""
    assert not door._sessions


async def silent_client(door: Door, house: House, is_from_start: bool) -> Talk:
    assert isinstance(door, SmtpDoor)
    if not is_from_start:
        return await ready_to_start(door, house)
    await door.start_tls("127.0.0.1:0")
    return await another_silent_client(door, house)


@pytest.mark.parametrize("limit", ["connections_per_client", "connections"])
async def test_who_shakes_hands_takes_a_place_too(
    limit: str, house: House, certificates: Certificates, client_context: ssl.SSLContext
) -> None:
    stream = StringIO()
    house.log = MailLog(stream=stream, as_json=True)
    door = await house.open_door(certificates=certificates, crowded_idle_seconds=60.0, **{limit: 3})
    assert isinstance(door, SmtpDoor)
    first = await silent_client(door, house, is_from_start=True)
    waiting = [first, *[await another_silent_client(door, house) for _ in range(2)]]
    too_many = await another_silent_client(door, house)
    assert await too_many.reader.read() == b""
    (said,) = [json.loads(line) for line in stream.getvalue().splitlines() if '"refused"' in line]
    assert (said["verb"], said["reply"][:27]) == (
        "CONNECT",
        f"421 4.{'7.0' if limit.endswith('client') else '3.2'} too many connections"[:27],
    )
    for talk in waiting:
        talk.writer.transport.abort()
    talk = await talk_when_there_is_a_place(door, client_context, house)  # the places are free again
    await begin_data(talk)


async def another_silent_client(door: SmtpDoor, house: House) -> Talk:
    host, _, port = door.tls_address.rpartition(":")
    talk = Talk(*await asyncio.open_connection(host, int(port)))
    house.stack.callback(talk.close)
    return talk


async def talk_when_there_is_a_place(door: SmtpDoor, context: ssl.SSLContext, house: House) -> Talk:
    async with asyncio.timeout(10):
        while True:
            try:
                talk = await Talk.with_tls_door(door, context)
            except OSError:
                await asyncio.sleep(0)
                continue
            house.stack.callback(talk.close)
            if (await talk.reply()).startswith("220"):
                return talk


async def test_a_handshake_that_fails_is_told(house: House, certificates: Certificates) -> None:
    stream = StringIO()
    house.log = MailLog(stream=stream, as_json=True)
    door = await house.open_door(certificates=certificates)
    talk = await silent_client(door, house, is_from_start=True)
    await talk.send(b"EHLO client\r\n")  # a client that should speak TLS and does not
    await talk.reader.read()
    async with asyncio.timeout(10):
        while "handshake-failed" not in stream.getvalue():
            await asyncio.sleep(0)
    assert '"client": "127.0.0.1"' in stream.getvalue()


async def test_closing_cuts_off_who_shakes_hands_at_once(house: House, certificates: Certificates) -> None:
    door = await house.open_door(certificates=certificates, drain_seconds=5.0)
    talk = await silent_client(door, house, is_from_start=True)
    async with asyncio.timeout(2):
        await door.close()
        assert await talk.reader.read() == b""


async def test_a_client_that_trusts_nobody_leaves_and_is_forgotten(house: House, certificates: Certificates) -> None:
    door = await house.open_door(certificates=certificates)
    with pytest.raises(ssl.SSLError):
        await after_starttls(door, ssl.create_default_context(), house)
    await nobody_is_left(door)


async def test_a_client_gone_within_the_handshake_is_forgotten(house: House, certificates: Certificates) -> None:
    door = await house.open_door(certificates=certificates)
    talk = await ready_to_start(door, house)
    talk.writer.transport.abort()
    await nobody_is_left(door)


async def test_tls_1_2_is_spoken_with_ephemeral_keys(
    house: House, certificates: Certificates, client_context: ssl.SSLContext
) -> None:
    client_context.maximum_version = ssl.TLSVersion.TLSv1_2
    talk = await secured_talk(house, certificates, client_context)
    await begin_data(talk)
    assert (await talk.say("Subject: x\r\n\r\nx\r\n.")).startswith("250")
    (ticket,) = await house.tickets()
    assert ticket.headers["tls"].startswith("TLSv1.2 ECDHE-")


@pytest.mark.parametrize("cipher", ["AES128-SHA", "AES256-GCM-SHA384"])
async def test_keys_that_last_are_refused(
    cipher: str, house: House, certificates: Certificates, client_context: ssl.SSLContext, authority: trustme.CA
) -> None:
    write_pair(certificates.pair, authority, key_type=trustme.KeyType.RSA)  # with which they would be possible
    client_context.maximum_version = ssl.TLSVersion.TLSv1_2
    client_context.set_ciphers(cipher)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await secured_talk(house, certificates, client_context)


async def test_tls_1_1_is_refused(house: House, certificates: Certificates, client_context: ssl.SSLContext) -> None:
    client_context.set_ciphers("ALL:@SECLEVEL=0")
    for end in ("minimum_version", "maximum_version"):
        with pytest.warns(DeprecationWarning, match=r"TLSv1_1 is deprecated"):
            setattr(client_context, end, ssl.TLSVersion.TLSv1_1)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await secured_talk(house, certificates, client_context)


async def test_a_client_that_reads_nothing_is_cut_off(
    house: House, certificates: Certificates, client_context: ssl.SSLContext
) -> None:
    door = await house.open_door(certificates=certificates, idle_seconds=0.3, linger_seconds=0.1, junk_commands=10**9)
    talk = await after_starttls(door, client_context, house)
    talk.writer.transport.pause_reading()  # type: ignore[attr-defined]
    talk.writer.write(b"HELP\r\n" * 40_000)
    await nobody_is_left(door)


async def test_a_new_certificate_is_used_where_tls_begins_at_once(
    house: House, certificates: Certificates, client_context: ssl.SSLContext, authority: trustme.CA
) -> None:
    door = await house.open_door(certificates=certificates)
    assert isinstance(door, SmtpDoor)
    await door.start_tls("127.0.0.1:0")
    client_context.check_hostname = False
    found = []
    for name in (MX, None, MX, None):  # some clients name the server they want, others do not
        write_pair(certificates.pair, authority)
        host, _, port = door.tls_address.rpartition(":")
        talk = Talk(*await asyncio.open_connection(host, int(port), ssl=client_context, server_hostname=name or ""))
        house.stack.callback(talk.close)
        assert (await talk.reply()).startswith("220")
        found.append(serial(talk))
    assert len(set(found)) == 4


async def test_a_new_certificate_is_used_from_the_next_handshake_on(
    house: House, certificates: Certificates, client_context: ssl.SSLContext, authority: trustme.CA
) -> None:
    door = await house.open_door(certificates=certificates)
    first = await after_starttls(door, client_context, house)
    write_pair(certificates.pair, authority)
    second = await after_starttls(door, client_context, house)
    assert serial(first) != serial(second)
    await begin_data(first)
    assert (await first.say("Subject: x\r\n\r\nthe old session goes on\r\n.")).startswith("250")


@pytest.mark.parametrize("how", ["half", "cut", "gone"])
async def test_a_new_pair_that_cannot_be_used_leaves_the_old_one_and_is_told_once(
    how: str, house: House, client_context: ssl.SSLContext, authority: trustme.CA, certificates: Certificates
) -> None:
    faults: list[str] = []
    pair = certificates.pair
    used = Certificates(pair, on_fault=lambda fault: faults.append(str(fault)))
    door = await house.open_door(certificates=used)
    first = await after_starttls(door, client_context, house)
    old = pair.certificate.read_bytes()
    if how == "half":
        write_pair(pair, authority)
        pair.certificate.write_bytes(old)
    elif how == "cut":
        pair.certificate.write_bytes(old[:200])
    else:
        pair.key.unlink()
    for _ in range(2):
        assert serial(await after_starttls(door, client_context, house)) == serial(first)
    (fault,) = faults
    assert str(pair.key) in fault
    (trouble,) = judge(pair, hostname=MX, now=datetime.now(UTC))
    assert (trouble.level, trouble.text) == ("wrong", fault)
    write_pair(pair, authority)
    assert serial(await after_starttls(door, client_context, house)) != serial(first)
    assert len(faults) == 1


def test_a_good_pair_has_no_trouble(certificates: Certificates) -> None:
    assert judge(certificates.pair, hostname=MX, now=datetime.now(UTC)) == []


@pytest.mark.parametrize(
    ("days", "level", "word"), [(10, "warning", "expires"), (2, "wrong", "expires"), (-1, "wrong", "has expired")]
)
def test_the_end_of_a_certificate_is_seen_coming(
    days: int, level: str, word: str, certificates: Certificates, authority: trustme.CA
) -> None:
    now = datetime.now(UTC)
    write_pair(certificates.pair, authority, not_after=now + timedelta(days=days, hours=1))
    (trouble,) = judge(certificates.pair, hostname=MX, now=now)
    assert trouble.level == level
    assert word in trouble.text


@pytest.mark.parametrize(
    ("names", "hostname", "fits"),
    [
        (("*.example.org",), "mx.example.org", True),
        (("*.example.org",), "a.mx.example.org", False),
        (("*.example.org",), "example.org", False),
        (("other.example.org", "mx.example.org"), "MX.example.org", True),
        (("other.example.org",), "mx.example.org", False),
    ],
)
def test_the_name_of_a_certificate_is_compared(
    names: tuple[str, ...], hostname: str, fits: bool, certificates: Certificates, authority: trustme.CA
) -> None:
    write_pair(certificates.pair, authority, *names)
    assert (judge(certificates.pair, hostname=hostname, now=datetime.now(UTC)) == []) is fits


def test_a_key_that_everybody_may_read_is_told(certificates: Certificates) -> None:
    certificates.pair.key.chmod(0o644)
    (trouble,) = judge(certificates.pair, hostname=MX, now=datetime.now(UTC))
    assert "may read the key" in trouble.text


def test_a_key_with_a_passphrase_is_refused_without_a_question(certificates: Certificates) -> None:
    from cryptography.hazmat.primitives import serialization

    path = certificates.pair.key
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    with pytest.raises(ValueError, match="passphrase"):
        Certificates(certificates.pair, on_fault=lambda fault: None)


def test_certificate_and_key_may_share_a_file(certificates: Certificates) -> None:
    pair = certificates.pair
    pair.key.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    both = Pair(certificate=pair.key, key=pair.key)
    assert judge(both, hostname=MX, now=datetime.now(UTC)) == []
