"""What becomes of a mail whose mailbox fails: others are untouched, an outage is waited out, a bug is held."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import House

from gateway.errors import PermanentFailure, StoreUnavailable, TransientFailure
from gateway.inbound.faults import HOPELESS_TIMES, Fault, Passes, fingerprint_of
from gateway.inbound.mailbox import Context, Outcome, ReceivedMail
from gateway.inbound.mailboxes.posts import Posts, post_of
from gateway.mail.envelope import Envelope
from gateway.mail.threads import ThreadClues
from gateway.queue.broker import Done
from gateway.queue.ticket import Ticket

START = datetime(2030, 1, 1, tzinfo=UTC)
THREE = ("posts@localhost", "broken@localhost", "postmaster@localhost")


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


class Outage:
    """A mailbox whose foundation is away until a time."""

    def __init__(self, clock: Clock, until: datetime) -> None:
        self.clock, self.until = clock, until

    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        if self.clock() < self.until:
            raise ConnectionError("no route to the wiki")
        return post_of(mail)


async def accept(house: House, subject: str, *rcpt_to: str) -> Ticket:
    envelope = Envelope(mail_id="", mail_from="ann@example.org", rcpt_to=rcpt_to, received_at=START, door="smtp")
    mail_id = await house.intake().accept(envelope, f"Subject: {subject}\r\n\r\nwords\r\n".encode())
    return next(ticket for ticket in await house.tickets() if ticket.id == mail_id)


async def with_clock(house: House, ladder: str) -> tuple[Any, Clock, list[Ticket]]:
    """An ingest whose clock is turned by hand, and the retry tickets it publishes."""
    ingest, clock, published = await house.open_ingest(ladder=ladder), Clock(), []

    async def publish(tickets: Any) -> None:
        published.extend(tickets)

    ingest._clock, ingest._publish, ingest._jitter = clock, publish, lambda: 0.5
    return ingest, clock, published


async def dispositions(house: House) -> dict[str, str]:
    assert house.mails is not None
    return {row["rcpt_to"]: row["disposition"] for row in await house.lists.newest("mails")}


async def test_a_mailbox_raising_for_an_hour_delays_its_own_recipient_only(house: House) -> None:
    ingest, clock, published = await with_clock(house, "1m 5m 15m 1h*2 4h*3")
    house.mailboxes["broken"] = Outage(clock, START + timedelta(hours=1))
    assert await ingest.handle(await accept(house, "to three", *THREE)) == Done()
    assert await dispositions(house) == {THREE[0]: "delivered", THREE[1]: "pending", THREE[2]: "delivered"}
    attempts = 1
    while published:
        ticket = published.pop()
        assert (ticket.headers["rcpt_to"], ticket.attempt) == (["broken@localhost"], attempts)
        clock.now = ticket.due_at
        await ingest.handle(ticket)
        attempts += 1
    assert clock.now - START > timedelta(hours=1)
    assert set((await dispositions(house)).values()) == {"delivered"}
    assert house.mails is not None
    assert len(await house.lists.newest("posts")) == 3, "each once"


class Picky(Posts):
    """Has a bug that one kind of mail meets."""

    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        if mail.parsed.subject == "poison":
            raise KeyError(mail.parsed.subject)
        return await super().receive(mail, context)


async def test_the_same_fault_five_times_while_other_mails_pass_is_held_and_said_loudly(house: House) -> None:
    ingest, clock, published = await with_clock(house, "1m*20")
    house.log = ingest._log
    house.mailboxes["broken"] = Picky()
    await ingest.handle(await accept(house, "poison", "broken@localhost"))
    for number in range(HOPELESS_TIMES - 1):
        ticket = published.pop()
        clock.now = ticket.due_at
        await ingest.handle(await accept(house, f"good {number}", "broken@localhost"))
        assert published == [], "the good ones pass"
        await ingest.handle(ticket)
    assert published == []
    assert house.mails is not None
    row = next(row for row in await house.lists.newest("mails") if row["subject"] == "poison")
    assert row["disposition"] == "held"
    assert row["reason"].startswith(
        "failed the same way 5 times while other mails passed: mailbox broken failed: KeyError"
    )
    assert house.log.counters["mailbox-at-fault"] == 1


async def test_while_nothing_else_passes_it_is_an_outage_and_the_ladder_goes_on(house: House) -> None:
    ingest, clock, published = await with_clock(house, "1m*20")
    house.mailboxes["broken"] = Outage(clock, START + timedelta(minutes=10))
    await ingest.handle(await accept(house, "patient", "broken@localhost"))
    while published:
        ticket = published.pop()
        clock.now = ticket.due_at
        await ingest.handle(ticket)
    assert await dispositions(house) == {"broken@localhost": "delivered"}


async def test_a_mailbox_that_exits_is_a_failure_like_any_other(house: House) -> None:
    class Exits:
        async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
            sys.exit(3)

    ingest, _, published = await with_clock(house, "1m")
    house.mailboxes["broken"] = Exits()
    await ingest.handle(await accept(house, "x", "broken@localhost"))
    assert [ticket.attempt for ticket in published] == [1]


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("the wiki is down"),
        TransientFailure("later"),
        PermanentFailure("never"),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_mailbox_raises_delays_its_own_recipient_only(error: BaseException, house: House) -> None:
    class Raises:
        async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
            raise error

    ingest, _, published = await with_clock(house, "1m")
    house.mailboxes["broken"] = Raises()
    await ingest.handle(await accept(house, "x", *THREE))
    assert await dispositions(house) == {THREE[0]: "delivered", THREE[1]: "pending", THREE[2]: "delivered"}
    assert [ticket.headers["rcpt_to"] for ticket in published] == [["broken@localhost"]]


async def test_a_store_that_is_away_when_a_mailbox_asks_is_a_fault_of_ours(house: House) -> None:
    class Asks:
        async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
            await context.find_thread(ThreadClues())
            raise AssertionError("it has no answer")

    async def away(*asked: object) -> str:
        raise StoreUnavailable("away")

    ingest, _, published = await with_clock(house, "1m")
    house.mails.find_thread = away  # type: ignore[union-attr, method-assign]
    house.mailboxes["broken"] = Asks()
    with pytest.raises(StoreUnavailable, match="away"):
        await ingest.handle(await accept(house, "x", "broken@localhost"))
    assert published == []


async def test_who_is_not_reached_in_a_turn_goes_on_with_a_ticket_of_his_own(house: House) -> None:
    class Raises:
        async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
            raise TimeoutError

    ingest, _, published = await with_clock(house, "1m")
    ingest._turn_seconds = 0
    house.mailboxes["broken"] = Raises()
    ticket = await accept(house, "x", "broken@localhost", "posts@localhost", "posts+a@localhost")
    await ingest.handle(ticket)
    retry, rest = published
    assert (retry.headers["rcpt_to"], retry.attempt) == (["broken@localhost"], 1)
    assert (rest.headers["rcpt_to"], rest.attempt, rest.due_at) == (["posts@localhost", "posts+a@localhost"], 0, None)
    assert set((await dispositions(house)).values()) == {"pending"}
    for left in (["posts+a@localhost"], None):
        published.clear()
        await ingest.handle(rest)
        assert [ticket.headers["rcpt_to"] for ticket in published] == ([left] if left else [])
        rest = published[0] if published else rest
    assert sorted((await dispositions(house)).values()) == ["delivered", "delivered", "pending"]


async def test_what_the_store_chokes_on_for_one_recipient_does_not_stop_the_others(house: House) -> None:
    class Odd:
        async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
            return dataclasses.replace(post_of(mail), title=object())  # type: ignore[arg-type]

    ingest, _, published = await with_clock(house, "1m")
    house.mailboxes["broken"] = Odd()
    await ingest.handle(await accept(house, "x", "broken@localhost", "posts@localhost"))
    assert await dispositions(house) == {"broken@localhost": "pending", "posts@localhost": "delivered"}
    assert len(published) == 1


def raised(at: int) -> BaseException:
    try:
        if at:
            raise ValueError(at)
        int("no number")
    except ValueError as error:
        return error
    raise AssertionError


def test_a_fingerprint_is_the_type_and_the_innermost_frame_of_the_plug_in() -> None:
    own = type("Own", (), {"__module__": __name__})()
    first, second = fingerprint_of(raised(1), own), fingerprint_of(raised(2), own)
    assert first == second
    assert first.startswith("ValueError at test_fault_policy.py:raised:")
    assert fingerprint_of(raised(0), own) != first, "another line"


def test_another_fingerprint_or_a_strange_header_starts_the_count_anew() -> None:
    once = Fault.after({}, "a", START)
    twice = Fault.after({"fault": once.to_header()}, "a", START + timedelta(hours=1))
    assert (twice.times, twice.since) == (2, START)
    assert Fault.after({"fault": twice.to_header()}, "b", START).times == 1
    for strange in (None, 7, {}, {"fingerprint": "a", "times": "x", "since": 1}):
        assert Fault.after({"fault": strange}, "a", START).times == 1


def test_the_mails_own_other_recipients_do_not_count_as_other_mails() -> None:
    passes = Passes()
    fault = Fault(fingerprint="a", times=HOPELESS_TIMES, since=START)
    passes.note("m", START)
    assert not passes.make_hopeless(fault, "m")
    passes.note("before", START - timedelta(seconds=1))
    assert not passes.make_hopeless(fault, "m")
    passes.note("other", START)
    passes.note("m", START)
    assert passes.make_hopeless(fault, "m")
