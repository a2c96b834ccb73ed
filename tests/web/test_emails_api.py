"""`/v1/emails` through the real server: queued, told, kept apart by app, and never lost between queue and ledger."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import WebHouse, open_web_house

from gateway.contract.email_send import Attachment, SendEmail
from gateway.errors import QueueUnavailable
from gateway.mail.ids import new_id
from gateway.web.api.emails import REMEMBERED_IDS, RecentlyQueued

KEY = "0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b11"
REQUEST = {"template": "welcome", "to": ["ann@example.org"], "params": {"name": "Ann"}}


class ClosedQueue:
    """A queue that does not confirm."""

    async def send(self, email: SendEmail, /) -> str:
        raise QueueUnavailable("the queue did not confirm")


async def queued(house: WebHouse) -> int:
    return sum(depth.ready for depth in await house.broker.depths() if depth.name == "email.send")


async def accept(house: WebHouse, email_id: str, *, app: str = "") -> None:
    """What the worker does with the ticket."""
    email = SendEmail.model_validate(REQUEST | {"id": email_id})
    await house.store.ledger.record_accepted(
        email, app=app, content_hash="h", ticket_id=email_id, stream="normal", message_id=f"<{email_id}@x>"
    )


async def test_an_email_is_queued_and_told_with_its_place(house: WebHouse, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/emails", json=REQUEST, headers={"Idempotency-Key": KEY})
    assert (answer.status_code, answer.json()) == (202, {"id": KEY, "status": "queued"})
    assert await queued(house) == 1
    waiting = await http.get(answer.headers["location"].upper().replace("/V1/EMAILS", "/v1/emails"))
    assert (waiting.status_code, waiting.json()) == (200, {"id": KEY, "status": "pending"})
    await accept(house, KEY)
    story = (await http.get(answer.headers["location"])).json()
    assert story["recipients"][0]["disposition"] == "pending"
    assert [step["step"] for step in story["timeline"]] == ["accepted"]
    assert (await http.get("/v1/emails", params={"text": "ann@"})).json()["rows"][0]["id"] == KEY


async def test_an_unknown_email_may_be_on_its_way(http: httpx.AsyncClient) -> None:
    unknown = await http.get(f"/v1/emails/{KEY}")
    assert (unknown.status_code, unknown.headers["retry-after"]) == (404, "1")


def test_the_ids_remembered_are_bounded() -> None:
    recent = RecentlyQueued()
    for number in range(REMEMBERED_IDS + 1):
        recent.add("shop", str(number))
    assert (recent.has("shop", "0"), recent.has("shop", "1"), recent.has("other", "1")) == (False, True, False)


@pytest.mark.parametrize("body", [REQUEST, REQUEST | {"id": KEY}])
async def test_an_idempotency_key_may_stand_in_quotes(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await http.post("/v1/emails", json=body, headers={"Idempotency-Key": f'"{KEY.upper()}"'})
    assert (answer.status_code, answer.json()["id"]) == (202, KEY)


@pytest.mark.parametrize("path", ["/v1/emails", "/v1/posts"])
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": KEY}])
@pytest.mark.parametrize(
    "body", ["[" * 200_000, '{"params": ' + "[" * 200_000, '{"a":' * 200_000, "", "\x00", '"x"', "nul"]
)
async def test_endless_nesting_and_nonsense_are_bad_requests(
    http: httpx.AsyncClient, path: str, body: str, headers: dict[str, str]
) -> None:
    answer = await http.post(path, content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_huge_request_keeps_nobody_waiting(http: httpx.AsyncClient) -> None:
    """The longest the loop stood still while the largest requests we take were read."""
    bodies = [
        json.dumps(REQUEST | {"params": {"a": [[i] for i in range(1_500_000)]}}),
        json.dumps(REQUEST | {"cc": ["ann@example.org"] * 700_000}),
        json.dumps(REQUEST | {"attachments": [Attachment.of("a", bytes(8 * 1024 * 1024)).model_dump()]}),
    ]
    longest, ticks = 0.0, True

    async def tick() -> None:
        nonlocal longest
        while ticks:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)

    ticking = asyncio.create_task(tick())
    statuses = [(await http.post("/v1/emails", content=body)).status_code for body in bodies]
    ticks = False
    await ticking
    assert statuses == [422, 422, 202]
    assert longest < 2


async def test_every_problem_is_told_with_its_path(house: WebHouse, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/emails", json={"template": "welcome", "to": ["a@b@c"], "colour": "red"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    paths = {item["path"] for item in answer.json()["errors"]}
    assert "colour" in paths
    assert any(path.startswith("to") for path in paths)
    assert await queued(house) == 0


async def test_a_missing_template_is_refused_before_anything_is_queued(
    house: WebHouse, http: httpx.AsyncClient
) -> None:
    answer = await http.post("/v1/emails", json=REQUEST | {"template": "nope"})
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "template")
    assert await queued(house) == 0


async def test_an_idempotency_key_that_contradicts_the_id_is_refused(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": KEY.replace("11", "12")}
    assert (await http.post("/v1/emails", json=REQUEST | {"id": KEY}, headers=headers)).status_code == 422


async def test_a_queue_that_does_not_confirm_is_503_try_again(tmp_path: Path) -> None:
    async with open_web_house(tmp_path, changes={"submit": lambda app: ClosedQueue()}) as house, house.http() as http:
        answer = await http.post("/v1/emails", json=REQUEST)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["title"] == "not confirmed: the queue did not confirm; try again with the same id"
        assert len(answer.json()["id"]) == 36


@pytest.mark.parametrize("email_id", ["x", "0199b7a2", "%00", "..%2f..", "%ff", "'--", KEY])
@pytest.mark.parametrize("path", ["emails", "mails", "posts", "attachments"])
async def test_an_unknown_or_bad_id_is_a_plain_no(http: httpx.AsyncClient, path: str, email_id: str) -> None:
    answer = await http.get(f"/v1/{path}/{email_id}")
    assert answer.status_code in {404, 422}
    assert answer.headers["content-type"] == "application/problem+json"


async def test_an_email_is_cancelled_held_and_released_by_name(house: WebHouse, http: httpx.AsyncClient) -> None:
    await accept(house, KEY)
    for verb, changed in (("hold", 200), ("release", 200), ("cancel", 200), ("cancel", 409), ("hold", 409)):
        assert (await http.post(f"/v1/emails/{KEY}/{verb}")).status_code == changed, verb
    story = (await http.get(f"/v1/emails/{KEY}")).json()
    assert [step["step"] for step in story["timeline"]] == ["accepted", "held", "released", "cancelled"]
    assert (await http.post(f"/v1/emails/{new_id()}/cancel")).status_code == 404


async def test_a_sending_key_sees_and_cancels_its_own_apps_emails_only(house: WebHouse) -> None:
    keys = [await house.store.access.add_key("shop", ["send"]), await house.store.access.add_key("other", ["send"])]
    reader = await house.store.access.add_key("audit", ["read"])
    async with house.app(keys[0]) as shop, house.app(keys[1]) as other, house.app(reader) as audit:
        email_id = (await shop.post("/v1/emails", json=REQUEST)).json()["id"]
        [ticket] = await tickets(house)
        assert (ticket.app, ticket.id) == ("shop", email_id)
        assert (await other.get(f"/v1/emails/{email_id}")).status_code == 404
        await accept(house, email_id, app="shop")
        assert [(await app.get(f"/v1/emails/{email_id}")).status_code for app in (shop, other, audit)] == [
            200,
            404,
            200,
        ]
        listed = [len((await app.get("/v1/emails?app=shop")).json()["rows"]) for app in (shop, other, audit)]
        assert listed == [1, 0, 1]
        assert (await other.post(f"/v1/emails/{email_id}/cancel")).status_code == 404
        assert (await audit.post(f"/v1/emails/{email_id}/cancel")).status_code == 403
        assert (await shop.post(f"/v1/emails/{email_id}/release")).status_code == 403
        assert (await shop.post(f"/v1/emails/{email_id}/cancel")).json() == {"id": email_id, "changed": 1}


async def tickets(house: WebHouse) -> list[Any]:
    async with house.broker.consume({"email.send": 1}, concurrency=1) as consumer:
        async for lease in consumer:
            return [lease.ticket]
    return []


async def test_lists_are_paged_by_their_cursor(house: WebHouse, http: httpx.AsyncClient) -> None:
    ids = [new_id() for _ in range(5)]
    for email_id in ids:
        await accept(house, email_id)
    found: list[str] = []
    after = ""
    while True:
        page = (await http.get("/v1/emails", params={"limit": 2, "after": after, "oldest_first": True})).json()
        found += [row["id"] for row in page["rows"]]
        after = page["next"]
        if not after:
            break
    assert found == ids
    for bad in ({"limit": 0}, {"limit": 501}, {"limit": "x"}, {"after": "x"}, {"disposition": "lost"}):
        answer = await http.get("/v1/emails", params=bad)
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), bad
