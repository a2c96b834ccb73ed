"""The open API is for this machine's people and programs only."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.contract.email_send import Attachment, SendEmail
from gateway.errors import Problem, QueueUnavailable
from gateway.runtime import Stop
from gateway.web.api import REMEMBERED_IDS, _Queued, create_api, serve_api


class Desk:
    """Stands in for the queue's client: keeps what is submitted, or is out of order."""

    def __init__(self) -> None:
        self.kept: list[SendEmail] = []
        self.out_of_order = False
        self.is_accepted = True

    async def send(self, email: SendEmail, /) -> str:
        if self.out_of_order:
            raise QueueUnavailable("the queue did not confirm")
        self.kept.append(email)
        return email.id


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
async def http(desk: Desk) -> AsyncIterator[httpx.AsyncClient]:
    async def story(email_id: str) -> dict[str, Any] | None:
        known = any(email.id == email_id for email in desk.kept) and desk.is_accepted
        return {"id": email_id} if known else None

    async def readiness() -> list[str]:
        return ["the queue does not answer"] if desk.out_of_order else []

    def check(email: SendEmail) -> list[Problem]:
        return [Problem("template", "no template 'nope'")] if email.template == "nope" else []

    listener = socket.create_server(("127.0.0.1", 0))
    stop = Stop()
    api = create_api(submit=desk, check=check, story=story, readiness=readiness)
    serving = asyncio.create_task(serve_api(api, listener, stop, grace_seconds=1))
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
        yield client
    stop.set()
    await serving


REQUEST = {"template": "welcome", "to": ["ann@example.org"], "params": {"name": "Ann"}}


async def test_an_email_is_queued_and_told_with_its_place(http: httpx.AsyncClient, desk: Desk) -> None:
    key = "0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b11"
    answer = await http.post("/v1/emails", json=REQUEST, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()) == (202, {"id": key, "status": "queued"})
    assert (await http.get(answer.headers["location"])).json() == {"id": key}
    assert [email.id for email in desk.kept] == [key]


async def test_an_email_is_pending_between_the_queue_and_the_ledger(http: httpx.AsyncClient, desk: Desk) -> None:
    desk.is_accepted = False
    email_id = (await http.post("/v1/emails", json=REQUEST)).json()["id"]
    answer = await http.get(f"/v1/emails/{email_id.upper()}")
    assert (answer.status_code, answer.json()) == (200, {"id": email_id, "status": "pending"})
    unknown = await http.get("/v1/emails/0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b19")
    assert (unknown.status_code, unknown.headers["retry-after"]) == (404, "1")
    desk.is_accepted = True
    assert (await http.get(f"/v1/emails/{email_id}")).json() == {"id": email_id}


def test_the_ids_remembered_are_bounded() -> None:
    queued = _Queued()
    for number in range(REMEMBERED_IDS + 1):
        queued.add(str(number))
    assert ("0" in queued, "1" in queued, str(REMEMBERED_IDS) in queued) == (False, True, True)


@pytest.mark.parametrize("body", [REQUEST, REQUEST | {"id": "0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b11"}])
async def test_an_idempotency_key_may_stand_in_quotes(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    key = "0199B7A2-6d0e-7c3c-9e1f-0a4c7a1f2b11"
    answer = await http.post("/v1/emails", json=body, headers={"Idempotency-Key": f'"{key}"'})
    assert (answer.status_code, answer.json()["id"]) == (202, key.lower())


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b11"}])
@pytest.mark.parametrize("body", ["[" * 200_000, '{"params": ' + "[" * 200_000, '{"a":' * 200_000])
async def test_endless_nesting_is_a_bad_request(http: httpx.AsyncClient, body: str, headers: dict[str, str]) -> None:
    answer = await http.post("/v1/emails", content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_huge_request_keeps_nobody_waiting(http: httpx.AsyncClient, desk: Desk) -> None:
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
    statuses = [(await http.post("/v1/emails", content=body, timeout=30)).status_code for body in bodies]
    ticks = False
    await ticking
    assert statuses == [422, 422, 202]
    assert longest < 2


async def test_every_problem_is_told_with_its_path(http: httpx.AsyncClient, desk: Desk) -> None:
    answer = await http.post("/v1/emails", json={"template": "welcome", "to": ["a@b@c"], "colour": "red"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    paths = {item["path"] for item in answer.json()["errors"]}
    assert "colour" in paths
    assert any(path.startswith("to") for path in paths)
    assert desk.kept == []


async def test_a_missing_template_is_refused_before_anything_is_queued(http: httpx.AsyncClient, desk: Desk) -> None:
    answer = await http.post("/v1/emails", json=REQUEST | {"template": "nope"})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"path": "template", "message": "no template 'nope'"}]
    assert desk.kept == []


async def test_an_idempotency_key_that_contradicts_the_id_is_refused(http: httpx.AsyncClient) -> None:
    body = REQUEST | {"id": "0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b11"}
    answer = await http.post(
        "/v1/emails", json=body, headers={"Idempotency-Key": "0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b12"}
    )
    assert answer.status_code == 422


async def test_a_queue_that_does_not_confirm_is_503_try_again(http: httpx.AsyncClient, desk: Desk) -> None:
    desk.out_of_order = True
    answer = await http.post("/v1/emails", json=REQUEST)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["title"] == "not confirmed: the queue did not confirm; try again with the same id"
    assert len(answer.json()["id"]) == 36
    assert (await http.get("/readyz")).status_code == 503
    assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Host", "gateway.attacker.example", 421),
        ("Host", "localhost.attacker.example", 421),
        ("Origin", "http://attacker.example", 403),
        ("Origin", "null", 403),
        ("X-Forwarded-For", "127.0.0.1", 403),
        ("Forwarded", "for=127.0.0.1", 403),
        ("Content-Encoding", "gzip", 415),
    ],
)
async def test_who_is_not_from_here_is_refused(
    http: httpx.AsyncClient, desk: Desk, header: str, value: str, status: int
) -> None:
    answer = await http.post("/v1/emails", content=b"{}", headers={header: value})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert desk.kept == []


async def test_a_body_announced_too_large_is_refused_unread(http: httpx.AsyncClient, desk: Desk) -> None:
    reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    writer.write(b"POST /v1/emails HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_body_without_a_length_is_cut_off_at_the_limit(http: httpx.AsyncClient, desk: Desk) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b" " * 1024 * 1024

    sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        async for chunk in endless():
            sent += len(chunk)
            yield chunk

    try:
        answer = await http.post("/v1/emails", content=counted())
        assert answer.status_code == 413
    except httpx.NetworkError:
        pass  # shut while we were still pushing: the answer may be lost in the reset, the body was cut off all the same
    assert sent < 100 * 1024 * 1024
    assert desk.kept == []


@pytest.mark.parametrize("email_id", ["x", "0199b7a2", "%00", "..%2f..", "0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b11"])
async def test_an_unknown_or_bad_id_is_a_plain_no(http: httpx.AsyncClient, email_id: str) -> None:
    answer = await http.get(f"/v1/emails/{email_id}")
    assert answer.status_code in {404, 422}
