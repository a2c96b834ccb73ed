"""What apps may do about their own emails, and what becomes of commands that nobody can work."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import FakeClock
from outbound_desk import request

from gateway.contract.control import ControlEmail
from gateway.errors import PermanentFailure, TransientFailure
from gateway.mail.ids import new_id
from gateway.maillog import MailLog
from gateway.outbound.control import TRIES_UNKNOWN, ControlDesk
from gateway.outbound.refusal import RefusalDesk
from gateway.queue.broker import Done
from gateway.queue.ticket import EMAIL_BROADCAST, EMAIL_CONTROL, ROUTING_KEY, UNROUTABLE, Ticket
from gateway.store import outbox
from gateway.store.database import Database
from gateway.store.emails import DatabaseLedger

ANN, BEN = "ann@example.org", "ben@example.org"


class Table:
    """A ledger and the two desks, with what they answered."""

    def __init__(self, ledger: DatabaseLedger, log: MailLog) -> None:
        self.ledger = ledger
        self.answers: list[dict[str, Any]] = []
        self.desk = ControlDesk(ledger, answer=self.answer, log=log, is_app_proven=True)
        self.open_desk = ControlDesk(ledger, answer=self.answer, log=log, is_app_proven=False)
        self.refusal = RefusalDesk(ledger, answer=self.answer, log=log)

    async def answer(self, ticket: Ticket, body: bytes) -> None:
        self.answers.append(json.loads(body))

    async def email(self, app: str = "shop") -> str:
        email = request(to=[ANN, BEN])
        facts = {"content_hash": email.content_hash(), "ticket_id": email.id, "stream": "normal", "message_id": "<m@x>"}
        await self.ledger.record_accepted(email, app=app, **facts)
        return email.id

    async def ask(self, action: str, email_id: str, app: str = "shop") -> tuple[str, str]:
        """The answer's status and its errors in one line."""
        assert await self.desk.handle(control(action, email_id, app=app)) == Done()
        return self.answers[-1]["status"], "; ".join(self.answers[-1]["errors"])

    async def states(self, email_id: str) -> set[str]:
        return {row.disposition for row in await self.ledger.recipients(email_id)}


def control(action: str, email_id: str, *, app: str = "shop", reply_to: str | None = "reply.1", **more: Any) -> Ticket:
    body = ControlEmail(action=action, email_id=email_id).to_json()
    return Ticket(queue=EMAIL_CONTROL, id=new_id(), body=body, app=app, reply_to=reply_to, **more)


@pytest.fixture
def table(ledger_of: Callable[..., DatabaseLedger], log: MailLog) -> Table:
    return Table(ledger_of(), log)


async def test_an_app_holds_lets_go_and_cancels_its_email_and_the_story_names_it(table: Table) -> None:
    email_id = await table.email()
    for action, state in (("hold", "held"), ("release", "pending"), ("cancel", "cancelled")):
        assert await table.ask(action, email_id) == ("accepted", "")
        assert await table.states(email_id) == {state}
    story = await table.ledger.story(email_id)
    assert story is not None
    noted = [(line["step"], line["data"]["by"]) for line in story["timeline"] if "by" in line["data"]]
    assert list(dict.fromkeys(noted)) == [("held", "app shop"), ("released", "app shop"), ("cancelled", "app shop")]


@pytest.mark.parametrize("action", ["hold", "release", "cancel"])
async def test_an_app_does_not_reach_the_emails_of_others(table: Table, action: str) -> None:
    for owner in ("payroll", ""):
        email_id = await table.email(owner)
        assert await table.ask(action, email_id) == ("rejected", "email_id: no email of yours in the ledger (yet)")
        assert await table.states(email_id) == {"pending"}


async def test_where_the_queue_knows_its_users_nobodys_word_counts_for_nothing(table: Table) -> None:
    email_id = await table.email("")
    status, errors = await table.ask("cancel", email_id, app="")
    assert status == "rejected"
    assert errors.startswith("user_id: an app is known by its own RabbitMQ user")
    assert await table.states(email_id) == {"pending"}
    await table.open_desk.handle(control("cancel", email_id, app=""))
    assert await table.states(email_id) == {"cancelled"}


async def test_the_same_again_is_accepted_and_changes_nothing_more(table: Table) -> None:
    email_id = await table.email()
    again = control("cancel", email_id)
    for _ in range(2):
        await table.desk.handle(again)
    assert [answer["status"] for answer in table.answers] == ["accepted"] * 2
    status, errors = await table.ask("hold", email_id)
    assert (status, errors) == ("rejected", "email_id: no recipient can be held now: 2 cancelled")


async def test_what_was_done_once_and_undone_since_is_not_called_done(table: Table) -> None:
    email_id = await table.email()
    await table.ask("hold", email_id)
    await table.ask("release", email_id)
    for row in await table.ledger.recipients(email_id):
        await table.ledger.claim(email_id, row.recipient, ticket_id="t", lifetime_seconds=60)
    assert await table.ask("hold", email_id) == ("rejected", "email_id: no recipient can be held now: 2 sending")


async def test_of_two_same_requests_at_once_both_are_accepted(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    email_id = await table.email()
    read = table.ledger.story

    async def story(email_id: str) -> dict[str, Any] | None:
        """The other worker's cancel comes between our look and our change."""
        monkeypatch.undo()
        seen = await read(email_id)
        await table.ledger.cancel(email_id, by="app shop")
        return seen

    monkeypatch.setattr(table.ledger, "story", story)
    assert await table.ask("cancel", email_id) == ("accepted", "")


async def test_an_app_lets_go_only_what_it_held_itself(table: Table) -> None:
    email_id = await table.email()
    await table.ledger.hold(email_id, by="olga")
    status, errors = await table.ask("release", email_id)
    assert status == "rejected"
    assert errors.endswith("2 held; an app lets go what it held itself")
    assert await table.states(email_id) == {"held"}
    assert await table.ask("cancel", email_id) == ("accepted", ""), "its own email it may always end"


async def test_who_comes_before_the_ledger_knows_the_email_is_tried_again_or_told(table: Table) -> None:
    unknown = new_id()
    assert await table.ask("cancel", unknown) == ("rejected", "email_id: no email of yours in the ledger (yet)")
    with pytest.raises(TransientFailure, match="not in the ledger yet"):
        await table.desk.handle(control("cancel", unknown, reply_to=None))
    with pytest.raises(PermanentFailure, match="rejected: email_id"):
        await table.desk.handle(control("cancel", unknown, reply_to=None, attempt=TRIES_UNKNOWN))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"action": "stop", "email_id": "x", "colour": 1}', {"action", "email_id", "colour"}),
        (b"no json", {"(request)"}),
        (b'{"version": 0, "action": "hold", "email_id": "0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b11"}', {"version"}),
    ],
)
async def test_a_bad_request_is_told_with_every_problem(table: Table, body: bytes, said: set[str]) -> None:
    ticket = Ticket(queue=EMAIL_CONTROL, id=new_id(), body=body, app="shop", reply_to="reply.1")
    await table.desk.handle(ticket)
    assert (table.answers[-1]["id"], table.answers[-1]["status"]) == (ticket.id, "rejected")
    assert {error.partition(":")[0] for error in table.answers[-1]["errors"]} == said


@pytest.mark.parametrize(("key", "hint"), [("email.sned", "perhaps email.send?"), ("x" * 300, "there are email.send,")])
async def test_a_key_that_leads_nowhere_is_told_recorded_and_kept(
    table: Table, database: Database, clock: FakeClock, key: str, hint: str
) -> None:
    request_id = new_id()
    ticket = Ticket(queue=UNROUTABLE, id=request_id, body=b"{}", headers={ROUTING_KEY: key}, reply_to="r", app="shop")
    for _ in range(2):  # as after a crash before the dead letter
        with pytest.raises(PermanentFailure, match="is no command") as dead:
            await table.refusal.unroutable(ticket)
    assert hint in str(dead.value)
    assert len(str(dead.value)) < 400
    assert [(answer["id"], answer["status"]) for answer in table.answers] == [(request_id, "rejected")] * 2
    events = await database.read(lambda connection: outbox.unpublished(connection, limit=10))
    assert [(event.type, json.loads(event.body)["subject"]) for event in events] == [("email.rejected", request_id)]


async def test_a_stray_without_id_and_asker_is_a_dead_letter_all_the_same(table: Table) -> None:
    with pytest.raises(PermanentFailure, match="'' is no command"):
        await table.refusal.unroutable(Ticket(queue=UNROUTABLE, id="", body=b"\xff"))
    assert table.answers == []


async def test_a_broadcast_is_refused_in_words_until_it_is_built(table: Table) -> None:
    with pytest.raises(PermanentFailure, match="broadcast is not built yet"):
        await table.refusal.broadcast(Ticket(queue=EMAIL_BROADCAST, id=new_id(), body=b"{}", reply_to="reply.1"))
    assert table.answers[-1]["status"] == "rejected"
