"""A relay that fails at every step in every way: each recipient gets the right disposition, and the mail gets through.

One table holds what is expected.  In each cell the relay fails once; then it behaves, the clock moves on, and the email
must end relayed (or stay failed), with no copy more than SMTP makes unavoidable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import trustme
from conftest import IMPATIENT, PATIENT, server_tls
from outbound_desk import Desk, request, ticket_of
from scripted_relay import CLOSE, GARBAGE, HANG, DeafPort, ScriptedRelay, refusing_port

from gateway.contract.email_send import Attachment
from gateway.mail.disposition import Disposition
from gateway.queue.broker import Later
from gateway.store.emails import DatabaseLedger
from gateway.store.ledger import Claim

ACTIONS = {
    "4xx": "451 4.3.0 not now",
    "421": "421 4.3.2 going down",
    "5xx": "550 5.7.1 no",
    "close": CLOSE,
    "hang": HANG,
    "garbage": GARBAGE,
}


@dataclass(frozen=True)
class Expected:
    """The row after the failing attempt, and whether the relay rests."""

    disposition: Disposition
    attempts: int
    paused: bool


RELAY = Expected(Disposition.PENDING, attempts=0, paused=True)  # the relay's fault: nothing spent
LATER = Expected(Disposition.DELAYED, attempts=1, paused=False)  # 4xx for this mail: the ladder
NEVER = Expected(Disposition.FAILED, attempts=1, paused=False)  # 5xx for this mail
NOBODY_KNOWS = Expected(Disposition.UNKNOWN, attempts=1, paused=True)  # after the dot, no answer
TAKEN = Expected(Disposition.RELAYED, attempts=1, paused=False)

_OPENING = dict.fromkeys(ACTIONS, RELAY)
_MAIL = _OPENING | {"4xx": LATER, "5xx": NEVER}
EXPECTED = {
    "banner": _OPENING,
    "ehlo": _OPENING,
    "starttls": _OPENING,
    "auth": _OPENING,
    "mail": _MAIL,
    "rcpt": _MAIL,
    "data": _MAIL,
    "body": _MAIL,
    "dot": _MAIL | {"close": NOBODY_KNOWS, "hang": NOBODY_KNOWS, "garbage": NOBODY_KNOWS},
    "quit": dict.fromkeys(ACTIONS, TAKEN),
}
CELLS = [(step, action) for step, row in EXPECTED.items() for action in row]
BIG = Attachment.of("big.bin", b"x" * 5_000_000)  # more than the sockets between us hold


class WaitingLedger(DatabaseLedger):
    """A ledger that takes its time before the dot, so that what the relay did to the body is there to be seen."""

    relay: ScriptedRelay

    async def record_dot_sent(self, claim: Claim) -> None:
        await super().record_dot_sent(claim)
        if "body" in self.relay.script:
            await self.relay.acted.wait()
            for _ in range(5):
                await asyncio.sleep(0)  # the loop reads the socket once a turn


@pytest.mark.parametrize(("step", "action"), CELLS)
async def test_each_recipient_gets_the_right_disposition(
    desk_of: Callable[..., Desk], trusted: trustme.CA, step: str, action: str
) -> None:
    expected = EXPECTED[step][action]
    secure = step in ("starttls", "auth")
    tls = {"tls": server_tls(trusted), "user": "me", "password": "pw"} if secure else {}
    async with ScriptedRelay({step: [ACTIONS[action]]}, **tls) as relay:
        scheme = "smtp+starttls://me:pw@127.0.0.1" if secure else "smtp://127.0.0.1"
        limits = IMPATIENT if action == "hang" else PATIENT
        desk = desk_of(f"{scheme}:{relay.port}", ledger=WaitingLedger, limits=limits)
        desk.ledger.relay = relay
        email = request(attachments=[BIG] if (step, action) == ("body", "hang") else [])
        await desk.handle(ticket_of(email))
        if step == "quit":
            await desk.pool.close()
        row = await desk.row(email)
        assert (row.disposition, row.attempts, bool(desk.pool.paused)) == (
            expected.disposition,
            expected.attempts,
            expected.paused,
        )
        assert len(relay.taken) == (expected is TAKEN)
        relay.script.clear()
        await desk.walk()
        row = await desk.row(email)
        assert row.disposition is (Disposition.FAILED if expected is NEVER else Disposition.RELAYED)
        assert row.copies == {NEVER: 0, NOBODY_KNOWS: 2}.get(expected, 1)
        assert len(relay.taken) == (expected is not NEVER)
        assert desk.pool.paused == []


async def test_a_refused_connect_spends_no_attempt(desk_of: Callable[..., Desk]) -> None:
    await _expect_paused(desk_of(f"smtp://127.0.0.1:{refusing_port()}"), "4.4.1")


async def test_a_connect_that_hangs_spends_no_attempt(desk_of: Callable[..., Desk]) -> None:
    with DeafPort() as port:
        await _expect_paused(desk_of(f"smtp://127.0.0.1:{port}", limits=IMPATIENT), "4.4.1")


async def _expect_paused(desk: Desk, why: str) -> None:
    email = request()
    outcome = await desk.handle(ticket_of(email))
    assert isinstance(outcome, Later)
    assert not outcome.climbs
    row = await desk.row(email)
    assert (row.disposition, row.attempts) == (Disposition.PENDING, 0)
    [paused] = desk.pool.paused
    assert why in paused.why


async def test_each_recipient_of_one_email_has_its_own_outcome(desk_of: Callable[..., Desk]) -> None:
    people = ["ann@example.org", "bob@example.org", "cid@example.org"]
    async with ScriptedRelay({"rcpt": [None, "450 4.2.1 busy", "550 5.1.1 unknown"]}) as relay:
        desk = desk_of(f"smtp://127.0.0.1:{relay.port}")
        email = request(*people)
        await desk.handle(ticket_of(email))
        rows = await desk.ledger.recipients(email.id)
        assert sorted(row.disposition for row in rows) == ["delayed", "failed", "relayed"]
        [retry] = desk.published
        assert retry.queue == "email.send.retry"
        assert retry.headers["recipient"] in people
        await desk.walk()
        assert sorted(row.disposition for row in await desk.ledger.recipients(email.id)) == [
            "failed",
            "relayed",
            "relayed",
        ]
        assert len({taken.octets for taken in relay.taken}) == 1
