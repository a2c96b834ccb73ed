"""Deliver: acceptance and its answers, the ladder, the journal, claims, faults of ours, draining."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from conftest import FakeClock
from outbound_desk import FIVE_DAYS, Desk, request, ticket_of
from scripted_relay import CLOSE, HANG, WAIT, ScriptedRelay, refusing_port

from gateway.contract.email_send import Attachment
from gateway.contract.versions import NewerVersion
from gateway.errors import FaultOwner, PermanentFailure, QueueUnavailable, StoreUnavailable
from gateway.mail.disposition import Disposition
from gateway.mail.ids import new_id
from gateway.maillog import MailLog
from gateway.outbound.deliver import Patience
from gateway.queue.broker import Done, Later
from gateway.queue.ticket import EMAIL_SEND_BULK, EMAIL_SEND_URGENT, Ticket
from gateway.reply import Reply
from gateway.store.blobs import FileBlobStore
from gateway.store.emails import DatabaseLedger
from gateway.store.ledger import Claim

Build = Callable[..., Desk]


class TestAcceptance:
    async def test_a_request_is_accepted_answered_captured_and_recorded(self, desk_of: Build, tmp_path: Path) -> None:
        desk = desk_of("capture:")
        email = request("Ann <ann@example.org>", "bob@example.org")
        assert await desk.handle(ticket_of(email, reply_to="reply.x")) == Done()
        assert desk.answers == [{"id": email.id, "status": "accepted", "errors": []}]
        rows = await desk.ledger.recipients(email.id)
        assert [(row.disposition, row.relay, row.attempts, row.copies) for row in rows] == [
            (Disposition.RELAYED, "capture", 1, 1)
        ] * 2
        assert len(list((tmp_path / "captured").glob("*.eml"))) == 2
        record = await desk.ledger.email(email.id)
        assert record is not None
        assert record.octets is not None
        assert record.message_id.endswith("@example.com>")
        assert record.message_id.encode() in record.octets
        assert {line["subject"] for line in await desk.lists.newest("emails")} == {"Grüße"}

    async def test_the_same_request_again_is_answered_and_sent_once(self, desk_of: Build, tmp_path: Path) -> None:
        desk = desk_of("capture:")
        email = request()
        for _ in range(3):
            assert await desk.handle(ticket_of(email, reply_to="reply.x")) == Done()
        assert [answer["status"] for answer in desk.answers] == ["accepted"] * 3
        assert len(list((tmp_path / "captured").glob("*.eml"))) == 1

    async def test_the_same_id_with_other_content_is_a_conflict(self, desk_of: Build, tmp_path: Path) -> None:
        desk = desk_of("capture:")
        email = request()
        await desk.handle(ticket_of(email))
        other = request(id=email.id, text="something else")
        assert await desk.handle(ticket_of(other, reply_to="reply.x")) == Done()
        assert desk.answers[0]["status"] == "conflict"
        assert len(list((tmp_path / "captured").glob("*.eml"))) == 1

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (b"not json", "json|JSON"),
            (b"[]", "object|dictionary"),
            (b"[" * 100_000, "."),
            (b'{"version": 1, "to": ["a@b@c"], "subject": "s", "text": "t"}', "to"),
            (b'{"to": ["ann@example.org"], "template": "welcome", "params": {}}', "params"),
            (b'{"to": ["ann@example.org"], "template": "no-such", "params": {}}', "template"),
            (b'{"to": ["ann@example.org"], "subject": "s", "text": "t", "serial_key": "k"}', "serial_key"),
            (b'{"to": ["ann@example.org"], "subject": "s", "text": "t", "stream": "bulk"}', "stream"),
            (b'{"to": ["ann@example.org"], "subject": "s", "text": "t", "id": "five"}', "id"),
        ],
    )
    async def test_a_broken_request_is_rejected_with_its_problems(self, desk_of: Build, body: bytes, says: str) -> None:
        import re

        desk = desk_of("capture:")
        ticket = Ticket(queue=EMAIL_SEND_URGENT, id=new_id(), body=body, reply_to="reply.x")
        assert await desk.handle(ticket) == Done()
        [answer] = desk.answers
        assert answer["status"] == "rejected"
        assert answer["id"] == ticket.id
        assert re.search(says, " ".join(answer["errors"]))
        assert await desk.ledger.email(ticket.id) is None
        [line] = await desk.lists.newest("emails")
        assert line["disposition"] == "rejected"

    async def test_a_later_version_is_left_to_who_can_read_it(self, desk_of: Build) -> None:
        desk = desk_of("capture:")
        body = json.dumps({"version": 2, "id": new_id(), "new": "words"}).encode()
        with pytest.raises(NewerVersion, match=r"version 2 of email.send"):
            await desk.handle(Ticket(queue=EMAIL_SEND_URGENT, id="x", body=body, reply_to="reply.x"))
        assert desk.answers == []

    async def test_a_request_without_an_id_goes_by_its_tickets(self, desk_of: Build, tmp_path: Path) -> None:
        desk = desk_of("capture:")
        ticket = Ticket(
            queue=EMAIL_SEND_BULK, id=new_id(), body=b'{"to": ["ann@example.org"], "subject": "s", "text": "t"}'
        )
        for _ in range(2):
            await desk.handle(ticket)
        record = await desk.ledger.email(ticket.id)
        assert record is not None
        assert record.stream == "bulk"
        assert len(list((tmp_path / "captured").glob("*.eml"))) == 1

    async def test_send_at_waits_in_the_ledger(self, desk_of: Build, clock: FakeClock, tmp_path: Path) -> None:
        desk = desk_of("capture:")
        email = request(send_at=clock() + timedelta(hours=3))
        assert await desk.handle(ticket_of(email)) == Done()
        assert not (tmp_path / "captured").exists()
        assert desk.waiting == []

    async def test_a_missing_blob_holds_the_email(self, desk_of: Build, tmp_path: Path) -> None:
        desk = desk_of("capture:")
        await FileBlobStore(tmp_path / "blobs").begin()
        email = request(attachments=[Attachment(filename="a.pdf", blob="sha256:" + "0" * 64)])
        assert await desk.handle(ticket_of(email)) == Done()
        row = await desk.row(email)
        assert row.disposition is Disposition.HELD
        assert "sha256:000" in row.reason

    async def test_while_the_blob_store_is_not_there_an_email_that_needs_it_waits(
        self, desk_of: Build, tmp_path: Path
    ) -> None:
        desk = desk_of("capture:")
        digest = await FileBlobStore(tmp_path / "elsewhere").put(b"a plan")
        (tmp_path / "blobs").mkdir(exist_ok=True)
        email = request(attachments=[Attachment(filename="a.pdf", blob=digest)])
        with pytest.raises(StoreUnavailable, match="the store is not there"):
            await desk.handle(ticket_of(email))
        assert (await desk.row(email)).disposition is Disposition.PENDING
        (tmp_path / "blobs").rmdir()
        (tmp_path / "elsewhere").rename(tmp_path / "blobs")
        desk.clock.advance(60)
        await desk.handle(ticket_of(email))
        assert (await desk.row(email)).disposition is Disposition.RELAYED

    async def test_a_ticket_of_no_email_is_for_an_operator(self, desk_of: Build) -> None:
        ticket = Ticket(queue="email.send.retry", id="x", body=b"{}", headers={"email_id": "x", "recipient": "y"})
        with pytest.raises(PermanentFailure, match="no email x"):
            await desk_of("capture:").handle(ticket)


class TestLadder:
    async def test_the_five_days_are_walked_step_by_step_and_then_given_up(
        self, desk_of: Build, clock: FakeClock
    ) -> None:
        async with ScriptedRelay({"rcpt": "450 4.2.0 greylisted"}) as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
            email = request()
            started = clock()
            await desk.handle(ticket_of(email))
            times = [started]
            while desk.waiting:
                [ticket] = desk.waiting
                assert ticket.queue == "email.send.retry"
                row = await desk.row(email)
                assert (row.disposition, row.next_attempt_at) == (Disposition.DELAYED, ticket.due_at)
                assert ticket.headers["ticket_id"] == row.ticket_id
                await desk.walk(until=ticket.due_at)
                times.append(clock())
            waits = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(times)]
            assert waits == pytest.approx(FIVE_DAYS.steps)
            assert times[-1] - started == timedelta(days=5, hours=2, minutes=21)
            row = await desk.row(email)
            assert (row.disposition, row.attempts, row.copies) == (Disposition.FAILED, 18, 0)
            assert row.reason == "given up after 18 attempts"
            assert str(row.reply) == "450 4.2.0 greylisted"
            assert relay.seen["rcpt"] == 18
            assert desk.pool.paused == []

    async def test_every_attempt_sends_the_same_bytes(self, desk_of: Build) -> None:
        async with ScriptedRelay({"dot": ["451 4.3.0 later", CLOSE, "451 4.3.0 later"]}) as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
            email = request()
            await desk.handle(ticket_of(email))
            record = await desk.ledger.email(email.id)
            await desk.walk()
            row = await desk.row(email)
            assert (row.disposition, row.attempts, row.copies) == (Disposition.RELAYED, 4, 2)
            assert record is not None
            assert [taken.octets for taken in relay.taken] == [record.octets]

    async def test_what_expires_is_not_attempted_again(self, desk_of: Build, clock: FakeClock) -> None:
        async with ScriptedRelay({"rcpt": "450 4.2.0 greylisted"}) as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
            email = request(expires_at=clock() + timedelta(minutes=10))
            await desk.handle(ticket_of(email))
            await desk.walk()
            assert (await desk.row(email)).disposition is Disposition.EXPIRED
            assert clock() == email.expires_at
            assert relay.seen["rcpt"] == 3

    async def test_a_relay_that_is_down_for_a_week_spends_no_attempt(self, desk_of: Build, clock: FakeClock) -> None:
        desk = desk_of(f"smtp://127.0.0.1:{refusing_port()}")
        email = request()
        await desk.handle(ticket_of(email))
        for _ in range(7):
            clock.advance(86_300)
            await desk.walk(until=clock(), most=2)
            assert (await desk.row(email)).attempts == 0
        clock.advance(86_400)
        await desk.walk()
        row = await desk.row(email)
        assert (row.disposition, row.attempts) == (Disposition.EXPIRED, 0)

    async def test_a_paused_relay_costs_neither_claim_nor_attempt(self, desk_of: Build) -> None:
        desk = desk_of(f"smtp://127.0.0.1:{refusing_port()}")
        await desk.handle(ticket_of(request()))
        [paused] = desk.pool.paused
        email = request("bob@example.org")
        outcome = await desk.handle(ticket_of(email))
        assert outcome == Later(at=paused.until, climbs=False)
        story = await desk.ledger.story(email.id)
        assert story is not None
        assert [line["step"] for line in story["timeline"] if line["step"] in ("claimed", "claim_released")] == []

    async def test_retries_keep_their_stream(self, desk_of: Build) -> None:
        async with ScriptedRelay({"rcpt": ["450 4.2.0 greylisted"] * 2}) as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
            await desk.handle(ticket_of(request(), queue=EMAIL_SEND_BULK))
            await desk.handle(ticket_of(request(stream="urgent")))
            assert [ticket.queue for ticket in desk.published] == ["email.send.bulk.retry", "email.send.urgent.retry"]


class TestJournal:
    async def test_unknown_with_hold_waits_for_an_operator(self, desk_of: Build) -> None:
        async with ScriptedRelay({"dot": CLOSE}) as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
            email = request(on_unknown="hold")
            assert await desk.handle(ticket_of(email)) == Done()
            row = await desk.row(email)
            assert (row.disposition, row.next_attempt_at, row.copies) == (Disposition.UNKNOWN, None, 1)

    async def test_a_claim_lost_before_the_dot_sends_no_dot(self, desk_of: Build, clock: FakeClock) -> None:
        class Slow(DatabaseLedger):
            async def record_dot_sent(self, claim: Claim) -> None:
                clock.advance(61)
                other = await self.claim(claim.email_id, claim.recipient, ticket_id="other", lifetime_seconds=60)
                assert isinstance(other, Claim)
                await super().record_dot_sent(claim)

        async with ScriptedRelay() as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}", ledger=Slow)
            email = request()
            assert isinstance(await desk.handle(ticket_of(email)), Later)
            assert relay.seen["data"] == 1
            assert relay.seen["full body"] == 0
            row = await desk.row(email)
            assert (row.disposition, row.ticket_id, row.copies) == (Disposition.SENDING, "other", 0)

    async def test_no_ledger_no_dot(self, desk_of: Build) -> None:
        class Away(DatabaseLedger):
            async def record_dot_sent(self, claim: Claim) -> None:
                raise StoreUnavailable("the disk is full")

        async with ScriptedRelay() as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}", ledger=Away)
            email = request()
            with pytest.raises(StoreUnavailable) as error:
                await desk.handle(ticket_of(email))
            assert error.value.owner is FaultOwner.OURS
            assert relay.seen["full body"] == 0
            row = await desk.row(email)
            assert (row.disposition, row.attempts) == (Disposition.PENDING, 0)

    async def test_a_reply_is_recorded_as_soon_as_the_store_is_back(self, desk_of: Build) -> None:
        class Flickering(DatabaseLedger):
            refusals = 3

            async def record_relayed(self, claim: Claim, *, relay: str, reply: Reply) -> None:
                self.refusals -= 1
                if self.refusals >= 0:
                    raise StoreUnavailable("not now")
                await super().record_relayed(claim, relay=relay, reply=reply)

        async with ScriptedRelay() as relay:
            patience = Patience(record_again_seconds=0.01)
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}", ledger=Flickering, patience=patience)
            email = request()
            assert await desk.handle(ticket_of(email)) == Done()
            assert (await desk.row(email)).disposition is Disposition.RELAYED

    async def test_a_late_yes_heals_what_had_become_unknown(self, desk_of: Build, clock: FakeClock) -> None:
        class Sleeping(DatabaseLedger):
            async def record_relayed(self, claim: Claim, *, relay: str, reply: Reply) -> None:
                clock.advance(61)
                await self.sweep_expired()
                await super().record_relayed(claim, relay=relay, reply=reply)

        async with ScriptedRelay() as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}", ledger=Sleeping)
            email = request()
            assert await desk.handle(ticket_of(email)) == Done()
            assert (await desk.row(email)).disposition is Disposition.RELAYED

    async def test_the_claim_is_renewed_while_the_reply_is_awaited(self, desk_of: Build) -> None:
        renewed = asyncio.Event()

        class Counting(DatabaseLedger):
            renewals = 0

            async def renew(self, claim: Claim, *, lifetime_seconds: float) -> Claim:
                self.renewals += 1
                if self.renewals >= 3:
                    renewed.set()
                return await super().renew(claim, lifetime_seconds=lifetime_seconds)

        async with ScriptedRelay({"dot": WAIT}) as relay:
            patience = Patience(claim_seconds=0.06)
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}", ledger=Counting, patience=patience)
            email = request()
            handling = asyncio.create_task(desk.handle(ticket_of(email)))
            await asyncio.wait_for(renewed.wait(), 5)
            relay.go.set()
            assert await handling == Done()
            assert (await desk.row(email)).disposition is Disposition.RELAYED

    async def test_a_row_another_worker_has_is_left_and_only_its_current_ticket_comes_again(
        self, desk_of: Build, clock: FakeClock
    ) -> None:
        async with ScriptedRelay({"dot": WAIT}) as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
            email = request()
            handling = asyncio.create_task(desk.handle(ticket_of(email)))
            await asyncio.wait_for(relay.acted.wait(), 5)
            row = await desk.row(email)
            assert row.disposition is Disposition.SENDING
            assert await desk.handle(ticket_of(email)) == Later(at=row.claim_until, climbs=False)
            stranger = Ticket(
                queue="email.send.retry",
                id=email.id,
                body=b"{}",
                headers={"email_id": email.id, "recipient": row.recipient, "ticket_id": "an older one"},
            )
            assert await desk.handle(stranger) == Done()
            relay.go.set()
            assert await handling == Done()
            assert relay.seen["full body"] == 1

    async def test_a_ticket_of_a_final_row_is_done(self, desk_of: Build) -> None:
        async with ScriptedRelay({"rcpt": ["450 4.2.0 greylisted"]}) as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
            email = request()
            await desk.handle(ticket_of(email))
            [retry] = desk.published
            await desk.walk()
            assert await desk.handle(retry) == Done()
            assert await desk.handle(ticket_of(email)) == Done()
            assert len(relay.taken) == 1

    async def test_a_queue_that_is_away_after_the_record_leaves_the_row_to_the_sweeper(self, desk_of: Build) -> None:
        async with ScriptedRelay({"rcpt": ["450 4.2.0 greylisted"]}) as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}", queue_is_away=True)
            email = request()
            with pytest.raises(QueueUnavailable):
                await desk.handle(ticket_of(email))
            row = await desk.row(email)
            assert (row.disposition, row.attempts) == (Disposition.DELAYED, 1)
            assert await desk.handle(ticket_of(email)) == Done()  # no longer the current ticket
            assert relay.seen["rcpt"] == 1


class TestDraining:
    async def test_before_the_dot_the_claim_is_given_back(self, desk_of: Build) -> None:
        async with ScriptedRelay({"data": WAIT}) as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
            email = request()
            handling = asyncio.create_task(desk.handle(ticket_of(email)))
            await asyncio.wait_for(relay.acted.wait(), 5)
            handling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await handling
            row = await desk.row(email)
            assert (row.disposition, row.attempts, row.claim_until) == (Disposition.PENDING, 0, None)
            relay.script.clear()
            assert await desk.handle(ticket_of(email)) == Done()
            assert len(relay.taken) == 1

    async def test_after_the_dot_an_abandoned_attempt_is_unknown_not_resent(
        self, desk_of: Build, clock: FakeClock
    ) -> None:
        async with ScriptedRelay({"dot": HANG}) as relay:
            desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
            email = request()
            handling = asyncio.create_task(desk.handle(ticket_of(email)))
            while relay.seen["dot"] == 0:
                await asyncio.sleep(0)
            handling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await handling
            assert (await desk.row(email)).disposition is Disposition.SENDING
            clock.advance(61)
            outcome = await desk.handle(ticket_of(email))
            row = await desk.row(email)
            assert (row.disposition, row.copies) == (Disposition.UNKNOWN, 1)
            assert outcome == Later(at=row.next_attempt_at, climbs=False)


async def test_recipients_of_one_email_go_side_by_side_within_bounds(desk_of: Build, log: MailLog) -> None:
    people = [f"r{number}@example.org" for number in range(20)]
    async with ScriptedRelay({"dot": [WAIT] * 8}) as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}", patience=Patience(recipients_at_once=4))
        email = request(*people)
        handling = asyncio.create_task(desk.handle(ticket_of(email)))
        while relay.seen["dot"] < 4:
            await asyncio.sleep(0)
        assert relay.connections == 4
        relay.go.set()
        assert await handling == Done()
        assert sorted(taken.recipient for taken in relay.taken) == sorted(people)
        assert log.counters["email-relayed"] == 20


async def test_a_forged_retry_ticket_changes_nothing_for_a_row_that_is_not_due(desk_of: Build) -> None:
    async with ScriptedRelay({"rcpt": "450 4.2.0 greylisted"}) as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
        email = request()
        await desk.handle(ticket_of(email))
        [retry] = desk.published
        forged = replace(retry, headers={**retry.headers, "ticket_id": "forged"}, due_at=None)
        assert await desk.handle(forged) == Done()
        assert relay.seen["rcpt"] == 1


async def test_a_ticket_that_dies_takes_its_row_along_and_brings_it_back(
    desk_of: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_of("capture:")
    email = request()

    async def broken(_: str) -> None:
        raise PermanentFailure("cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(desk.ledger, "email", broken)
        with pytest.raises(PermanentFailure):
            await desk.handle(ticket_of(email))
    row = await desk.row(email)
    assert (row.disposition, row.reason) == (Disposition.DEAD, "PermanentFailure: cannot be read")
    assert await desk.handle(ticket_of(email)) == Done()
    assert (await desk.row(email)).disposition is Disposition.RELAYED


async def test_the_end_of_the_tickets_ladder_is_recorded_dead(desk_of: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = desk_of("capture:")
    email = request()

    async def broken(_: str) -> None:
        raise LookupError("gone")

    monkeypatch.setattr(desk.ledger, "email", broken)
    for attempt, disposition in ((0, Disposition.PENDING), (len(FIVE_DAYS.steps), Disposition.DEAD)):
        with pytest.raises(LookupError):
            await desk.handle(ticket_of(email, attempt=attempt))
        assert (await desk.row(email)).disposition is disposition


async def test_an_unknown_email_that_waits_for_a_person_does_not_spin_when_its_time_is_up(
    desk_of: Build, clock: FakeClock
) -> None:
    async with ScriptedRelay({"dot": CLOSE}) as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
        email = request(on_unknown="hold", expires_at=clock() + timedelta(minutes=10))
        await desk.handle(ticket_of(email))
        clock.advance(700)
        assert await desk.handle(ticket_of(email)) == Done()


async def test_a_conflict_is_recorded(desk_of: Build) -> None:
    desk = desk_of("capture:")
    email = request()
    await desk.handle(ticket_of(email))
    await desk.handle(ticket_of(request(id=email.id, text="something else")))
    assert {line["disposition"] for line in await desk.lists.newest("emails")} == {"relayed", "rejected"}


async def test_no_attempt_begins_that_could_outlast_the_handlers_deadline(desk_of: Build) -> None:
    async with ScriptedRelay() as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}", patience=Patience(handler_seconds=-1))
        email = request()
        assert await desk.handle(ticket_of(email)) == Later(at=desk.clock(), climbs=False)
        assert relay.connections == 0
        assert (await desk.row(email)).disposition is Disposition.PENDING


@pytest.mark.parametrize("reply", ["421 4.3.2 going down"])
async def test_a_proven_no_after_the_dot_outlives_a_blink_of_the_store(desk_of: Build, reply: str) -> None:
    class Flickering(DatabaseLedger):
        refusals = 3

        async def release_claim(self, claim: Claim, *, due_at: datetime | None = None) -> None:
            self.refusals -= 1
            if self.refusals >= 0:
                raise StoreUnavailable("not now")
            await super().release_claim(claim, due_at=due_at)

    async with ScriptedRelay({"dot": [reply]}) as relay:
        patience = Patience(record_again_seconds=0.01)
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}", ledger=Flickering, patience=patience)
        email = request()
        assert isinstance(await desk.handle(ticket_of(email)), Later)
        row = await desk.row(email)
        assert (row.disposition, row.copies) == (Disposition.PENDING, 0)


async def test_a_long_subject_is_listed_in_one_line(desk_of: Build) -> None:
    desk = desk_of("capture:")
    subject = "word " * 40 + "end"
    await desk.handle(ticket_of(request(subject=subject)))
    assert {line["subject"] for line in await desk.lists.newest("emails")} == {subject}
