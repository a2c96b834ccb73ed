"""The relays: kept connections, TLS, AUTH, the DATA step, pauses, choice, refusals before the wire."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from conftest import PATIENT, FakeClock, server_tls
from scripted_relay import CLOSE, ScriptedRelay, refusing_port

from gateway.errors import ClaimLost, FaultOwner, StorageFault
from gateway.maillog import MailLog
from gateway.outbound.relay import (
    Deferred,
    OutcomeUnknown,
    Refused,
    RelayLimits,
    RelayPool,
    RelayResult,
    RelayUnusable,
)

OCTETS = b"From: a@example.com\r\nSubject: dots\r\n\r\n.first\r\n..second\r\nlast\r\n"
Build = Callable[..., RelayPool]


async def never_mind() -> None:
    """A journal that has nothing to write."""


async def send(
    pool: RelayPool, recipient: str = "ann@example.org", octets: bytes = OCTETS, **values: str
) -> RelayResult:
    return await pool.send(
        values.get("mail_from", "a@example.com"),
        recipient,
        octets,
        before_dot=never_mind,
        stream=values.get("stream", "normal"),
    )


async def test_a_relay_gets_exactly_the_octets_stuffed_and_unstuffed(pool_of: Build) -> None:
    for octets in (OCTETS, b".\r\n.\r\n", b"no newline at the end", b"a: b\r\n\r\n" + b"x" * 70 + b"\r\n.\r\n" * 5):
        async with ScriptedRelay() as relay:
            result = await send(pool_of(f"smtp://127.0.0.1:{relay.port}"), octets=octets)
        assert result.relay == f"127.0.0.1:{relay.port}"
        assert str(result.reply) == "250 2.0.0 taken"
        [taken] = relay.taken
        assert taken.octets == (octets if octets.endswith(b"\r\n") else octets + b"\r\n")
        assert (taken.mail_from, taken.recipient) == ("a@example.com", "ann@example.org")


async def test_a_mail_of_many_blocks_arrives_whole(pool_of: Build) -> None:
    octets = b"a: b\r\n\r\n" + b"".join(b"%067d\r\n" % i for i in range(40_000))
    async with ScriptedRelay() as relay:
        await send(pool_of(f"smtp://127.0.0.1:{relay.port}", limits=RelayLimits()), octets=octets)
    assert hashlib.sha256(relay.taken[0].octets).digest() == hashlib.sha256(octets).digest()


async def test_kept_connections_are_used_again(pool_of: Build) -> None:
    async with ScriptedRelay() as relay:
        pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
        for number in range(20):
            await send(pool, f"r{number}@example.org")
        assert relay.connections == 1
        await asyncio.gather(*(send(pool, f"s{number}@example.org") for number in range(30)))
        assert relay.connections <= PATIENT.connections
        await pool.close()
        assert len(relay.taken) == 50
        assert relay.seen["quit"] == relay.connections


async def test_a_connection_ends_after_its_share_of_mails(pool_of: Build) -> None:
    async with ScriptedRelay() as relay:
        pool = pool_of(f"smtp://127.0.0.1:{relay.port}", limits=RelayLimits(mails_per_connection=3))
        for _ in range(7):
            await send(pool)
        assert [taken.connection for taken in relay.taken] == [1, 1, 1, 2, 2, 2, 3]


async def test_a_refused_recipient_is_reset_before_the_next_mail_on_the_same_connection(pool_of: Build) -> None:
    async with ScriptedRelay({"rcpt": ["550 5.1.1 no such user"]}) as relay:
        pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
        with pytest.raises(Refused):
            await send(pool)
        await send(pool, "bob@example.org")
        assert relay.connections == 1
        assert relay.seen["rset"] == 1


async def test_a_stale_kept_connection_is_replaced_and_the_relay_not_blamed(pool_of: Build) -> None:
    for stale in (CLOSE, "421 4.4.2 idle too long"):
        async with ScriptedRelay({"mail": [None, stale]}) as relay:
            pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
            await send(pool)
            await send(pool)
            assert relay.connections == 2
            assert len(relay.taken) == 2
            assert pool.paused == []


async def test_the_dot_is_never_sent_when_the_journal_refuses(pool_of: Build) -> None:
    async def refuse() -> None:
        raise ClaimLost("somebody else has it")

    async with ScriptedRelay() as relay:
        pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
        with pytest.raises(ClaimLost):
            await pool.send("a@example.com", "ann@example.org", OCTETS, before_dot=refuse, stream="normal")
        await send(pool, "bob@example.org")  # a second mail: the first connection was dropped, not continued
        assert relay.seen["full body"] == 1
        assert [taken.recipient for taken in relay.taken] == ["bob@example.org"]
        assert relay.connections == 2
        assert pool.paused == []


async def test_the_journal_is_written_after_the_body_and_before_the_dot(pool_of: Build) -> None:
    facts: list[object] = []
    async with ScriptedRelay() as relay:

        async def note() -> None:
            facts.append((relay.seen["data"], relay.seen["full body"]))

        pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
        await pool.send("a@example.com", "ann@example.org", OCTETS, before_dot=note, stream="normal")
        assert facts == [(1, 0)]
        assert relay.seen["full body"] == 1


@pytest.mark.parametrize(
    ("answer", "raised"),
    [("552 5.3.4 too big", Refused), ("451 4.3.0 later", Deferred), ("250 2.0.0 taken", RelayUnusable)],
)
async def test_an_answer_before_the_dot_is_never_taken_for_the_dots(pool_of: Build, answer: str, raised: type) -> None:
    async with ScriptedRelay({"body": answer}) as relay:

        async def wait_for_the_answer() -> None:
            await relay.acted.wait()
            for _ in range(5):
                await asyncio.sleep(0)  # the loop reads the socket once a turn

        pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
        with pytest.raises(raised):
            await pool.send("a@example.com", "ann@example.org", OCTETS, before_dot=wait_for_the_answer, stream="normal")
        assert relay.seen["full body"] == 0


async def test_an_answer_too_many_is_not_taken_for_the_next(pool_of: Build) -> None:
    async with ScriptedRelay({"rcpt": "250 2.1.5 ok\r\n250 2.0.0 taken"}) as relay:
        pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
        with pytest.raises(RelayUnusable, match="more than it was asked"):
            await send(pool)
        assert relay.taken == []


async def test_null_sender_size_and_international_addresses(pool_of: Build) -> None:
    async with ScriptedRelay(extensions=("SIZE 100000", "SMTPUTF8", "8BITMIME")) as relay:
        pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
        await send(pool, mail_from="")
        await send(pool, "jürgen@bücher.example", mail_from="a@example.com")
        assert f"MAIL FROM:<> SIZE={len(OCTETS)}" in relay.lines
        assert f"MAIL FROM:<a@example.com> SIZE={len(OCTETS)} SMTPUTF8" in relay.lines
        assert "RCPT TO:<jürgen@xn--bcher-kva.example>" in relay.lines


async def test_what_the_relay_cannot_take_is_refused_before_mail(pool_of: Build) -> None:
    async with ScriptedRelay(extensions=("SIZE 50",)) as relay:
        pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
        with pytest.raises(Refused, match=r"5\.3\.4"):
            await send(pool)
        with pytest.raises(Refused, match=r"5\.6\.7"):
            await send(pool, "jürgen@example.org", b"a: b\r\n")
        with pytest.raises(Refused, match=r"5\.6\.3"):
            await send(pool, octets="a: b\r\n\r\nä\r\n".encode())
        with pytest.raises(Refused, match=r"5\.6\.7"):
            await send(pool, octets="To: jürgen@example.org\r\n\r\n".encode())
        assert relay.seen["mail"] == 0
        assert relay.connections == 1


@pytest.mark.parametrize(
    "recipient", ["", "b@x.example,c@x.example", "a@b@c", "<>", "ann@example.org>\r\nRCPT TO:<b@x.example", "ann"]
)
async def test_a_crooked_recipient_never_reaches_the_wire(pool_of: Build, recipient: str) -> None:
    async with ScriptedRelay() as relay:
        with pytest.raises(Refused) as refused:
            await send(pool_of(f"smtp://127.0.0.1:{relay.port}"), recipient)
        assert refused.value.owner is FaultOwner.RECIPIENT
        assert relay.connections == 0


@pytest.mark.parametrize("octets", [b"a\nb\r\n", b"a\rb\r\n", b"a\r\n\x00\r\n", b"\n\r", b"a\r\n.\n"])
async def test_bare_line_ends_and_nul_never_reach_the_wire(pool_of: Build, octets: bytes) -> None:
    async with ScriptedRelay() as relay:
        with pytest.raises(Refused) as refused:
            await send(pool_of(f"smtp://127.0.0.1:{relay.port}"), octets=octets)
        assert refused.value.owner is FaultOwner.OURS
        assert relay.connections == 0


class TestTls:
    """Certificates and passwords."""

    async def test_starttls_verified_and_authenticated(self, pool_of: Build, trusted: trustme.CA) -> None:
        async with ScriptedRelay(tls=server_tls(trusted), user="me", password="p@ss") as relay:
            for scheme in ("smtp", "smtp+starttls"):
                await send(pool_of(f"{scheme}://me:p%40ss@127.0.0.1:{relay.port}"))
            assert len(relay.taken) == 2
            assert relay.seen["starttls"] == relay.seen["auth"] == 2

    async def test_implicit_tls_verified(self, pool_of: Build, trusted: trustme.CA) -> None:
        async with ScriptedRelay(tls=server_tls(trusted), implicit_tls=True, user="me", password="pw") as relay:
            await send(pool_of(f"smtps://me:pw@127.0.0.1:{relay.port}"))
            assert relay.seen["auth"] == 1

    @pytest.mark.parametrize("scheme", ["smtp", "smtp+starttls", "smtps"])
    @pytest.mark.parametrize("wrong", ["unknown authority", "other name"])
    async def test_a_wrong_certificate_is_refused_unless_told(
        self, pool_of: Build, trusted: trustme.CA, scheme: str, wrong: str
    ) -> None:
        issuer, name = (trustme.CA(), "127.0.0.1") if wrong == "unknown authority" else (trusted, "other.example")
        tls = server_tls(issuer, name)
        async with ScriptedRelay(tls=tls, implicit_tls=scheme == "smtps") as relay:
            with pytest.raises(RelayUnusable, match="certificate"):
                await send(pool_of(f"{scheme}://127.0.0.1:{relay.port}"))
            assert relay.seen["mail"] == 0
            await send(pool_of(f"{scheme}://127.0.0.1:{relay.port}?verify=no"))
            assert len(relay.taken) == 1

    async def test_required_starttls_not_offered_is_a_fault_of_the_relay(self, pool_of: Build) -> None:
        async with ScriptedRelay() as relay:
            with pytest.raises(RelayUnusable, match="STARTTLS is required"):
                await send(pool_of(f"smtp+starttls://127.0.0.1:{relay.port}"))

    async def test_a_password_never_goes_out_without_tls(self, pool_of: Build) -> None:
        async with ScriptedRelay(user="me", password="pw") as relay:
            with pytest.raises(RelayUnusable, match="only sent over TLS"):
                await send(pool_of(f"smtp://me:pw@127.0.0.1:{relay.port}"))
            assert relay.seen["auth"] == 0

    async def test_a_wrong_password_pauses_the_relay(self, pool_of: Build, trusted: trustme.CA) -> None:
        async with ScriptedRelay(tls=server_tls(trusted), user="me", password="pw") as relay:
            pool = pool_of(f"smtp://me:other@127.0.0.1:{relay.port}")
            with pytest.raises(RelayUnusable, match="535"):
                await send(pool)
            [paused] = pool.paused
            assert "other" not in paused.why


class TestPauses:
    """A relay that fails rests, longer each time, and one send at a time tries whether it is back."""

    async def test_pauses_grow_to_five_minutes_and_end_with_a_success(
        self, pool_of: Build, clock: FakeClock, log: MailLog
    ) -> None:
        async with ScriptedRelay({"banner": "421 4.3.2 not now"}) as relay:
            pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
            lengths = []
            assert [(item.is_failing, item.is_proven) for item in pool.health] == [(False, False)], "not tried yet"
            for _ in range(8):
                with pytest.raises(RelayUnusable):
                    await send(pool)
                [paused] = pool.paused
                lengths.append((paused.until - clock()).total_seconds())
                with pytest.raises(RelayUnusable):
                    await send(pool)  # paused: not even a connection
                clock.now = paused.until
            assert lengths == [5, 10, 20, 40, 80, 160, 300, 300]
            assert relay.connections == 8
            [health] = pool.health
            assert health.is_failing, "between two pauses, too: nothing has gone through since"
            assert "421" in health.why
            relay.script.clear()
            await send(pool)
            assert pool.paused == []
            assert [(item.is_failing, item.is_proven) for item in pool.health] == [(False, True)]
            assert log.counters["relay-paused"] == 8
            assert log.counters["relay-resumed"] == 1

    async def test_many_failures_at_once_are_one_pause(self, pool_of: Build, clock: FakeClock) -> None:
        pool = pool_of(f"smtp://127.0.0.1:{refusing_port()}")
        results = await asyncio.gather(*(send(pool) for _ in range(10)), return_exceptions=True)
        assert all(isinstance(result, RelayUnusable) for result in results)
        [paused] = pool.paused
        assert paused.failures == 1

    async def test_the_probe_goes_alone(self, pool_of: Build, clock: FakeClock) -> None:
        async with ScriptedRelay({"banner": ["421 4.3.2 not now", "421 4.3.2 not now"]}) as relay:
            pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
            for expected_connections in (1, 2):
                results = await asyncio.gather(
                    *(send(pool) for _ in range(1 if relay.connections == 0 else 10)), return_exceptions=True
                )
                assert all(isinstance(result, RelayUnusable) for result in results)
                assert relay.connections == expected_connections
                clock.advance(60)
            await send(pool)

    async def test_the_gate_opens_when_the_pause_is_over(self, pool_of: Build, clock: FakeClock) -> None:
        pool = pool_of(f"smtp://127.0.0.1:{refusing_port()}")
        await asyncio.wait_for(pool.wait_usable(), 1)
        with pytest.raises(RelayUnusable):
            await send(pool)
        assert pool.usable_at("normal", "a@example.com") > clock()
        waiting = asyncio.create_task(pool.wait_usable())
        done, _ = await asyncio.wait({waiting}, timeout=0.05)
        assert not done
        clock.advance(6)
        await asyncio.wait_for(waiting, 2)

    async def test_another_relay_takes_over_at_once(self, pool_of: Build) -> None:
        async with ScriptedRelay() as relay:
            pool = pool_of(f"smtp://127.0.0.1:{refusing_port()}", f"smtp://127.0.0.1:{relay.port}")
            for _ in range(4):
                assert (await send(pool)).relay == f"127.0.0.1:{relay.port}"
            assert len(pool.paused) == 1

    async def test_after_the_dot_was_recorded_no_other_relay_is_tried(self, pool_of: Build) -> None:
        async with (
            ScriptedRelay({"dot": "421 4.3.2 going down"}) as first,
            ScriptedRelay({"dot": "421 4.3.2 too"}) as second,
        ):
            pool = pool_of(*(f"smtp://127.0.0.1:{relay.port}" for relay in (first, second)))
            with pytest.raises(RelayUnusable):
                await send(pool)
            assert first.seen["dot"] + second.seen["dot"] == 1

    async def test_a_mail_that_twice_breaks_its_connection_is_deferred(self, pool_of: Build, clock: FakeClock) -> None:
        async with ScriptedRelay({"data": [CLOSE, CLOSE]}) as relay:
            pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
            with pytest.raises(RelayUnusable):
                await send(pool)
            clock.advance(10)
            with pytest.raises(Deferred):
                await send(pool)
            assert pool.paused == []
            await send(pool, "bob@example.org")

    async def test_a_lost_reply_pauses_too(self, pool_of: Build) -> None:
        async with ScriptedRelay({"dot": CLOSE}) as relay:
            pool = pool_of(f"smtp://127.0.0.1:{relay.port}")
            with pytest.raises(OutcomeUnknown):
                await send(pool)
            assert len(pool.paused) == 1


async def test_weights_share_the_mail(pool_of: Build, tmp_path: Path, clock: FakeClock, log: MailLog) -> None:
    from gateway.outbound.relay import parse_relay_url

    async with ScriptedRelay() as light, ScriptedRelay() as heavy, ScriptedRelay() as bulk:
        pool = RelayPool(
            [
                parse_relay_url(f"smtp://127.0.0.1:{light.port}", streams=["normal"]),
                parse_relay_url(f"smtp://127.0.0.1:{heavy.port}", weight=3, streams=["normal"]),
                parse_relay_url(f"smtp://127.0.0.1:{bulk.port}", streams=["bulk"], sender_domains=["Example.COM"]),
            ],
            hostname="gateway.test",
            captured_dir=tmp_path,
            log=log,
            clock=clock,
        )
        for _ in range(40):
            await send(pool)
        await send(pool, stream="bulk")
        assert (len(light.taken), len(heavy.taken), len(bulk.taken)) == (10, 30, 1)
        with pytest.raises(RelayUnusable, match="no relay serves stream bulk from b@other"):
            await send(pool, stream="bulk", mail_from="b@other.example")
        await pool.close()


class TestCapture:
    async def test_capture_keeps_the_octets_and_the_envelope(self, pool_of: Build, tmp_path: Path) -> None:
        result = await send(pool_of("capture:"))
        assert result.relay == "capture"
        [octets] = (tmp_path / "captured").glob("*.eml")
        assert octets.read_bytes() == OCTETS
        envelope = json.loads(octets.with_suffix(".json").read_text())
        assert (envelope["mail_from"], envelope["recipient"]) == ("a@example.com", "ann@example.org")
        assert envelope["sha256"] == hashlib.sha256(OCTETS).hexdigest()
        assert len(list((tmp_path / "captured").iterdir())) == 2

    async def test_capture_leaves_nothing_when_the_journal_refuses(self, pool_of: Build, tmp_path: Path) -> None:
        async def refuse() -> None:
            raise ClaimLost("gone")

        with pytest.raises(ClaimLost):
            await pool_of("capture:").send("", "ann@example.org", OCTETS, before_dot=refuse, stream="bulk")
        assert list((tmp_path / "captured").iterdir()) == []

    async def test_a_folder_that_cannot_be_written_is_our_fault(self, pool_of: Build, tmp_path: Path) -> None:
        (tmp_path / "captured").write_text("a file in the way")
        with pytest.raises(StorageFault):
            await send(pool_of("capture:"))
