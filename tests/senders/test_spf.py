"""SPF as RFC 7208 has it: the RFC's own suite, through our resolver and a real (if small) name server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_dns import FakeDns

from gateway.inbound.authenticate.resolver import Budget, Resolver
from gateway.inbound.authenticate.spf import evaluate

SUITE = Path(__file__).parent / "rfc7208" / "rfc7208-tests.yml"


def scenarios() -> list[dict[str, Any]]:
    with SUITE.open("rb") as file:  # absent = a failure of this module
        return [scenario for scenario in yaml.safe_load_all(file) if scenario]


def cases() -> Iterator[Any]:
    for scenario in scenarios():
        for name, case in scenario["tests"].items():
            yield pytest.param(scenario["zonedata"], case, id=f"{name}")


def records(zone: dict[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """The suite's zone; its TIMEOUT is a SERVFAIL here (both are no answer), its SPF records are TXT where it has none."""
    return {name: list(_records(found)) for name, found in zone.items()}


def _records(found: list[Any]) -> Iterator[tuple[str, Any]]:
    given = {kind for item in found if item != "TIMEOUT" for kind, value in item.items() if value != "NONE"}
    for item in found:
        if item == "TIMEOUT":
            yield from (("FAULT", kind) for kind in {"A", "AAAA", "MX", "TXT", "PTR"} - given)
            continue
        for kind, value in item.items():
            if value == "TIMEOUT":
                yield "FAULT", kind
            elif value != "NONE" and kind != "SPF":
                yield kind, value
            elif kind == "SPF" and "TXT" not in item_kinds(found):
                yield "TXT", value


def item_kinds(found: list[Any]) -> set[str]:
    return {kind for item in found if item != "TIMEOUT" for kind in item}


@pytest.mark.parametrize(("zone", "case"), list(cases()))
async def test_the_rfc_suite_finds_what_it_expects(zone: dict[str, Any], case: dict[str, Any]) -> None:
    expected = case["result"] if isinstance(case["result"], list) else [case["result"]]
    async with FakeDns(records(zone)) as dns:
        budget = Budget(Resolver([dns.server]), seconds=60)
        mail_from = case["mailfrom"] or f"postmaster@{case['helo']}"
        sender = mail_from if "@" in mail_from else f"postmaster@{mail_from}"
        result, reason = await evaluate(case["host"], sender, case["helo"], budget.ask)
    assert result in expected, reason
