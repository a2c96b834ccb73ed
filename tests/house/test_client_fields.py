"""What a client is given becomes the request, or is refused with its name: nothing is dropped or guessed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from gateway.client import Client, build_request
from gateway.contract.email_send import SendEmail
from gateway.errors import InvalidRequest

UUID_TEXT = "0193d2a5-7f7e-7c37-8f67-1f2b6f0e9a10"


class Colour(Enum):
    RED = "red"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with Client(f"sqlite:///{tmp_path}/queue.db") as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({"to": "bob@example.org"}, ["to"]),
        ({"params": {}}, ["params"]),
        ({"attachments": [Path("x")], "stream": "bulk"}, ["attachments", "stream"]),
    ],
)
async def test_fields_beside_a_whole_request_are_refused(
    client: Client, fields: dict[str, Any], paths: list[str]
) -> None:
    email = SendEmail(to=("ann@example.org",), template="welcome")
    with pytest.raises(InvalidRequest) as refused:
        await client.send(email, **fields)
    assert [problem.path for problem in refused.value.problems] == paths
    assert await client.send(email) == email.id


def test_values_everybody_writes_the_same_way_are_written() -> None:
    given = {
        "at": datetime(2026, 11, 21, tzinfo=UTC),
        "day": date(2026, 11, 21),
        "id": UUID(UUID_TEXT),
        "sum": Decimal("1.10"),
        "colour": Colour.RED,
    }
    assert build_request("welcome", "ann@example.org", (), {"params": given}).params == {
        "at": "2026-11-21T00:00:00+00:00",
        "day": "2026-11-21",
        "id": UUID_TEXT,
        "sum": "1.10",
        "colour": "red",
    }


def endless() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["again"] = value
    return value


@pytest.mark.parametrize(
    ("params", "path", "message"),
    [
        ({"order": {"items": [1, object()]}}, "params.order.items[1]", "is not a JSON value (object)"),
        ({"raw": b"x"}, "params.raw", "is not a JSON value (bytes)"),
        ({"some": {1, 2}}, "params.some", "is not a JSON value (set)"),
        ({"table": {(1, 2): 3}}, "params.table", "has the key (1, 2), which is not text"),
        (endless(), "params" + ".again" * 32, "is nested too deep, or holds itself"),
    ],
)
def test_what_is_no_json_is_refused_with_its_path(params: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        build_request("welcome", "ann@example.org", (), {"params": params})
    assert [(item.path, item.message) for item in refused.value.problems] == [(path, message)]
