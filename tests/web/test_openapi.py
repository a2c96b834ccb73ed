"""OpenAPI is complete and true: whatever it allows to be asked is answered as it says, and never with a fault of ours."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from conftest import open_web_house
from hypothesis import HealthCheck, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from gateway.contract.documents import MODELS, asyncapi, json_schema
from gateway.web.api import described_api, openapi_document

DOCUMENT = openapi_document(described_api())
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A house in a loop of its own, for tests that block."""
    ready, url = threading.Event(), ""
    loop = asyncio.new_event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        nonlocal url
        async with open_web_house(tmp_path_factory.mktemp("openapi")) as house:
            url = house.url
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(60)
    yield url
    loop.call_soon_threadsafe(done.set)
    thread.join(60)
    loop.close()


# an event stream does not end: tests/web/test_events_stream.py has it
schema = schemathesis.openapi.from_dict(DOCUMENT).exclude(path="/v1/events")


@schema.parametrize()
@settings(max_examples=max(20, settings().max_examples // 4), deadline=None, suppress_health_check=list(HealthCheck))
def test_what_may_be_asked_is_answered_as_it_says(case: schemathesis.Case, served: str) -> None:
    case.call_and_validate(base_url=served, checks=CHECKS, timeout=60)


def test_every_operation_says_its_errors_and_who_may_ask() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            assert operation["summary"], (method, path)
            if path in {"/healthz", "/readyz"}:
                assert operation["security"] == []
                continue
            for status in ("401", "403", "503"):
                assert list(operation["responses"][status]["content"]) == ["application/problem+json"], (method, path)
    assert "HTTPValidationError" not in json.dumps(DOCUMENT["paths"])


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


@pytest.mark.parametrize("document", [DOCUMENT, asyncapi()], ids=["openapi", "asyncapi"])
def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert found
    for reference in found:
        place: Any = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]
        assert place


@pytest.mark.parametrize("name", MODELS)
def test_the_json_schema_of_each_contract_takes_what_the_contract_takes(name: str) -> None:
    validator = jsonschema_rs.validator_for(json_schema(name))
    samples: dict[str, tuple[Any, Any]] = {
        "email.send": ({"template": "welcome", "to": ["ann@example.org"]}, {"to": "x"}),
        "email.control": ({"action": "cancel", "email_id": "x"}, {"action": "stop", "email_id": "x"}),
        "post.create": ({"author": "Ann", "title": "Hello"}, {"author": "Ann", "colour": "red"}),
        "answer": (
            {"id": "1", "status": "rejected", "errors": ["to: no"]},
            {"id": "1", "status": "maybe", "errors": []},
        ),
        "event": (
            {"id": "1", "source": "//x/gateway", "type": "post.created", "subject": "s", "time": "2026-01-01T00:00:00Z"}
            | {"sequence": "0" * 20},
            {"type": "post.lost"},
        ),
    }
    good, bad = samples[name]
    assert validator.is_valid(good)
    assert not validator.is_valid(bad)


def test_asyncapi_names_every_event_and_command(tmp_path: Path) -> None:
    document = asyncapi()
    assert document["asyncapi"] == "3.0.0"
    assert {"email.send", "email.control", "post.create", "email.relayed", "mail.held"} <= set(
        document["components"]["messages"]
    )
