"""The ledger: every verb keeps what the contract says, and nobody writes without a claim that holds."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.contract.email_send import Attachment, SendEmail
from gateway.errors import ClaimLost, Problem
from gateway.mail.disposition import Disposition
from gateway.mail.ids import new_id
from gateway.reply import Reply
from gateway.runtime import utc_now
from gateway.store import schema
from gateway.store.blobs import FileBlobStore
from gateway.store.database import Database, open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.ledger import Acceptance, Claim, RecipientRecord

ANN = "ann@example.org"
OK = Reply(code=250, enhanced_status="2.0.0", text="queued as 42")
LATER = Reply(code=451, enhanced_status="4.3.0", text="try later")
NEVER = Reply(code=550, enhanced_status="5.1.1", text="no such user")


def request(**changes: object) -> SendEmail:
    return SendEmail(**({"to": (ANN,), "template": "welcome", "params": {"name": "s3cret"}} | changes))


async def accept(ledger: DatabaseLedger, email: SendEmail, **changes: str) -> Acceptance:
    facts = {"app": "shop", "ticket_id": email.id, "stream": "normal", "message_id": f"<{email.id}@mx.test>"}
    return await ledger.record_accepted(email, content_hash=email.content_hash(), **(facts | changes))


async def accepted(ledger: DatabaseLedger, **changes: object) -> str:
    email = request(**changes)
    assert await accept(ledger, email) is Acceptance.ACCEPTED
    return email.id


async def try_claim(ledger: DatabaseLedger, email_id: str, ticket_id: str = "t") -> Claim | RecipientRecord:
    return await ledger.claim(email_id, ANN, ticket_id=ticket_id, lifetime_seconds=60)


async def claim(ledger: DatabaseLedger, email_id: str, ticket_id: str = "t") -> Claim:
    claimed = await try_claim(ledger, email_id, ticket_id)
    assert isinstance(claimed, Claim)
    return claimed


async def sent(ledger: DatabaseLedger, email_id: str) -> Claim:
    claimed = await claim(ledger, email_id)
    await ledger.record_dot_sent(claimed)
    return claimed


async def delay(ledger: DatabaseLedger, claimed: Claim, at) -> None:
    await ledger.record_delayed(claimed, relay="r1", reply=LATER, reason="domain", next_attempt_at=at, ticket_id="t2")


async def row(ledger: DatabaseLedger, email_id: str) -> RecipientRecord:
    [found] = await ledger.recipients(email_id)
    return found


async def events(database: Database) -> list[dict[str, object]]:
    query = sa.select(schema.outbox.c.body).order_by(schema.outbox.c.id)
    return [
        json.loads(body) for body in await database.read(lambda connection: connection.execute(query).scalars().all())
    ]


async def event_types(database: Database) -> list[str]:
    return [str(event["type"]).removeprefix("email.") for event in await events(database)]


# accepting


async def test_an_accepted_email_is_kept_whole_with_a_row_for_each_recipient(ledger, clock) -> None:
    email = request(cc=("bob@example.org", f"Ann <{ANN}>"), attachments=(Attachment.of("a.txt", b"hi", "text/plain"),))
    assert await accept(ledger, email) is Acceptance.ACCEPTED
    record = await ledger.email(email.id)
    assert record.request == email
    assert (record.app, record.return_path, record.octets) == ("shop", "bounces@mx.test", None)
    assert record.expires_at == clock() + timedelta(days=7)
    assert [(found.recipient, found.disposition) for found in await ledger.recipients(email.id)] == [
        (ANN, Disposition.PENDING),
        ("bob@example.org", Disposition.PENDING),
    ]


async def test_the_same_request_again_is_known_and_other_content_a_conflict(ledger, database) -> None:
    email = request()
    await accept(ledger, email)
    assert await accept(ledger, email) is Acceptance.KNOWN
    assert await accept(ledger, request(id=email.id, params={"name": "other"})) is Acceptance.CONFLICT
    assert await accept(ledger, email, app="another") is Acceptance.CONFLICT
    assert await event_types(database) == ["accepted"]
    assert (await ledger.email(email.id)).request == email


async def test_a_large_request_and_large_octets_go_to_the_blob_store(ledger, blobs: FileBlobStore) -> None:
    email = request(attachments=(Attachment.of("big.bin", os.urandom(300 * 1024)),))
    await accept(ledger, email)
    octets = os.urandom(400 * 1024)
    assert await ledger.record_rendered(email.id, octets) == octets
    record = await ledger.email(email.id)
    assert record.request == email
    assert record.octets == octets


async def test_an_email_is_rendered_once(ledger, lists) -> None:
    email_id = await accepted(ledger)
    assert await ledger.record_rendered(email_id, b"first", subject="Welcome") == b"first"
    assert await ledger.record_rendered(email_id, b"second") == b"first"
    assert (await ledger.email(email_id)).octets == b"first"
    [line] = await lists.newest("emails")
    assert line["subject"] == "Welcome"


async def test_its_time_never_reaches_beyond_seven_days_from_when_it_may_go(ledger, clock) -> None:
    soon, late = clock() + timedelta(hours=1), clock() + timedelta(days=60)
    assert (await ledger.email(await accepted(ledger, expires_at=soon))).expires_at == soon
    assert (await ledger.email(await accepted(ledger, expires_at=late))).expires_at == clock() + timedelta(days=7)
    assert (await ledger.email(await accepted(ledger, send_at=late))).expires_at == late + timedelta(days=7)


async def test_an_email_with_send_at_waits_in_the_ledger_until_then(ledger, clock) -> None:
    email_id = await accepted(ledger, send_at=clock() + timedelta(hours=1))
    assert isinstance(await try_claim(ledger, email_id), RecipientRecord)
    clock.advance(3599)
    assert await ledger.overdue(older_than_seconds=120) == []
    clock.advance(1)
    [due] = await ledger.overdue(older_than_seconds=120)
    assert due.ticket_id == ""
    assert await ledger.reissue(due, ticket_id="first")
    assert await ledger.overdue(older_than_seconds=120) == []
    assert (await claim(ledger, email_id, "first")).attempt == 1


async def test_a_rejected_request_is_noted_once_and_its_params_stay_out_of_the_event(ledger, lists, database) -> None:
    problems = [Problem("params.name", "'s3cret' is not a number"), Problem("to", "is needed")]
    request_id = new_id()
    for _ in range(2):
        await ledger.record_rejected(request_id, app="shop", problems=problems)
    await ledger.record_rejected(request_id, app="shop", problems=problems[1:])
    told = await events(database)
    assert [(event["type"], event["subject"], int(event["sequence"])) for event in told] == [
        ("email.rejected", request_id, 1),
        ("email.rejected", request_id, 2),
    ]
    assert "s3cret" not in json.dumps(told)
    lines = await lists.newest("emails", disposition="rejected")
    assert {line["id"] for line in lines} == {request_id}
    story = await ledger.story(request_id)
    assert story["disposition"] == "rejected"
    assert "s3cret" in json.dumps(story["timeline"])


async def test_a_rejection_leaves_the_owner_of_the_id_untouched(ledger, database) -> None:
    email_id = await accepted(ledger)
    await ledger.record_rejected(email_id, app="another", problems=[Problem("id", "is taken")])
    await ledger.record_relayed(await sent(ledger, email_id), relay="r1", reply=OK)
    mine = [event for event in await events(database) if event["type"] != "email.rejected"]
    assert [int(event["sequence"]) for event in mine] == [1, 2]


# one attempt


async def test_an_attempt_is_claimed_journaled_and_relayed(ledger, database, clock) -> None:
    email_id = await accepted(ledger)
    claimed = await claim(ledger, email_id)
    assert (claimed.attempt, claimed.copy, claimed.until) == (1, 1, clock() + timedelta(seconds=60))
    assert (await row(ledger, email_id)).disposition is Disposition.SENDING
    await ledger.record_dot_sent(claimed)
    await ledger.record_relayed(claimed, relay="r1", reply=OK)
    found = await row(ledger, email_id)
    assert (found.disposition, found.relay, found.reply, found.attempts, found.copies) == (
        Disposition.RELAYED,
        "r1",
        OK,
        1,
        1,
    )
    assert found.claim_until is None
    assert found.next_attempt_at is None
    told = await events(database)
    assert [event["type"] for event in told] == ["email.accepted", "email.relayed"]
    assert [event["sequence"] for event in told] == [f"{1:020}", f"{2:020}"]
    assert told[1]["data"]["recipient"] == ANN
    assert told[1]["data"]["reply"] == str(OK)
    assert "s3cret" not in json.dumps(told)


async def test_a_claimed_row_is_nobody_elses_and_a_final_row_nobodys(ledger) -> None:
    email_id = await accepted(ledger)
    claimed = await sent(ledger, email_id)
    other = await try_claim(ledger, email_id, "other")
    assert isinstance(other, RecipientRecord)
    assert (other.disposition, other.ticket_id) == (Disposition.SENDING, "t")
    await ledger.record_relayed(claimed, relay="r1", reply=OK)
    assert (await try_claim(ledger, email_id)).disposition is Disposition.RELAYED


async def test_of_many_who_claim_at_once_one_gets_it(ledger, database_url: str, blobs, clock) -> None:
    email_id = await accepted(ledger)
    other_database = await open_database(database_url)
    other = DatabaseLedger(other_database, blobs, clock=clock, hostname="mx.test")
    claims = await asyncio.gather(*(try_claim(each, email_id, str(i)) for i in range(20) for each in (ledger, other)))
    assert sum(isinstance(claimed, Claim) for claimed in claims) == 1
    await other_database.close()


async def test_a_claim_that_ran_out_before_the_dot_is_free_again(ledger, clock) -> None:
    email_id = await accepted(ledger)
    first = await claim(ledger, email_id)
    clock.advance(60)
    second = await claim(ledger, email_id, "t9")
    assert (second.attempt, second.copy) == (1, 1)
    for verb in (
        ledger.record_dot_sent(first),
        ledger.renew(first, lifetime_seconds=60),
        ledger.record_relayed(first, relay="r1", reply=OK),
        ledger.record_failed(first, relay="r1", reply=NEVER, reason="x"),
        ledger.record_unknown(first, relay="r1", reason="x"),
        ledger.release_claim(first),
        delay(ledger, first, clock()),
    ):
        with pytest.raises(ClaimLost):
            await verb
    await ledger.record_dot_sent(second)
    assert (await row(ledger, email_id)).ticket_id == "t9"


async def test_a_renewed_claim_holds_longer(ledger, clock) -> None:
    email_id = await accepted(ledger)
    claimed = await claim(ledger, email_id)
    clock.advance(50)
    renewed = await ledger.renew(claimed, lifetime_seconds=60)
    assert renewed.until == clock() + timedelta(seconds=60)
    clock.advance(50)
    assert isinstance(await try_claim(ledger, email_id, "other"), RecipientRecord)
    await ledger.record_dot_sent(renewed)


async def test_a_delay_waits_its_time_and_is_counted(ledger, clock, database) -> None:
    email_id = await accepted(ledger)
    await delay(ledger, await claim(ledger, email_id), clock() + timedelta(seconds=60))
    found = await row(ledger, email_id)
    assert (found.disposition, found.attempts, found.ticket_id, found.reply) == (Disposition.DELAYED, 1, "t2", LATER)
    assert isinstance(await try_claim(ledger, email_id), RecipientRecord)
    assert await event_types(database) == ["accepted", "delayed"]
    clock.advance(60)
    assert (await claim(ledger, email_id, "t2")).attempt == 2


async def test_a_dot_the_relay_said_no_to_is_no_copy(ledger, clock) -> None:
    email_id = await accepted(ledger)
    await delay(ledger, await sent(ledger, email_id), clock())
    found = await row(ledger, email_id)
    assert (found.copies, found.dot_sent_at) == (0, None)
    await ledger.record_failed(await sent(ledger, email_id), relay="r1", reply=NEVER, reason="recipient")
    found = await row(ledger, email_id)
    assert (found.disposition, found.copies, found.attempts, found.reason) == (Disposition.FAILED, 0, 2, "recipient")


@pytest.mark.parametrize("has_dot", [False, True])
async def test_a_claim_given_back_leaves_the_row_as_it_was_and_due(ledger, clock, has_dot: bool) -> None:
    email_id = await accepted(ledger)
    await delay(ledger, await claim(ledger, email_id), clock())
    before = await row(ledger, email_id)
    claimed = await (sent if has_dot else claim)(ledger, email_id)
    clock.advance(5)
    await ledger.release_claim(claimed)
    assert await row(ledger, email_id) == replace(before, next_attempt_at=clock(), ticket_id="t")
    assert (await claim(ledger, email_id)).attempt == 2


# unknown


async def test_a_claim_that_ran_out_after_the_dot_is_unknown_and_resent_only_after_the_wait(
    ledger, clock, database
) -> None:
    email_id = await accepted(ledger)
    await sent(ledger, email_id)
    clock.advance(60)
    found = await try_claim(ledger, email_id)
    assert isinstance(found, RecipientRecord)
    assert (found.disposition, found.copies, found.attempts) == (Disposition.UNKNOWN, 1, 1)
    assert found.next_attempt_at == clock() + timedelta(seconds=900)
    clock.advance(899)
    assert isinstance(await try_claim(ledger, email_id), RecipientRecord)
    clock.advance(1)
    again = await sent(ledger, email_id)
    assert again.copy == 2
    await ledger.record_relayed(again, relay="r1", reply=OK)
    assert (await row(ledger, email_id)).copies == 2
    assert await event_types(database) == ["accepted", "unknown", "relayed"]


async def test_an_unknown_email_that_asked_to_be_held_waits_for_an_operator(ledger, clock) -> None:
    email_id = await accepted(ledger, on_unknown="hold")
    await ledger.record_unknown(await sent(ledger, email_id), relay="r1", reason="connection lost")
    clock.advance(30 * 86400)
    assert await ledger.sweep_expired() == 0
    found = await try_claim(ledger, email_id)
    assert (found.disposition, found.next_attempt_at, found.reason) == (Disposition.UNKNOWN, None, "connection lost")


async def test_an_operator_may_let_an_unknown_email_be_sent_again(ledger, clock) -> None:
    email_id = await accepted(ledger, on_unknown="hold")
    await ledger.record_unknown(await sent(ledger, email_id), relay="r1", reason="connection lost")
    assert await ledger.release(email_id) == 1
    [due] = await ledger.overdue(older_than_seconds=120)
    assert (due.disposition, due.ticket_id) == (Disposition.UNKNOWN, "")
    assert (await claim(ledger, email_id)).copy == 2


async def test_late_truth_heals_an_unknown_row_and_nothing_that_is_final_or_claimed_anew(
    ledger, clock, database
) -> None:
    email_id = await accepted(ledger)
    late = await sent(ledger, email_id)
    clock.advance(60)
    assert await ledger.sweep_expired() == 1
    with pytest.raises(ClaimLost):
        await ledger.record_relayed(late, relay="r1", reply=OK)
    assert await ledger.record_late_relayed(late, relay="r1", reply=OK)
    found = await row(ledger, email_id)
    assert (found.disposition, found.copies, found.next_attempt_at) == (Disposition.RELAYED, 1, None)
    assert not await ledger.record_late_relayed(late, relay="r1", reply=OK)
    assert await event_types(database) == ["accepted", "unknown", "relayed"]

    other = await accepted(ledger)
    late = await sent(ledger, other)
    clock.advance(60)
    await ledger.sweep_expired()
    clock.advance(900)
    newer = await claim(ledger, other)
    assert not await ledger.record_late_relayed(late, relay="r1", reply=OK)
    await ledger.record_dot_sent(newer)


# operators and the sweeper


async def test_a_held_email_waits_until_it_is_released(ledger, clock, database) -> None:
    email_id = await accepted(ledger)
    assert await ledger.record_held(email_id, reason="cannot be rendered") == 1
    assert await ledger.record_held(email_id, reason="again") == 0
    assert (await try_claim(ledger, email_id)).disposition is Disposition.HELD
    assert await ledger.overdue(older_than_seconds=0) == []
    assert await ledger.release(email_id) == 1
    assert len(await ledger.overdue(older_than_seconds=120)) == 1
    assert await event_types(database) == ["accepted", "held"]
    assert (await claim(ledger, email_id)).attempt == 1


async def test_what_is_under_way_is_neither_held_nor_cancelled(ledger, clock) -> None:
    email_id = await accepted(ledger)
    claimed = await claim(ledger, email_id)
    assert await ledger.record_held(email_id, reason="x") == 0
    assert await ledger.cancel(email_id) == 0
    clock.advance(60)
    assert await ledger.cancel(email_id) == 1
    with pytest.raises(ClaimLost):
        await ledger.record_dot_sent(claimed)


async def test_a_cancelled_email_is_final(ledger, database) -> None:
    email_id = await accepted(ledger)
    assert await ledger.cancel(email_id) == 1
    assert await ledger.cancel(email_id) == 0
    assert await ledger.release(email_id) == 0
    assert (await try_claim(ledger, email_id)).disposition is Disposition.CANCELLED
    assert await event_types(database) == ["accepted", "cancelled"]


async def test_a_dead_email_is_an_operators_turn(ledger, database) -> None:
    email_id = await accepted(ledger)
    assert await ledger.record_dead(email_id, reason="ticket crashed") == 1
    assert await event_types(database) == ["accepted", "dead"]
    assert await ledger.release(email_id) == 1
    assert isinstance(await try_claim(ledger, email_id), Claim)


async def test_what_is_past_its_time_expires_wherever_it_waits(ledger, clock, database) -> None:
    delayed, held, swept = [await accepted(ledger) for _ in range(3)]
    await delay(ledger, await claim(ledger, delayed), clock() + timedelta(days=30))
    await ledger.record_held(held, reason="a person looks at it")
    claimed_late = await accepted(ledger)
    sending = await accepted(ledger, expires_at=clock() + timedelta(days=6))
    clock.advance(6 * 86400 - 30)
    under_way = await claim(ledger, sending)
    clock.advance(86400 + 30)
    assert (await try_claim(ledger, claimed_late)).disposition is Disposition.EXPIRED
    under_way = await ledger.renew(under_way, lifetime_seconds=60)
    assert await ledger.sweep_expired() == 3
    for email_id in (delayed, held, swept):
        assert (await row(ledger, email_id)).disposition is Disposition.EXPIRED
    await ledger.record_dot_sent(under_way)
    await ledger.record_relayed(under_way, relay="r1", reply=OK)
    assert (await row(ledger, sending)).disposition is Disposition.RELAYED
    assert await ledger.sweep_expired() == 0
    assert (await event_types(database)).count("expired") == 4


async def test_overdue_rows_are_reissued_once_and_only_as_they_were_seen(ledger, clock) -> None:
    email_id = await accepted(ledger)
    clock.advance(121)
    [overdue] = await ledger.overdue(older_than_seconds=120)
    assert await ledger.reissue(overdue, ticket_id="new")
    assert not await ledger.reissue(overdue, ticket_id="other")
    assert (await row(ledger, email_id)).ticket_id == "new"
    assert await ledger.overdue(older_than_seconds=120) == [], "the new ticket has its own chance"


async def test_an_abandoned_claim_is_overdue_and_free_when_reissued(ledger, clock) -> None:
    email_id = await accepted(ledger)
    lost = await claim(ledger, email_id)
    clock.advance(60 + 121)
    [overdue] = await ledger.overdue(older_than_seconds=120)
    assert await ledger.reissue(overdue, ticket_id="new")
    assert (await row(ledger, email_id)).disposition is Disposition.PENDING
    with pytest.raises(ClaimLost):
        await ledger.record_dot_sent(lost)


# looking


async def test_lists_are_oldest_first_and_filtered(ledger, lists, clock) -> None:
    ids = []
    for number in range(3):
        ids.append(await accepted(ledger, to=(f"a{number}@example.org", "b@example.org")))
        clock.advance(1)
    rejected = new_id()
    await ledger.record_rejected(rejected, app="shop", problems=[Problem("to", "is needed")])
    lines = await lists.newest("emails")
    assert [(line["id"], line["recipient"]) for line in lines] == [
        (email_id, recipient) for n, email_id in enumerate(ids) for recipient in (f"a{n}@example.org", "b@example.org")
    ] + [(rejected, "")]
    wanted = "id recipient disposition template stream attempts copies relay reply enhanced_status message_id next_attempt_at"
    assert all(set(wanted.split()) <= set(line) for line in lines)
    json.dumps(lines)
    assert [line["id"] for line in await lists.newest("emails", recipient="b@example.org", limit=2)] == ids[1:]
    assert [line["id"] for line in await lists.newest("emails", limit=1)] == [rejected]
    assert len(await lists.newest("emails", id=ids[0][:30])) in {2, 4, 6}
    assert len(await lists.newest("emails", disposition="pending")) == 6


async def test_a_story_tells_every_step_in_order(ledger, clock) -> None:
    email_id = await accepted(ledger)
    await ledger.record_rendered(email_id, b"octets")
    await delay(ledger, await claim(ledger, email_id), clock())
    await ledger.record_relayed(await sent(ledger, email_id), relay="r1", reply=OK)
    story = await ledger.story(email_id)
    steps = ["accepted", "rendered", "claimed", "delayed", "claimed", "dot_sent", "relayed"]
    assert [line["step"] for line in story["timeline"]] == steps
    assert story["recipients"][0]["disposition"] == "relayed"
    json.dumps(story)
    assert "s3cret" not in json.dumps(story)
    assert await ledger.story(new_id()) is None
    assert await ledger.email(new_id()) is None


# killed


@pytest.mark.parametrize(
    ("place", "becomes"),
    [
        ("store.accepted.before", None),
        ("store.accepted.after", "claimed"),
        ("store.dot_sent.before", "claimed"),
        ("store.dot_sent.after", "unknown"),
        ("store.relayed.before", "unknown"),
        ("store.relayed.after", "relayed"),
    ],
)
async def test_killed_here_the_ledger_says_what_is_true(
    database_url: str, tmp_path: Path, blobs, run_child, place: str, becomes: str | None
) -> None:
    email_id = new_id()
    assert await run_child("send", database_url, tmp_path, email_id, failpoint=place) == -9
    database = await open_database(database_url)
    ledger = DatabaseLedger(database, blobs, clock=utc_now, hostname="mx.test")
    if becomes is None:
        assert await ledger.email(email_id) is None
    else:
        found = await try_claim(ledger, email_id)
        assert ("claimed" if isinstance(found, Claim) else found.disposition) == becomes
    await database.close()
