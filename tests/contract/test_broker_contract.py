"""What every queue engine promises; the same bodies for each engine of the fixture."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.errors import LeaseLost, QueueUnavailable
from gateway.queue.broker import (
    DELIVERY_LIMIT,
    Broker,
    Consumer,
    Dead,
    Depth,
    Done,
    Event,
    Later,
    Lease,
    Release,
    Suspect,
)
from gateway.queue.ticket import (
    DEAD_CRASHED,
    DEAD_FAILED,
    EMAIL_SEND,
    EMAIL_SEND_BULK,
    EMAIL_SEND_SERIAL,
    EMAIL_SEND_URGENT,
    HOME_QUEUE,
    MAIL_INBOUND,
    ROUTING_KEY,
    SUSPECT,
    UNROUTABLE,
    Ticket,
    at_home,
    home_queue,
    retry_queue,
)

PATIENCE_SECONDS = 5.0
RETRY = retry_queue(MAIL_INBOUND)


def ticket(id: str = "1", queue: str = MAIL_INBOUND, **values: object) -> Ticket:
    return Ticket(queue=queue, id=id, body=b"octets of " + id.encode(), **values)  # type: ignore[arg-type]


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def next_lease(consumer: Consumer) -> Lease:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await anext(aiter(consumer))


async def no_lease(consumer: Consumer, *, seconds: float = 0.4) -> None:
    """Longer than any engine's poll, so that a ticket that is there would be seen."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await anext(aiter(consumer))


async def drain(broker: Broker, queues: Sequence[str], count: int, *, concurrency: int = 10) -> list[Ticket]:
    found: list[Ticket] = []
    async with broker.consume(dict.fromkeys(queues, 1), concurrency=concurrency) as consumer:
        while len(found) < count:
            lease = await next_lease(consumer)
            found.append(lease.ticket)
            await lease.settle(Done())
    return found


async def depth(broker: Broker, name: str) -> Depth:
    return next(
        (depth for depth in await broker.depths() if depth.name == name),
        Depth(name=name, ready=0, leased=0, delayed=0, dead=0, oldest_seconds=None),
    )


@asynccontextmanager
async def consuming(broker: Broker, *queues: str, concurrency: int = 1, **values: float) -> AsyncIterator[Consumer]:
    weights = dict.fromkeys(queues or (MAIL_INBOUND, RETRY), 1)
    async with broker.consume(weights, concurrency=concurrency, **values) as consumer:
        yield consumer


# publish and lease


async def test_a_ticket_comes_out_as_it_went_in(broker: Broker) -> None:
    full = Ticket(
        queue=MAIL_INBOUND,
        id="0193",
        body=bytes(range(256)),
        content_type="message/rfc822",
        headers={"rcpt_to": ["ä@example.org", "b@example.org"], "size": 7, "tls": None},
        attempt=3,
        due_at=datetime(2020, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        reply_to="reply.x",
        correlation_id="c",
        app="billing",
    )
    await broker.publish([full])
    assert await drain(broker, [MAIL_INBOUND], 1) == [full]


async def test_all_tickets_of_one_publish_come(broker: Broker) -> None:
    await broker.publish([ticket(str(n)) for n in range(300)])
    found = await drain(broker, [MAIL_INBOUND], 300, concurrency=50)
    assert {item.id for item in found} == {str(n) for n in range(300)}


async def test_several_tickets_may_carry_the_same_id(broker: Broker) -> None:
    await broker.publish([ticket("same"), ticket("same")])
    assert len(await drain(broker, [MAIL_INBOUND], 2)) == 2


async def test_a_large_body_comes_whole(broker: Broker) -> None:
    body = bytes(range(256)) * 4 * 1024 * 8
    await broker.publish([Ticket(queue=EMAIL_SEND, id="large", body=body)])
    assert (await drain(broker, [EMAIL_SEND], 1))[0].body == body


async def test_a_closed_queue_promises_nothing(open_broker) -> None:
    broker = await open_broker()
    await broker.close()
    with pytest.raises(QueueUnavailable):
        await broker.publish([ticket()])


async def test_tickets_outlive_the_broker(open_broker) -> None:
    first = await open_broker()
    await first.publish([ticket()])
    await first.close()
    assert (await drain(await open_broker(), [MAIL_INBOUND], 1))[0].id == "1"


async def test_a_ticket_is_leased_to_one_consumer_at_a_time(open_broker) -> None:
    one, other = await open_broker(), await open_broker()
    await one.publish([ticket()])
    async with consuming(one) as first, consuming(other) as second:
        lease = await next_lease(first)
        await no_lease(second)
        await lease.settle(Done())
        await no_lease(second)


async def test_no_more_leases_are_out_than_the_concurrency(broker: Broker) -> None:
    await broker.publish([ticket(str(n)) for n in range(3)])
    async with consuming(broker, concurrency=2) as consumer:
        first = await next_lease(consumer)
        await next_lease(consumer)
        await no_lease(consumer)
        await first.settle(Done())
        await next_lease(consumer)


async def test_serial_tickets_come_in_order_and_one_at_a_time_whoever_asks(open_broker) -> None:
    broker, other = await open_broker(), await open_broker()
    await broker.publish([ticket(str(number), EMAIL_SEND_SERIAL) for number in range(4)])
    await broker.publish([ticket("plain", EMAIL_SEND)])
    async with (
        broker.consume({EMAIL_SEND_SERIAL: 8, EMAIL_SEND: 1}, concurrency=10) as consumer,
        other.consume({EMAIL_SEND_SERIAL: 1}, concurrency=10) as elsewhere,
    ):
        first = {lease.ticket.id: lease for lease in [await next_lease(consumer), await next_lease(consumer)]}
        assert set(first) == {"0", "plain"}
        await no_lease(elsewhere)
        await first["0"].settle(Done())
        second = await next_lease(consumer)
        assert second.ticket.id == "1"
        await second.settle(Release())
        again = await next_lease(consumer)
        assert again.ticket.id == "1"
        await again.settle(Done())
        for number in ("2", "3"):
            lease = await next_lease(consumer)
            assert lease.ticket.id == number
            await lease.settle(Done())


async def test_a_publish_elsewhere_wakes_an_idle_consumer(open_broker) -> None:
    one, other = await open_broker(), await open_broker()
    async with consuming(one) as consumer:
        waiting = asyncio.create_task(next_lease(consumer))
        await asyncio.sleep(0.01)
        begun = time.monotonic()
        await other.publish([ticket()])
        await waiting
        assert time.monotonic() - begun < 1


# settle


async def test_done_is_gone_for_good(open_broker) -> None:
    broker = await open_broker()
    await broker.publish([ticket()])
    await drain(broker, [MAIL_INBOUND], 1)
    async with consuming(await open_broker()) as consumer:
        await no_lease(consumer)
    assert await broker.dead() == []


async def test_later_waits_in_the_retry_queue_until_its_time(broker: Broker) -> None:
    await broker.publish([ticket()])
    async with consuming(broker) as consumer:
        lease = await next_lease(consumer)
        at = in_seconds(0.6)
        await lease.settle(Later(at=at))
        assert (await depth(broker, RETRY)).delayed == 1
        again = await next_lease(consumer)
        assert datetime.now(UTC) >= at
        assert (again.ticket.queue, again.ticket.attempt, again.delivery_count) == (RETRY, 1, 0)
        assert again.ticket.due_at == at
        assert again.ticket.body == b"octets of 1"


async def test_later_comes_on_time_not_at_the_next_poll(broker: Broker) -> None:
    late: list[float] = []
    async with consuming(broker) as consumer:
        for n in range(4):
            at = in_seconds(0.1)
            await broker.publish([ticket(str(n), due_at=at)])
            lease = await next_lease(consumer)
            late.append((datetime.now(UTC) - at).total_seconds())
            await lease.settle(Done())
    assert min(late) < 0.1, late


async def test_later_that_does_not_climb_leaves_the_attempt(broker: Broker) -> None:
    await broker.publish([ticket(attempt=2)])
    async with consuming(broker) as consumer:
        await (await next_lease(consumer)).settle(Later(at=in_seconds(0), climbs=False))
        again = await next_lease(consumer)
        assert (again.ticket.queue, again.ticket.attempt) == (RETRY, 2)


async def test_a_retry_stays_in_its_retry_queue(broker: Broker) -> None:
    await broker.publish([ticket()])
    async with consuming(broker) as consumer:
        for _ in range(3):
            await (await next_lease(consumer)).settle(Later(at=in_seconds(0)))
        last = await next_lease(consumer)
        assert (last.ticket.queue, last.ticket.attempt) == (RETRY, 3)


async def test_a_consumer_of_fresh_tickets_never_sees_retries(broker: Broker) -> None:
    await broker.publish([ticket("old")])
    async with consuming(broker, MAIL_INBOUND) as consumer:
        await (await next_lease(consumer)).settle(Later(at=in_seconds(0)))
        await broker.publish([ticket("fresh")])
        assert (await next_lease(consumer)).ticket.id == "fresh"


async def test_a_ticket_published_for_the_future_waits(broker: Broker) -> None:
    due = in_seconds(0.5)
    await broker.publish([ticket(due_at=due), ticket("now")])
    async with consuming(broker, concurrency=2) as consumer:
        assert (await next_lease(consumer)).ticket.id == "now"
        assert (await next_lease(consumer)).ticket.id == "1"
        assert datetime.now(UTC) >= due


async def test_release_is_ready_at_once_and_not_counted(broker: Broker) -> None:
    await broker.publish([ticket()])
    async with consuming(broker) as consumer:
        for _ in range(DELIVERY_LIMIT + 2):
            lease = await next_lease(consumer)
            assert lease.delivery_count == 0
            await lease.settle(Release())
    assert (await depth(broker, MAIL_INBOUND)).ready == 1


async def test_a_settled_lease_cannot_be_settled_again(broker: Broker) -> None:
    await broker.publish([ticket()])
    async with consuming(broker) as consumer:
        lease = await next_lease(consumer)
        await lease.settle(Done())
        with pytest.raises(LeaseLost):
            await lease.settle(Later(at=in_seconds(0)))


# leases that end otherwise


async def test_leaving_gives_back_what_is_still_out(open_broker) -> None:
    broker = await open_broker()
    await broker.publish([ticket()])
    async with consuming(broker) as consumer:
        lease = await next_lease(consumer)
    async with consuming(await open_broker()) as consumer:
        again = await next_lease(consumer)
        assert again.delivery_count == 0
        with pytest.raises(LeaseLost):
            await lease.settle(Dead(reason="too late"))
        await again.settle(Done())


async def test_a_stopped_consumer_ends_its_iteration(broker: Broker) -> None:
    async with consuming(broker) as consumer:
        waiting = asyncio.create_task(anext(aiter(consumer)))
        await asyncio.sleep(0)
        consumer.stop()
        consumer.stop()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(waiting, PATIENCE_SECONDS)


async def test_a_stopped_consumer_gives_back_what_it_has_not_handed_out(open_broker) -> None:
    one, other = await open_broker(), await open_broker()
    await one.publish([ticket(str(n)) for n in range(5)])
    async with consuming(one, concurrency=5) as consumer:
        await next_lease(consumer)
        consumer.stop()
        assert [lease async for lease in consumer] == []
    assert len(await drain(other, [MAIL_INBOUND], 5)) == 5


async def test_a_paused_consumer_leaves_tickets_to_others_until_it_resumes(open_broker) -> None:
    one, other = await open_broker(), await open_broker()
    await one.publish([ticket(str(n)) for n in range(5)])
    async with consuming(one, concurrency=5) as consumer:
        lease = await next_lease(consumer)
        consumer.pause()
        await no_lease(consumer)
        assert (await depth(one, MAIL_INBOUND)).ready == 4
        await drain(other, [MAIL_INBOUND], 4)
        await other.publish([ticket("last")])
        await no_lease(consumer)
        consumer.resume()
        assert (await next_lease(consumer)).ticket.id == "last"
        await lease.settle(Done())


async def test_a_lease_that_ran_out_comes_again_counted_and_the_late_word_is_refused(open_broker) -> None:
    one, other = await open_broker(), await open_broker()
    await one.publish([ticket()])
    async with consuming(one, lease_seconds=0.2) as slow, consuming(other) as quick:
        late = await next_lease(slow)
        again = await next_lease(quick)
        assert again.delivery_count == 1
        for outcome in (Later(at=in_seconds(0)), Dead(reason="too late"), Release(), Done()):
            with pytest.raises(LeaseLost):
                await late.settle(outcome)
        assert (await depth(one, MAIL_INBOUND)).leased == 1
        await again.settle(Done())


async def test_the_last_lease_without_a_word_ends_in_crashed(broker: Broker) -> None:
    await broker.publish([ticket("killer"), ticket("innocent", queue=EMAIL_SEND)])
    leases = 0
    async with consuming(broker, lease_seconds=0.001, concurrency=DELIVERY_LIMIT + 5) as consumer, asyncio.timeout(60):
        while not await broker.dead():
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    lease = await anext(aiter(consumer))
                    assert lease.delivery_count == leases
                    leases += 1
    (dead,) = await broker.dead()
    assert (leases, dead.queue, dead.ticket.id) == (DELIVERY_LIMIT, MAIL_INBOUND, "killer")
    assert str(DELIVERY_LIMIT) in dead.reason


# sharing


async def test_queues_share_by_weight_and_none_starves(broker: Broker) -> None:
    names = {EMAIL_SEND_URGENT: 4, EMAIL_SEND: 2, EMAIL_SEND_BULK: 1}
    await broker.publish([ticket(f"{name}{n}", queue=name) for name in names for n in range(60)])
    seen: list[str] = []
    async with broker.consume(names, concurrency=7) as consumer:
        while len(seen) < 70:
            lease = await next_lease(consumer)
            seen.append(lease.ticket.queue)
            await lease.settle(Done())
    counts = {name: seen.count(name) for name in names}
    assert abs(counts[EMAIL_SEND_URGENT] - 40) <= 4, counts
    assert abs(counts[EMAIL_SEND_BULK] - 10) <= 2, counts


async def test_fresh_tickets_do_not_wait_behind_retries(broker: Broker) -> None:
    await broker.publish([ticket(str(n), queue=RETRY) for n in range(50)])
    await broker.publish([ticket("fresh")])
    async with broker.consume({MAIL_INBOUND: 2, RETRY: 1}, concurrency=1) as consumer:
        seen: list[str] = []
        while "fresh" not in seen:
            lease = await next_lease(consumer)
            seen.append(lease.ticket.id)
            await lease.settle(Done())
    assert len(seen) <= 2


async def test_a_queue_takes_all_when_the_others_are_empty(broker: Broker) -> None:
    await broker.publish([ticket(str(n), queue=EMAIL_SEND_BULK) for n in range(20)])
    assert len(await drain(broker, [EMAIL_SEND_URGENT, EMAIL_SEND_BULK], 20)) == 20


# dead letters


async def test_a_dead_letter_keeps_ticket_home_reason_and_time(broker: Broker) -> None:
    await broker.publish([ticket("1", headers={"rcpt_to": ["a@example.org"]}, attempt=4)])
    async with consuming(broker) as consumer:
        lease = await next_lease(consumer)
        await lease.settle(Dead(reason="552 too large"))
    (listed,) = await broker.dead()
    assert listed.ticket == replace(lease.ticket, body=b""), "a list has no bodies"
    dead = await broker.dead_one(listed.number)
    assert dead == replace(listed, ticket=lease.ticket)
    assert (dead.queue, dead.reason) == (MAIL_INBOUND, "552 too large")
    assert abs((datetime.now(UTC) - dead.died_at).total_seconds()) < 10
    assert (await depth(broker, MAIL_INBOUND)).dead == 1
    async with consuming(broker) as consumer:
        await no_lease(consumer)


async def test_dead_letters_are_listed_oldest_first_up_to_a_limit(broker: Broker) -> None:
    await broker.publish([ticket(str(n)) for n in range(3)])
    async with consuming(broker) as consumer:
        died = []
        for _ in range(3):
            lease = await next_lease(consumer)
            died.append(lease.ticket.id)
            await lease.settle(Dead(reason="no"))
    assert [dead.ticket.id for dead in await broker.dead()] == died
    assert [dead.ticket.id for dead in await broker.dead(limit=2)] == died[:2]


async def test_all_dead_letters_come_with_their_bodies_however_many_and_stay(broker: Broker) -> None:
    names = {str(n) for n in range(45)}
    await broker.publish([ticket(name) for name in sorted(names)])
    async with consuming(broker, concurrency=10) as consumer:
        for n in range(len(names)):
            await (await next_lease(consumer)).settle(Dead(reason="no", crashed=n % 2 == 0))
    for _ in range(2):
        found = [letter async for letter in broker.all_dead()]
        assert sorted(letter.ticket.id for letter in found) == sorted(names)
        assert all(letter.ticket.body == b"octets of " + letter.ticket.id.encode() for letter in found)
    assert (await depth(broker, MAIL_INBOUND)).dead == len(names)


async def test_a_retried_dead_letter_starts_anew_at_home(broker: Broker) -> None:
    await broker.publish([ticket(queue=RETRY, attempt=7)])
    async with consuming(broker) as consumer:
        await (await next_lease(consumer)).settle(Dead(reason="no"))
        (dead,) = await broker.dead()
        assert await broker.retry_dead(dead.number)
        again = await next_lease(consumer)
        assert (again.ticket.queue, again.ticket.attempt, again.delivery_count) == (MAIL_INBOUND, 0, 0)
        assert again.ticket.body == b"octets of 1"
    assert await broker.dead() == []


async def test_a_dropped_dead_letter_is_gone(broker: Broker) -> None:
    await broker.publish([ticket()])
    async with consuming(broker) as consumer:
        await (await next_lease(consumer)).settle(Dead(reason="no"))
    (dead,) = await broker.dead()
    assert await broker.drop_dead(dead.number)
    assert not await broker.drop_dead(dead.number)
    assert not await broker.retry_dead(dead.number)
    assert await broker.dead() == []


async def test_a_dead_letter_is_dropped_or_retried_wherever_it_lies(broker: Broker) -> None:
    await broker.publish([ticket(str(n)) for n in range(5)])
    async with consuming(broker) as consumer:
        for _ in range(5):
            await (await next_lease(consumer)).settle(Dead(reason="no"))
    letters = await broker.dead()
    for letter in (letters[3], letters[1]):
        assert await broker.drop_dead(letter.number)
    assert await broker.retry_dead(letters[4].number)
    assert {letter.number for letter in await broker.dead()} == {letters[0].number, letters[2].number}


@pytest.mark.parametrize(
    "number", ["", "999999", "-1", "x", "1; DROP TABLE tickets", "²", "9" * 19, str(2**63), "9" * 5000]
)
async def test_a_number_of_no_dead_letter_touches_nothing(broker: Broker, number: str) -> None:
    await broker.publish([ticket()])
    assert not await broker.retry_dead(number)
    assert not await broker.drop_dead(number)
    assert await broker.dead_one(number) is None
    assert (await depth(broker, MAIL_INBOUND)).ready == 1


async def test_a_living_ticket_is_no_dead_letter(broker: Broker) -> None:
    await broker.publish([ticket()])
    assert [await broker.dead_one(str(number)) for number in range(5)] == [None] * 5
    assert not any([await broker.drop_dead(str(number)) for number in range(5)])
    assert (await depth(broker, MAIL_INBOUND)).ready == 1


# events


async def test_each_subscriber_gets_its_own_copy_of_matching_events(broker: Broker) -> None:
    first = await broker.subscribe("shop", ["email.*"])
    second = await broker.subscribe("audit", ["#"])
    assert (first, second) == ("subscriber.shop", "subscriber.audit")
    keys = ["email.relayed", "mail.delivered", "email.bounced"]
    await broker.publish_events([Event(key=key, id=key, body=key.encode()) for key in keys])
    assert [item.body for item in await drain(broker, [first], 2)] == [b"email.relayed", b"email.bounced"]
    copies = await drain(broker, [second], 3)
    assert [item.id for item in copies] == keys
    assert copies[0].content_type == "application/cloudevents+json"


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("email.relayed", "email.relayed", True),
        ("email.relayed", "email.relayed.x", False),
        ("*", "email", True),
        ("*", "email.relayed", False),
        ("email.*", "email", False),
        ("#", "email.relayed.x", True),
        ("email.#", "email", True),
        ("email.#", "email.relayed.x", True),
        ("email.#", "emails.relayed", False),
        ("#.created", "post.created", True),
        ("#.created", "created", True),
        ("*.#.created", "created", False),
        ("#.#.#.x", "a.b.c.x", True),
        ("e.ail", "e.ail", True),
        ("e.ail", "exail", False),
    ],
)
async def test_topic_patterns(broker: Broker, pattern: str, key: str, matches: bool) -> None:
    queue = await broker.subscribe("one", [pattern])
    await broker.publish_events([Event(key=key, id="1", body=b"")])
    assert (await depth(broker, queue)).ready == int(matches)


async def test_an_event_matching_twice_comes_once(broker: Broker) -> None:
    queue = await broker.subscribe("one", ["email.#", "#.relayed"])
    await broker.publish_events([Event(key="email.relayed", id="1", body=b"")])
    assert (await depth(broker, queue)).ready == 1


async def test_a_subscription_is_durable_and_may_be_repeated(open_broker) -> None:
    first = await open_broker()
    await first.subscribe("shop", ["email.#"])
    await first.close()
    second = await open_broker()
    await second.publish_events([Event(key="email.failed", id="1", body=b"x")])
    queue = await second.subscribe("shop", ["email.#"])
    assert len(await drain(second, [queue], 1)) == 1


async def test_an_event_nobody_asked_for_is_no_error(broker: Broker) -> None:
    await broker.publish_events([Event(key="email.relayed", id="1", body=b"")])


# replies


async def answer_next(broker: Broker, body: bytes) -> Ticket:
    async with consuming(broker) as consumer:
        lease = await next_lease(consumer)
        await broker.answer(lease.ticket, body)
        await lease.settle(Done())
        return lease.ticket


async def test_an_asker_gets_its_answer(open_broker) -> None:
    app, worker = await open_broker(), await open_broker()
    answering = asyncio.create_task(answer_next(worker, b'{"status": "accepted"}'))
    assert await app.ask(ticket(), timeout_seconds=PATIENCE_SECONDS) == b'{"status": "accepted"}'
    asked = await answering
    assert asked.reply_to is not None
    assert asked.reply_to.startswith(("reply.", "amq."))
    assert asked.correlation_id


async def test_askers_do_not_get_each_others_answers(broker: Broker) -> None:
    async def echo() -> None:
        async with consuming(broker, concurrency=5) as consumer:
            for _ in range(5):
                lease = await next_lease(consumer)
                await broker.answer(lease.ticket, lease.ticket.id.encode())
                await lease.settle(Done())

    async with asyncio.TaskGroup() as group:
        group.create_task(echo())
        asks = [group.create_task(broker.ask(ticket(str(n)), timeout_seconds=PATIENCE_SECONDS)) for n in range(5)]
    assert [ask.result() for ask in asks] == [b"0", b"1", b"2", b"3", b"4"]


async def test_an_unanswered_question_times_out_but_is_queued(broker: Broker) -> None:
    with pytest.raises(TimeoutError):
        await broker.ask(ticket(), timeout_seconds=0.05)
    assert (await answer_next(broker, b"late")).id == "1"


@pytest.mark.parametrize("reply_to", [None, "", MAIL_INBOUND, "gateway.dead.failed", "reply." + "x" * 10_000])
async def test_no_answer_goes_to_anything_but_a_reply_address(broker: Broker, reply_to: str | None) -> None:
    await broker.answer(ticket(reply_to=reply_to), b"forged")
    assert all(item.ready == 0 for item in await broker.depths())


# seeing


async def test_depths_count_ready_leased_delayed_and_dead(broker: Broker) -> None:
    await broker.publish([ticket(str(n)) for n in range(4)] + [ticket("future", due_at=in_seconds(60))])
    async with consuming(broker, MAIL_INBOUND, concurrency=2) as consumer:
        await (await next_lease(consumer)).settle(Dead(reason="no"))
        consumer.pause()
        await no_lease(consumer)
        consumer.resume()
        held = [await next_lease(consumer) for _ in range(2)]
        seen = await depth(broker, MAIL_INBOUND)
        assert (seen.ready, seen.leased, seen.delayed, seen.dead) == (1, 2, 1, 1)
        assert seen.oldest_seconds is not None
        assert 0 <= seen.oldest_seconds < 10
        for lease in held:
            await lease.settle(Done())


async def test_depths_name_the_work_queues_even_when_empty(broker: Broker) -> None:
    found = {item.name: item for item in await broker.depths()}
    assert {MAIL_INBOUND, EMAIL_SEND} <= set(found)
    assert found[MAIL_INBOUND].oldest_seconds is None


async def test_an_empty_queue_has_consumed_past_anything(broker: Broker) -> None:
    assert await broker.has_consumed_past(MAIL_INBOUND, datetime.now(UTC))


async def test_a_queue_has_not_consumed_past_while_older_tickets_wait(broker: Broker) -> None:
    await broker.publish([ticket()])
    assert not await broker.has_consumed_past(MAIL_INBOUND, datetime.now(UTC))
    async with consuming(broker) as consumer:
        lease = await next_lease(consumer)
        assert not await broker.has_consumed_past(MAIL_INBOUND, datetime.now(UTC)), "leased is not consumed"
        await lease.settle(Release())


async def test_a_queue_has_consumed_past_when_a_younger_ticket_was_consumed(broker: Broker) -> None:
    issued = datetime.now(UTC)
    await broker.publish([ticket("younger")])
    await drain(broker, [MAIL_INBOUND], 1)
    await broker.publish([ticket("waits")])
    assert await broker.has_consumed_past(MAIL_INBOUND, issued)
    assert not await broker.has_consumed_past(MAIL_INBOUND, datetime.now(UTC))


async def test_tickets_of_the_future_do_not_keep_a_queue_from_being_empty(broker: Broker) -> None:
    await broker.publish([ticket(due_at=in_seconds(60))])
    assert await broker.has_consumed_past(MAIL_INBOUND, datetime.now(UTC))


# suspects


async def test_a_suspect_goes_to_the_suspects_and_keeps_its_home(broker: Broker) -> None:
    await broker.publish([ticket(attempt=2, headers={"rcpt_to": ["a@example.org"]})])
    async with consuming(broker) as consumer:
        await (await next_lease(consumer)).settle(Suspect())
        await no_lease(consumer)
    async with consuming(broker, SUSPECT) as consumer:
        lease = await next_lease(consumer)
    assert (lease.ticket.queue, lease.delivery_count) == (SUSPECT, 0)
    assert home_queue(lease.ticket) == MAIL_INBOUND
    assert at_home(lease.ticket) == ticket(attempt=2, headers={"rcpt_to": ["a@example.org"]})


async def test_a_suspect_from_a_retry_queue_keeps_that_as_its_home(broker: Broker) -> None:
    await suspected(broker, ticket(queue=RETRY))
    async with consuming(broker, SUSPECT) as consumer:
        assert home_queue((await next_lease(consumer)).ticket) == RETRY


async def test_a_suspect_that_must_wait_goes_to_the_retry_queue_of_its_home(broker: Broker) -> None:
    await suspected(broker, ticket())
    async with consuming(broker, SUSPECT) as consumer:
        await (await next_lease(consumer)).settle(Later(at=in_seconds(-1)))
    async with consuming(broker) as consumer:
        lease = await next_lease(consumer)
        assert (lease.ticket.queue, lease.ticket.attempt, lease.delivery_count) == (RETRY, 1, 0)
        assert HOME_QUEUE not in lease.ticket.headers


@pytest.mark.parametrize(("crashed", "box"), [(False, DEAD_FAILED), (True, DEAD_CRASHED)])
async def test_a_dead_suspect_says_its_home_and_a_retry_leads_there(broker: Broker, crashed: bool, box: str) -> None:
    await suspected(broker, ticket())
    async with consuming(broker, SUSPECT) as consumer:
        await (await next_lease(consumer)).settle(Dead(reason="it kills", crashed=crashed))
    (found,) = await broker.dead()
    assert (found.queue, found.box, found.reason, found.ticket) == (
        MAIL_INBOUND,
        box,
        "it kills",
        replace(ticket(), body=b""),
    )
    assert await broker.retry_dead(found.number)
    assert await drain(broker, [MAIL_INBOUND], 1) == [ticket()]


async def test_a_suspect_nobody_speaks_for_dies_at_the_limit_with_its_home(broker: Broker) -> None:
    await suspected(broker, ticket("killer"))
    counts = []
    async with consuming(broker, SUSPECT, lease_seconds=0.001, concurrency=DELIVERY_LIMIT + 5) as consumer:
        async with asyncio.timeout(60):
            while not await broker.dead():
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        counts.append((await anext(aiter(consumer))).delivery_count)
    (found,) = await broker.dead()
    assert counts == list(range(DELIVERY_LIMIT))
    assert (found.queue, found.box) == (MAIL_INBOUND, DEAD_CRASHED)


async def suspected(broker: Broker, item: Ticket) -> None:
    await broker.publish([item])
    async with consuming(broker, item.queue) as consumer:
        await (await next_lease(consumer)).settle(Suspect())


async def test_a_ticket_for_a_queue_nobody_knows_goes_to_the_unroutable_with_that_name(broker: Broker) -> None:
    await broker.publish([ticket("7", queue="email.sned", headers={"a": 1})])
    async with consuming(broker, UNROUTABLE) as consumer:
        lease = await next_lease(consumer)
        assert (lease.ticket.id, lease.ticket.headers) == ("7", {"a": 1, ROUTING_KEY: "email.sned"})
        await lease.settle(Dead(reason="rejected"))
    (letter,) = await broker.dead()
    assert (letter.queue, letter.ticket.headers[ROUTING_KEY]) == (UNROUTABLE, "email.sned")
    await broker.retry_dead(letter.number)
    async with consuming(broker, UNROUTABLE) as consumer:
        assert (await next_lease(consumer)).ticket.headers[ROUTING_KEY] == "email.sned"
