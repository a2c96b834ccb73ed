"""`/v1/events`: each event once and in order, gone on with after a break, with heartbeats, for so many and no more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from conftest import WebHouse, log_in

from gateway.contract.email_send import SendEmail
from gateway.mail.ids import new_id
from gateway.store.database import Database
from gateway.store.outbox_reader import OutboxReader
from gateway.store.schema import outbox
from gateway.web.api.events import STREAMS_PER_CLIENT


async def accept(house: WebHouse) -> str:
    email = SendEmail.model_validate({"to": ["ann@example.org"], "subject": "s", "text": "t"})
    await house.store.ledger.record_accepted(
        email, app="", content_hash="h", ticket_id=email.id, stream="normal", message_id=f"<{email.id}@x>"
    )
    return email.id


@asynccontextmanager
async def listening(http: httpx.AsyncClient, **values: Any) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
    """An open stream, as the blocks it says."""
    async with http.stream("GET", "/v1/events", timeout=30, **values) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")

        async def blocks() -> AsyncIterator[dict[str, str]]:
            block: dict[str, str] = {}
            async for line in answer.aiter_lines():
                if not line:
                    yield block
                    block = {}
                else:
                    name, _, value = line.partition(": ")
                    block[name] = value

        said = blocks()
        assert "" in await anext(said)
        yield said


async def next_event(said: AsyncIterator[dict[str, str]]) -> dict[str, str]:
    async with asyncio.timeout(30):
        while "data" not in (block := await anext(said)):
            pass
        return block


async def test_events_are_told_as_they_happen_and_gone_on_with(house: WebHouse, http: httpx.AsyncClient) -> None:
    await accept(house)
    async with listening(http) as said:
        ids = [await accept(house) for _ in range(3)]
        told = [await next_event(said) for _ in ids]
    events = [json.loads(block["data"]) for block in told]
    assert [event["subject"] for event in events] == ids
    assert {block["event"] for block in told} == {"email.accepted"} == {event["type"] for event in events}
    ids.append(await accept(house))
    async with listening(http, headers={"Last-Event-ID": told[0]["id"]}) as said:
        again = [json.loads((await next_event(said))["data"])["subject"] for _ in range(3)]
    assert again == ids[1:]


async def test_only_what_is_wanted_is_told(house: WebHouse, http: httpx.AsyncClient) -> None:
    async with listening(http, params={"types": "post.* email.c*"}) as by_type:
        first, second = await accept(house), await accept(house)
        async with listening(http, params={"subject": second}) as by_subject:
            for email_id in (first, second):
                await house.store.ledger.cancel(email_id)
            assert [(await next_event(by_type))["event"] for _ in range(2)] == ["email.cancelled"] * 2
            assert json.loads((await next_event(by_subject))["data"])["subject"] == second


async def test_a_silent_line_is_kept_alive_and_ends_with_the_gateway(open_house) -> None:
    async with open_house() as house, house.http() as http, listening(http) as said:
        async with asyncio.timeout(30):
            assert await anext(said) == {"": "still here"}
        ended = asyncio.create_task(anext(said, None))
        house.stop()
        async with asyncio.timeout(30):
            while await ended is not None:
                ended = asyncio.create_task(anext(said, None))


async def test_a_client_has_so_many_streams_and_gets_them_back(house: WebHouse, http: httpx.AsyncClient) -> None:
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:
        for _ in range(STREAMS_PER_CLIENT):
            await stack.enter_async_context(listening(http))
        refused = await http.get("/v1/events")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
    async with asyncio.timeout(30):
        while house.streams.is_full_for("127.0.0.1"):
            await asyncio.sleep(0.05)  # the server notices a closed connection by itself
    async with listening(http):
        pass


@pytest.mark.parametrize("how", ["the key is revoked", "the house is closed", "the session is ended"])
async def test_a_stream_ends_when_its_asker_lost_the_right_to_it(
    house: WebHouse, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("gateway.web.guard.LOOK_AGAIN_SECONDS", 0.0)
    access = house.store.access
    key = await access.add_key("shop", ["read"]) if how == "the key is revoked" else ""
    async with house.app(key) if key else house.http() as http:
        if how == "the session is ended":
            await house.add_user()
            assert (await log_in(http)).status_code == 303
        async with listening(http) as said:
            await accept(house)
            assert await next_event(said)
            match how:
                case "the key is revoked":
                    assert await access.revoke_key(key)
                case "the house is closed":
                    await access.add_key("shop", ["send"])
                case _:
                    assert await access.remove_user("ann")
            secret = await accept(house)
            async with asyncio.timeout(30):
                rest = [block async for block in said]
    assert secret not in str(rest)


async def test_a_reader_who_comes_from_an_older_store_hears_what_happens_now(
    house: WebHouse, http: httpx.AsyncClient
) -> None:
    await accept(house)
    async with listening(http, headers={"Last-Event-ID": "1000000"}) as said:
        email_id = await accept(house)
        assert json.loads((await next_event(said))["data"])["subject"] == email_id


@pytest.mark.parametrize(
    "values", [{"headers": {"Last-Event-ID": "x"}}, {"headers": {"Last-Event-ID": "-1"}}, {"params": {"subject": "x"}}]
)
async def test_a_bad_beginning_is_refused(http: httpx.AsyncClient, values: dict[str, Any]) -> None:
    assert (await http.get("/v1/events", **values)).status_code == 422


async def test_an_event_committed_late_is_still_read_once(house: WebHouse) -> None:
    """As where several write at once: a lower number becomes visible after a higher one."""
    database: Database = house.store.database

    async def put(number: int) -> None:
        values = {
            "id": number,
            "event_id": new_id(),
            "type": "post.created",
            "subject": "s",
            "created_at": None,
            "body": b"",
        }
        from gateway.runtime import utc_now

        values["created_at"] = utc_now()
        await database.write(lambda connection: connection.execute(sa.insert(outbox), values).rowcount)

    await put(1)
    reader = OutboxReader(database)
    await reader.begin(None)
    for number in (3, 2, 500, 499):
        await put(number)
        assert [event.number for event in await reader.read()] == [number]
    assert await reader.read() == []
