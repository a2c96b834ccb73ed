"""Order per key in the ledger: who is numbered how, whose turn it is, and what takes or keeps the turn; on each engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from gateway.contract.email_send import SendEmail
from gateway.mail.disposition import Disposition
from gateway.mail.ids import new_id
from gateway.reply import Reply
from gateway.store.database import open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.ledger import Acceptance, Claim
from gateway.store.lists import Lists

ANN = "ann@example.org"
OK = Reply(code=250, enhanced_status="2.0.0", text="ok")
NO = Reply(code=550, enhanced_status="5.1.1", text="no such user")
LATER = Reply(code=451, enhanced_status="4.3.0", text="try later")


async def accept(ledger: DatabaseLedger, key: str | None = "k", **fields: object) -> str:
    email = SendEmail(**({"id": new_id(), "to": (ANN,), "subject": "s", "text": "t", "serial_key": key} | fields))
    accepted = await ledger.record_accepted(
        email, app="", content_hash=email.content_hash(), ticket_id="t", stream="normal", message_id="<1@mx.test>"
    )
    assert accepted is Acceptance.ACCEPTED
    return email.id


async def line_of(ledger: DatabaseLedger, count: int, **fields: object) -> list[str]:
    """Emails of one key, the first of them started."""
    ids = [await accept(ledger, **fields) for _ in range(count)]
    assert [row.email_id for row in await ledger.start_turn("k")] == ids[:1]
    return ids


async def try_claim(ledger: DatabaseLedger, email_id: str, recipient: str = ANN) -> object:
    return await ledger.claim(email_id, recipient, ticket_id="t", lifetime_seconds=60)


async def claim(ledger: DatabaseLedger, email_id: str, recipient: str = ANN) -> Claim:
    found = await try_claim(ledger, email_id, recipient)
    assert isinstance(found, Claim), found
    return found


async def relay(ledger: DatabaseLedger, email_id: str, recipient: str = ANN) -> None:
    taken = await claim(ledger, email_id, recipient)
    await ledger.record_dot_sent(taken)
    await ledger.record_relayed(taken, relay="r", reply=OK)


async def started(ledger: DatabaseLedger) -> list[str]:
    return [row.email_id for row in await ledger.start_turn("k")]


async def steps(ledger: DatabaseLedger, email_id: str) -> list[str]:
    story = await ledger.story(email_id)
    assert story is not None
    return [line["step"] for line in story["timeline"]]


async def test_an_email_waits_until_the_one_before_it_is_final(ledger) -> None:
    first, second, third = await line_of(ledger, 3)
    [row] = await ledger.recipients(second)
    assert (row.disposition, row.next_attempt_at, row.ticket_id) == (Disposition.PENDING, None, "")
    assert await started(ledger) == []
    await relay(ledger, first)
    assert await ledger.stalled_keys() == ["k"]
    assert await started(ledger) == [second]
    assert await started(ledger) == []
    assert await ledger.stalled_keys() == []
    await relay(ledger, second)
    assert await started(ledger) == [third]
    await relay(ledger, third)
    assert await started(ledger) == []
    assert await steps(ledger, third) == ["accepted", "turn_came", "claimed", "dot_sent", "relayed"]
    assert await started(ledger) == []
    assert await ledger.stalled_keys() == []
    late = await accept(ledger)
    assert await started(ledger) == [late]


async def test_a_retry_keeps_the_turn_and_other_keys_go_on(ledger, clock) -> None:
    first, second = await line_of(ledger, 2)
    other = await accept(ledger, "other")
    taken = await claim(ledger, first)
    due = clock() + timedelta(minutes=5)
    await ledger.record_delayed(taken, relay="r", reply=LATER, reason="domain", next_attempt_at=due, ticket_id="t2")
    assert await started(ledger) == []
    assert [row.email_id for row in await ledger.start_turn("other")] == [other]
    await relay(ledger, other)
    clock.advance(301)
    await relay(ledger, first)
    assert await started(ledger) == [second]


async def test_the_turn_goes_on_when_every_recipient_is_final(ledger) -> None:
    bob = "bob@example.org"
    email = await accept(ledger, to=(ANN, bob))
    after = await accept(ledger)
    assert [row.recipient for row in await ledger.start_turn("k")] == [ANN, bob]
    await relay(ledger, email)
    assert await started(ledger) == []
    await ledger.record_failed(await claim(ledger, email, bob), relay="r", reply=NO, reason="recipient")
    assert await started(ledger) == [after]


@pytest.mark.parametrize("end", ["failed", "cancelled", "expired"])
async def test_what_ended_otherwise_lets_the_next_go(ledger, clock, end: str) -> None:
    first, second = await line_of(ledger, 2)
    if end == "failed":
        await ledger.record_failed(await claim(ledger, first), relay="r", reply=NO, reason="recipient")
    elif end == "cancelled":
        assert await ledger.cancel(first) == 1
    else:
        third = await accept(ledger, expires_at=clock() + timedelta(days=30))
        clock.advance(8 * 86400)
        assert await ledger.sweep_expired() == 3
        assert await started(ledger) == []
        assert [row.disposition for row in await ledger.recipients(third)] == [Disposition.EXPIRED]
        return
    assert await started(ledger) == [second]


async def test_who_leaves_the_line_early_is_passed_over(ledger) -> None:
    first, second, third = await line_of(ledger, 3)
    await ledger.cancel(second)
    assert await started(ledger) == []
    await relay(ledger, first)
    assert await started(ledger) == [third]


@pytest.mark.parametrize("trouble", ["held", "dead", "unknown"])
async def test_what_waits_for_a_person_keeps_the_turn_until_one_decides(ledger, clock, trouble: str) -> None:
    first, second = await line_of(ledger, 2, on_unknown="hold")
    if trouble == "held":
        await ledger.record_held(first, reason="held by ann")
    elif trouble == "dead":
        await ledger.record_dead(first, reason="gave up")
    else:
        taken = await claim(ledger, first)
        await ledger.record_dot_sent(taken)
        await ledger.record_unknown(taken, relay="r", reason="no word")
    clock.advance(3600)
    assert await started(ledger) == []
    assert await ledger.stalled_keys() == []
    assert await ledger.release(first, by="ann") == 1
    assert await started(ledger) == []
    await relay(ledger, first)
    assert await started(ledger) == [second]


async def test_a_release_lets_nobody_overtake(ledger) -> None:
    first, second = await line_of(ledger, 2)
    await ledger.record_held(second, reason="held by ann")
    await ledger.release(second, by="ann")
    found = await try_claim(ledger, second)
    assert not isinstance(found, Claim)
    assert await steps(ledger, second) == ["accepted", "held", "released", "sent_back"]
    await relay(ledger, first)
    assert await started(ledger) == [second]
    await relay(ledger, second)


async def test_send_at_is_waited_for_in_the_line(ledger, clock) -> None:
    first, second = await line_of(ledger, 2)
    timed = await accept(ledger, send_at=clock() + timedelta(hours=1))
    for email_id in (first, second):
        await relay(ledger, email_id)
        await ledger.start_turn("k")
    [row] = await ledger.recipients(timed)
    assert (row.next_attempt_at, row.reason) == (clock() + timedelta(hours=1), "waits for send_at")
    assert await ledger.stalled_keys() == []
    clock.advance(3601)
    await relay(ledger, timed)


async def test_story_and_list_say_position_key_and_what_is_waited_for(ledger, database) -> None:
    first, second, third = await line_of(ledger, 3)
    story = await ledger.story(third)
    assert story is not None
    assert (story["serial_key"], story["serial_position"]) == ("k", 3)
    assert story["recipients"][0]["reason"] == f"waits for {first}, position 3 of key k"
    assert story["timeline"][0]["data"] | {"serial_key": "k", "position": 3} == story["timeline"][0]["data"]
    await relay(ledger, first)
    lines = {line["id"]: line for line in await Lists(database).newest("emails")}
    assert lines[first]["reason"] == ""
    assert lines[second]["reason"] == f"waits for {first}, position 2 of key k"
    await ledger.start_turn("k")
    lines = {line["id"]: line for line in await Lists(database).newest("emails")}
    assert (lines[second]["reason"], lines[second]["serial_position"]) == ("", 2)
    assert lines[third]["reason"] == f"waits for {second}, position 3 of key k"


@pytest.fixture
async def ledgers(database_url, blobs, clock) -> AsyncIterator[list[DatabaseLedger]]:
    """The same ledger, opened by three hosts."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(3):
            database = await open_database(database_url)
            stack.push_async_callback(database.close)
            found.append(DatabaseLedger(database, blobs, clock=clock, hostname="mx.test"))
        yield found


async def test_numbers_have_no_gap_and_no_twin_whoever_gives_them(ledgers) -> None:
    twin = SendEmail(id=new_id(), to=(ANN,), subject="s", text="t", serial_key="a")

    async def again(ledger: DatabaseLedger) -> str:
        await ledger.record_accepted(
            twin, app="", content_hash=twin.content_hash(), ticket_id="t", stream="normal", message_id="<1@mx.test>"
        )
        return twin.id

    makers = [accept(ledger, key) for ledger in ledgers for key in "ab" for _ in range(8)]
    ids = await asyncio.gather(*makers, *(again(ledger) for ledger in ledgers))
    found: dict[str, list[int]] = {"a": [], "b": []}
    for email_id in set(ids):
        story = await ledgers[0].story(email_id)
        assert story is not None
        found[story["serial_key"]].append(story["serial_position"])
    assert sorted(found["a"]) == list(range(1, 26))
    assert sorted(found["b"]) == list(range(1, 25))


async def test_hosts_that_accept_and_end_at_once_lose_no_turn_and_give_none_twice(ledgers) -> None:
    """Each says what a worker says: after its acceptance and after its final record it asks whose turn it is."""
    relayed: list[str] = []

    async def go_on(ledger: DatabaseLedger) -> None:
        for row in await ledger.start_turn("k"):
            await relay(ledger, row.email_id)
            relayed.append(row.email_id)
            await go_on(ledgers[len(relayed) % 3])

    async def host(ledger: DatabaseLedger) -> None:
        for _ in range(10):
            await accept(ledger)
            await go_on(ledger)

    await asyncio.gather(*map(host, ledgers))
    assert len(set(relayed)) == len(relayed) == 30
    assert await ledgers[0].stalled_keys() == []
    positions = []
    for email_id in relayed:
        story = await ledgers[0].story(email_id)
        assert story is not None
        positions.append(story["serial_position"])
    assert positions == list(range(1, 31))
