"""Order per key on one table: what is accepted where, who is started when, and what a crash in between leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import pytest
from conftest import FakeClock
from outbound_desk import Desk, request, ticket_of
from scripted_relay import ScriptedRelay

from gateway.client import Client
from gateway.contract.email_send import SendEmail
from gateway.errors import QueueUnavailable
from gateway.mail.disposition import Disposition
from gateway.queue.broker import DeadTicket, Done
from gateway.queue.ticket import EMAIL_SEND, EMAIL_SEND_SERIAL, EMAIL_SEND_URGENT, Ticket, retry_queue
from gateway.reply import Reply
from gateway.watch.sweeper import sweep_once

Build = Callable[..., Desk]


class Queue:
    """The desk's queue as the sweeper sees it: nothing was consumed, nothing is dead."""

    def __init__(self, desk: Desk) -> None:
        self.publish = desk.publish

    async def has_consumed_past(self, queue: str, published_at: datetime) -> bool:
        return False

    async def dead(self, *, limit: int = 1000) -> list[DeadTicket]:
        return []


async def accepted(desk: Desk, *keys: str, **fields: object) -> list[SendEmail]:
    """One email for each key, accepted in this order; its text says which it is."""
    emails = [request(serial_key=key, text=f"{key} {number}\n", **fields) for number, key in enumerate(keys)]
    for email in emails:
        ticket = ticket_of(email, queue=EMAIL_SEND_SERIAL, reply_to="reply.x")
        assert await desk.handle(ticket) == Done()
    return emails


def texts(relay: ScriptedRelay) -> list[str]:
    return [taken.octets.rpartition(b"\r\n\r\n")[2].decode().strip() for taken in relay.taken]


async def test_emails_of_a_key_leave_in_order_and_other_keys_do_not_wait(desk_of: Build) -> None:
    later = "450 4.2.0 later"
    async with ScriptedRelay({"rcpt": [later, None, None, later]}) as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
        emails = await accepted(desk, "a", "a", "b", "a", "b")
        assert relay.taken == []
        assert {answer["status"] for answer in desk.answers} == {"accepted"}
        assert [ticket.id for ticket in desk.published] == [emails[0].id, emails[2].id]
        assert {ticket.queue for ticket in desk.published} == {retry_queue(EMAIL_SEND)}
        await desk.walk()
        assert [text for text in texts(relay) if text[0] == "a"] == ["a 0", "a 1", "a 3"]
        assert texts(relay)[:2] == ["b 2", "b 4"]


async def test_the_stream_of_the_body_decides_who_sends(desk_of: Build) -> None:
    desk = desk_of("capture:")
    await accepted(desk, "a", stream="urgent")
    assert [ticket.queue for ticket in desk.published] == [retry_queue(EMAIL_SEND_URGENT)]


async def test_the_serial_queue_takes_nothing_without_a_key(desk_of: Build) -> None:
    desk = desk_of("capture:")
    email = request()
    assert await desk.handle(ticket_of(email, queue=EMAIL_SEND_SERIAL, reply_to="reply.x")) == Done()
    assert desk.answers == [
        {
            "id": email.id,
            "status": "rejected",
            "errors": ["serial_key: is needed with the key email.send.serial, which keeps order by it"],
        }
    ]
    assert await desk.ledger.email(email.id) is None


async def test_a_ticket_that_comes_again_is_answered_again_and_numbered_once(desk_of: Build) -> None:
    desk = desk_of("capture:")
    [first, _] = await accepted(desk, "a", "a")
    desk.answers.clear()
    await desk.handle(ticket_of(first, queue=EMAIL_SEND_SERIAL, reply_to="reply.x"))
    assert desk.answers == [{"id": first.id, "status": "accepted", "errors": []}]
    story = await desk.ledger.story(first.id)
    assert story is not None
    assert story["serial_position"] == 1
    assert len(desk.published) == 1


async def test_a_next_one_that_nobody_told_is_started_by_the_sweeper(desk_of: Build, clock: FakeClock) -> None:
    desk = desk_of("capture:")
    first, second = await accepted(desk, "a", "a")
    ticket = desk.waiting.pop()
    desk.queue_is_away = True
    with pytest.raises(QueueUnavailable):
        await desk.handle(ticket)
    assert (await desk.row(first)).disposition is Disposition.RELAYED
    desk.queue_is_away = False
    assert (await sweep_once(desk.ledger, Queue(desk), clock=clock)).reissued == 1
    assert (await sweep_once(desk.ledger, Queue(desk), clock=clock)).reissued == 0
    await desk.walk()
    assert (await desk.row(second)).disposition is Disposition.RELAYED


async def test_the_predecessors_ticket_that_comes_again_starts_the_next(desk_of: Build) -> None:
    """The worker died between the record and the start; its ticket's lease went back."""
    desk = desk_of("capture:")
    first, second = await accepted(desk, "a", "a")
    ticket = desk.waiting.pop()
    claim = await desk.ledger.claim(first.id, "ann@example.org", ticket_id="t", lifetime_seconds=60)
    await desk.ledger.record_dot_sent(claim)
    await desk.ledger.record_relayed(claim, relay="r", reply=Reply(code=250, enhanced_status="2.0.0", text="ok"))
    await desk.handle(ticket)
    assert [ticket.id for ticket in desk.waiting] == [second.id]


async def test_what_expired_in_front_is_passed_by_the_sweeper(desk_of: Build, clock: FakeClock) -> None:
    async with ScriptedRelay({"rcpt": ["450 4.2.0 later"]}) as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
        [first] = await accepted(desk, "a", expires_at=clock() + timedelta(seconds=30))
        [second] = await accepted(desk, "a")
        await desk.handle(desk.waiting.pop())
        desk.waiting.clear()
        clock.advance(31)
        swept = await sweep_once(desk.ledger, Queue(desk), clock=clock)
        assert (swept.expired, swept.reissued) == (1, 1)
        await desk.walk()
        assert (await desk.row(first)).disposition is Disposition.EXPIRED
        assert (await desk.row(second)).disposition is Disposition.RELAYED


async def test_an_unknown_one_that_is_held_blocks_its_key_until_a_person_decides(
    desk_of: Build, clock: FakeClock
) -> None:
    async with ScriptedRelay({"dot": ["650 what"]}) as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
        first, second = await accepted(desk, "a", "a", on_unknown="hold")
        other, _ = await accepted(desk, "b", "b")
        await desk.walk()
        clock.advance(86400)
        await sweep_once(desk.ledger, Queue(desk), clock=clock)
        await desk.walk()
        assert texts(relay) == ["b 0", "b 1"]
        assert (await desk.row(first)).disposition is Disposition.UNKNOWN
        [line] = await desk.lists.newest("emails", id=second.id)
        assert line["reason"] == f"waits for {first.id}, position 2 of key a"
        await desk.ledger.cancel(first.id, by="ann")
        await sweep_once(desk.ledger, Queue(desk), clock=clock)
        await desk.walk()
        assert texts(relay) == ["b 0", "b 1", "a 1"]
        assert (await desk.row(other)).disposition is Disposition.RELAYED


async def test_the_client_publishes_what_has_a_key_to_the_serial_queue() -> None:
    class Keeper:
        async def publish(self, tickets: Sequence[Ticket]) -> None:
            self.queues = [ticket.queue for ticket in tickets]

    keeper = Keeper()
    async with Client(broker=keeper) as client:
        await client.send(request(serial_key="a", stream="bulk"))
        assert keeper.queues == [EMAIL_SEND_SERIAL]
        await client.send(request())
        assert keeper.queues == [EMAIL_SEND]
