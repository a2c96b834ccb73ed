"""The store is away: who waits is told all the same, and nobody twice when it is back."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import telling_desk
from telling_desk import OCTETS, Clock, Desk

from gateway.cage import Cage
from gateway.errors import FaultOwner, GatewayError, StoreUnavailable, TransientFailure
from gateway.mail.envelope import Envelope
from gateway.mail.loop_guard import Telling
from gateway.runtime import Stop
from gateway.store.outage import CLAIM_SECONDS

TELLING = Telling(message_id="<garden@example.org>", subject="Our garden", language="de")


async def look(desk: Desk) -> None:
    """What the service does once, whichever way the store is."""
    try:
        await desk.teller.tell_due()
    except StoreUnavailable as fault:
        await desk.teller._sit_out(fault)


async def wait_without_store(desk: Desk, clock: Clock, seconds: float = 901) -> Envelope:
    """A mail that no store has seen, noted as ingest would, and its first delay over."""
    arrived = desk.envelope()
    desk.take_store_away()
    await desk.outage.note_waiting(arrived, OCTETS, TELLING)
    clock.advance(seconds)
    return arrived


async def receive_late(desk: Desk, arrived: Envelope) -> None:
    """The mail's ticket comes again, and now the store has it; then its mailbox is out of order, too."""
    await desk.mails.record_received(arrived, OCTETS, len(OCTETS), "0" * 64, subject="Our garden", telling=TELLING)
    await desk.defer(arrived)


async def test_who_waits_is_told_without_the_store_in_his_language(desk: Desk, clock) -> None:
    await wait_without_store(desk, clock)
    await look(desk)
    [(mail_from, recipient, octets)] = desk.relay.taken
    assert (mail_from, recipient) == ("", "ann@example.org")
    assert b"Auto-Submitted: auto-replied" in octets
    assert b"Ihre Nachricht" in octets
    assert b"secret body" not in octets
    assert b"Subject: Our garden" in octets


async def test_nobody_is_told_before_the_delay_is_over_nor_who_must_not_be(desk: Desk, clock) -> None:
    await wait_without_store(desk, clock, seconds=800)
    await desk.outage.note_waiting(desk.envelope(mail_from="list@example.org"), OCTETS, Telling(untold="a list"))
    await look(desk)
    clock.advance(99)
    await look(desk)
    assert desk.relay.taken == []


async def test_the_store_takes_over_what_was_told_and_tells_none_of_it_again(desk: Desk, clock) -> None:
    arrived = await wait_without_store(desk, clock)
    await look(desk)
    desk.bring_store_back()
    await look(desk)
    [row] = await desk.told()
    assert (row["disposition"], row["relay"], row["recipient"]) == ("relayed", "keeping", "ann@example.org")
    await receive_late(desk, arrived)
    await look(desk)
    await look(desk)
    assert len(await desk.told()) == 1
    assert desk.issued == []
    assert (await desk.steps(arrived.mail_id)).count("notice_sent") == 1
    story = await desk.ledger.story(row["id"])
    assert story is not None
    assert [line["step"] for line in story["timeline"]] == ["accepted", "claimed", "dot_sent", "relayed"]
    assert await desk.octets(row["id"]) == desk.relay.taken[0][2]


async def test_what_the_store_planned_before_it_went_away_is_told_once(desk: Desk, clock) -> None:
    arrived = await desk.receive()
    await desk.defer(arrived)
    desk.take_store_away()
    await desk.outage.note_waiting(arrived, OCTETS, TELLING)
    clock.advance(901)
    await look(desk)
    desk.bring_store_back()
    await look(desk)
    await look(desk)
    assert len(desk.relay.taken) == len(await desk.told()) == 1
    assert desk.issued == []


async def test_who_heard_it_from_the_store_today_does_not_hear_it_from_the_outage_ledger(desk: Desk, clock) -> None:
    await desk.defer(await desk.receive())
    clock.advance(901)
    await look(desk)
    assert len(desk.issued) == 1
    await wait_without_store(desk, clock)
    await look(desk)
    assert desk.relay.taken == []


async def test_what_another_process_decided_just_before_our_look_and_committed_just_after_it_is_remembered(
    desk: Desk, clock: Clock
) -> None:
    await desk.defer(await desk.receive())
    clock.advance(895)
    await look(desk)
    clock.advance(10)
    await desk.teller._mirror()
    clock.advance(-3)  # its transaction began before our look
    [due] = await desk.notices.due()
    assert await desk.notices.choose(due.id) is not None
    clock.advance(3)
    await desk.teller._mirror()
    await wait_without_store(desk, clock)
    await look(desk)
    assert desk.relay.taken == []


async def test_twenty_mails_of_one_sender_are_one_notice(desk: Desk, clock) -> None:
    desk.take_store_away()
    for _ in range(20):
        await desk.outage.note_waiting(desk.envelope(), OCTETS, TELLING)
    clock.advance(901)
    await look(desk)
    await look(desk)
    assert len(desk.relay.taken) == 1
    clock.advance(4 * 3600)
    await look(desk)
    assert len(desk.relay.taken) == 2


async def test_who_was_never_told_is_forgotten_when_the_store_is_back(desk: Desk, clock) -> None:
    await wait_without_store(desk, clock, seconds=10)
    desk.bring_store_back()
    await look(desk)
    desk.take_store_away()
    clock.advance(1000)
    await look(desk)
    assert desk.relay.taken == []


async def test_a_relay_that_is_away_too_is_tried_again_with_the_same_octets(desk: Desk, clock) -> None:
    await wait_without_store(desk, clock)
    desk.relay.fault = TransientFailure("no relay", owner=FaultOwner.RELAY)
    await look(desk)
    await look(desk)
    desk.relay.fault = None
    clock.advance(61)
    await look(desk)
    assert len(desk.relay.taken) == 1


async def test_what_nobody_knows_is_not_sent_again_and_left_to_a_person(desk: Desk, clock) -> None:
    await wait_without_store(desk, clock)
    desk.relay.fault_after_dot = GatewayError("the reply to the final dot never came")
    await look(desk)
    clock.advance(3600)
    await look(desk)
    assert len(desk.relay.taken) == 1
    desk.bring_store_back()
    await look(desk)
    [row] = await desk.told()
    assert (row["disposition"], row["next_attempt_at"]) == ("unknown", None)


async def test_a_claim_that_ran_out_is_free_before_the_dot_and_unknown_after_it(desk: Desk, clock) -> None:
    await wait_without_store(desk, clock)
    [errand] = await desk.outage.claim_due()
    assert await desk.outage.claim_due() == []
    clock.advance(CLAIM_SECONDS + 1)
    [errand] = await desk.outage.claim_due()
    written = await desk.teller._writer.write(errand.notice, errand.header)
    await desk.outage.record_written(errand, written)
    await desk.outage.record_dot_sent(errand)
    clock.advance(CLAIM_SECONDS + 1)
    assert await desk.outage.claim_due() == []
    assert [done.disposition for done in await desk.outage.done()] == ["unknown"]


async def test_a_store_that_is_back_meanwhile_does_the_telling(desk: Desk, clock) -> None:
    await wait_without_store(desk, clock)
    desk.bring_store_back()
    await desk.teller._sit_out(StoreUnavailable("it was away"))
    assert desk.relay.taken == []


async def test_two_processes_that_sit_out_an_outage_tell_once(
    desk: Desk, tmp_path: Path, clock: Clock, cage: Cage
) -> None:
    async with AsyncExitStack() as stack:
        other = await telling_desk.open_desk(tmp_path, clock, cage, stack)
        await wait_without_store(desk, clock)
        for _ in range(2):
            await look(desk)
            await look(other)
        assert len(desk.relay.taken) + len(other.relay.taken) == 1
        desk.bring_store_back()
        for _ in range(2):
            await look(desk)
            await look(other)
        assert len(await desk.told()) == 1


async def test_the_service_ends_at_once_when_it_is_asked_to(desk: Desk) -> None:
    stop = Stop()
    stop.set()
    await desk.teller.run(stop)


async def test_what_nobody_foresaw_while_the_store_is_away_does_not_end_the_service(desk: Desk, clock: Clock) -> None:
    await wait_without_store(desk, clock)
    desk.relay.fault = OSError("nobody foresaw this")
    stop = Stop()
    telling = asyncio.create_task(desk.teller.run(stop))
    async with asyncio.timeout(60):
        while not desk.log.counters["notices-failed"]:
            assert not telling.done(), telling.exception()
            await asyncio.sleep(0.01)  # polling: only the log hears of it
    stop.set()
    await telling


@pytest.mark.parametrize("damage", ["moved away", "replaced by a folder"])
async def test_a_store_that_cannot_be_read_is_away_too(desk: Desk, clock, damage: str) -> None:
    arrived = desk.envelope()
    await desk.outage.note_waiting(arrived, OCTETS, TELLING)
    desk.take_store_away()
    if damage == "replaced by a folder":
        (desk.folder / "store.db").mkdir()
    clock.advance(901)
    await look(desk)
    assert len(desk.relay.taken) == 1


async def test_a_store_that_can_be_read_but_not_written_is_away_too(desk: Desk, clock) -> None:
    await desk.outage.note_waiting(desk.envelope(), OCTETS, TELLING)
    clock.advance(901)
    locker = sqlite3.connect(desk.folder / "store.db", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    await look(desk)
    locker.close()
    assert len(desk.relay.taken) == 1
    await look(desk)
    assert [row["disposition"] for row in await desk.told()] == ["relayed"]
