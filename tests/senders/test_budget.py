"""What hostile senders may cost: a bounded number of questions, bounded time, and nobody else's turn."""

from __future__ import annotations

import asyncio
import time

import pytest
from fake_dns import FakeDns
from sender_desk import STRANGER_HOST, Desk, mail, rsa_key, signed

from gateway.inbound.authenticate import Result
from gateway.inbound.authenticate.resolver import Budget, DnsFault, Resolver
from gateway.inbound.authenticate.spf import check_helo, check_mail_from

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLANKS = "\r\n " * 1_900


@pytest.mark.parametrize(
    "line",
    [
        f"DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=s1; h=from; bh=AAAA; b={BLANKS}!",
        "DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=s1; bh=AAAA; b=AAAA; h=" + "from:" * 9_000 + "from",
        "DKIM-Signature: " + ";" * 50_000,
        "DKIM-Signature: v=1; a=rsa-sha256; d=" + "a." * 20_000 + "org; s=s1; h=from; bh=AAAA; b=AAAA",
        "ARC-Seal: i=1; " + "a=b; " * 10_000,
        "From: " + "<" * 20_000,
        "From: " + '"' * 20_000,
    ],
    ids=["blanks", "fields", "semicolons", "labels", "tags", "brackets", "quotes"],
)
async def test_a_bomb_in_the_header_costs_no_more_than_its_reading(desk: Desk, line: str) -> None:
    good = signed(mail())
    bomb = line.encode() + b"\r\n" + good
    started = time.process_time()
    found = await desk.judge(bomb)
    assert time.process_time() - started < 2
    if not line.startswith("From"):
        assert (found.verdict, found.aligned_domain) == (Result.PASS, "example.org")


async def test_a_body_of_blanks_ends_at_the_cages_limit_and_is_no_proof(desk: Desk) -> None:
    octets = mail(body="x" + " " * 3_000_000 + "x")
    signature = signed(mail(body="x")).split(b"From:")[0]
    found = await desk.judge(signature + octets)
    assert (found.dkim[0].result, found.verdict) == (Result.PERMERROR, Result.FAIL)
    assert "limit" in found.dkim[0].reason
    assert (await desk.judge(signed(mail()))).verdict is Result.PASS


async def test_others_go_on_while_a_name_server_is_silent(desk: Desk) -> None:
    desk.dns.put("silence.net", "SILENCE", "")
    slow = asyncio.create_task(desk.judge(mail("x@silence.net"), mail_from="x@silence.net"))
    quick = await desk.judge(signed(mail()))
    assert quick.verdict is Result.PASS
    assert not slow.done()
    assert (await slow).verdict is Result.TEMPERROR


async def test_garbage_for_an_answer_is_none(desk: Desk) -> None:
    desk.dns.put("garbage.net", "GARBAGE", "")
    found = await desk.judge(mail("x@garbage.net"), mail_from="x@garbage.net")
    assert (found.verdict, found.spf.result) == (Result.TEMPERROR, Result.TEMPERROR)


async def test_a_mail_asks_so_much_and_no_more() -> None:
    records = {f"m{number}.net": [("TXT", f"v=spf1 include:m{number + 1}.net -all")] for number in range(30)}
    wide = {"wide.net": [("TXT", "v=spf1 " + " ".join(f"mx:w{n}.net" for n in range(10)) + " -all")]}
    wide |= {f"w{n}.net": [("MX", (i, f"h{i}.w{n}.net")) for i in range(10)] for n in range(10)}
    wide |= {f"h{i}.w{n}.net": [("A", "192.0.2.1")] for n in range(10) for i in range(10)}
    async with FakeDns(records | wide) as dns:
        resolver = Resolver([dns.server])
        deep = await check_mail_from(STRANGER_HOST, "x@m0.net", "h", Budget(resolver).ask)
        assert deep.result is Result.PERMERROR
        assert dns.asked.total() <= 12
        found = await check_mail_from(STRANGER_HOST, "x@wide.net", "h", Budget(resolver, queries=20).ask)
        assert found.result is Result.TEMPERROR
        assert dns.asked.total() <= 12 + 20
        assert (await check_helo(STRANGER_HOST, "wide.net", Budget(resolver, queries=200).ask)).result is Result.FAIL


async def test_a_budgets_time_ends() -> None:
    async with FakeDns({"slow.net": [("SILENCE", "")]}) as dns:
        budget = Budget(Resolver([dns.server], query_seconds=30), seconds=0.2)
        with pytest.raises(DnsFault, match="no time is left"):
            await budget.ask("slow.net", "TXT")


async def test_answers_absences_and_faults_are_remembered_for_their_time() -> None:
    now = [1000.0]
    records = {"a.net": [("TXT", "one")], "broken.net": [("FAULT", "")], "huge.net": [("TXT", "x" * 5_000)]}
    async with FakeDns(records) as dns:
        resolver = Resolver([dns.server], clock=lambda: now[0])
        for _ in range(3):
            assert await resolver.ask("A.net.", "TXT") == (b"one",)
            assert await resolver.ask("none.net", "TXT") == ()
            assert await resolver.ask("a.net", "MX") == ()
            assert len((await resolver.ask("huge.net", "TXT"))[0]) == 5_000
            with pytest.raises(DnsFault):
                await resolver.ask("broken.net", "TXT")
        assert dns.asked == {
            ("a.net", "TXT"): 1,
            ("none.net", "TXT"): 1,
            ("a.net", "MX"): 1,
            ("huge.net", "TXT"): 3,
            ("broken.net", "TXT"): 1,
        }
        now[0] += 11
        dns.records["broken.net"] = [("TXT", "mended")]
        assert await resolver.ask("broken.net", "TXT") == (b"mended",)
        now[0] += 3600
        await resolver.ask("a.net", "TXT")
        assert dns.asked["a.net", "TXT"] == 2


async def test_two_that_ask_the_same_are_one_question() -> None:
    async with FakeDns({"a.net": [("TXT", "one")]}) as dns:
        resolver = Resolver([dns.server])
        answers = await asyncio.gather(*(resolver.ask("a.net", "TXT") for _ in range(20)))
        assert set(answers) == {(b"one",)}
        assert dns.asked.total() == 1


async def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.inbound.authenticate.resolver._MAX_CACHED", 10)
    async with FakeDns() as dns:
        resolver = Resolver([dns.server])
        for number in range(30):
            await resolver.ask(f"n{number}.net", "A")
        assert resolver.cached == 10


async def test_a_long_answer_comes_by_tcp() -> None:
    async with FakeDns({"long.net": [("TXT", f"v={number}" + "x" * 200) for number in range(20)]}) as dns:
        assert len(await Resolver([dns.server]).ask("long.net", "TXT")) == 20


@pytest.mark.parametrize("server", ["ns.example.org", "1.2.3.4:0", "1.2.3.4:x", "[::1", "1.2.3", ""])
async def test_what_is_no_server_is_said_at_once(server: str) -> None:
    with pytest.raises(ValueError):
        Resolver([server])


async def test_servers_are_named_with_and_without_a_port() -> None:
    Resolver(["192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]:5353", "[::1]"])


async def test_the_key_of_a_thousand_mails_is_asked_for_once(desk: Desk) -> None:
    desk.dns.put("once._domainkey.example.org", "TXT", f"p={rsa_key()[1]}")
    octets = signed(mail(), selector="once")
    for _ in range(5):
        assert (await desk.judge(octets)).verdict is Result.PASS
    assert desk.dns.asked["once._domainkey.example.org", "TXT"] == 1
