"""The request's contract: every problem at once with its path, and a hash that knows the same content again."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from gateway.contract.canonical_json import canonical_json
from gateway.contract.email_send import Attachment, SendEmail, parse_send_email
from gateway.errors import InvalidRequest

ID = "0193d2a5-7f7e-7c37-8f67-1f2b6f0e9a10"
PLAIN: dict[str, Any] = {"id": ID, "to": ["ann@example.org"], "template": "invoice"}


def told(request: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as refused:
        parse_send_email(request)
    return {problem.path: problem.message for problem in refused.value.problems}


def test_every_problem_is_told_at_once_with_its_path() -> None:
    assert told(
        PLAIN
        | {
            "id": "42",
            "to": ["ann@example.org", "a@b@c"],
            "cc": ["a@b,c@d"],
            "from": "",
            "colour": "red",
            "tag": [],
            "headers": {"X-Good": "yes", "Bcc": "x", "X-Bad": "a\r\nBcc: x"},
            "params": {"items": [{"price": float("inf")}], "number": 2**60},
            "attachments": [
                {"filename": "../x", "data": ""},
                {"filename": "x", "data": "%"},
                {"filename": "y", "inlin": 1},
            ],
            "expires_at": "2026-01-01T00:00:00",
        }
    ) == {
        "id": "badly formed hexadecimal UUID string",
        "to[1]": "must contain exactly one @",
        "cc[0]": "is not one address: ',' is not allowed in it",
        "from": "is empty, an address like ann@example.org is needed",
        "colour": "unknown key",
        "tag": "unknown key, perhaps tags?",
        "headers.Bcc": "is set by the gateway",
        "headers.X-Bad": "contains a control character or line break",
        "params.items[0].price": "is not a finite number",
        "params.number": "is an integer beyond 2**53, give it as a string",
        "attachments[0].filename": "must be a plain file name without path or direction characters",
        "attachments[1]": "data is not base64: Only base64 data is allowed",
        "attachments[2].inlin": "unknown key, perhaps inline?",
        "expires_at": "Input should have timezone info",
    }


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"to": []}, "to"),
        ({"to": [f"a{i}@example.org" for i in range(101)]}, "to"),
        ({"template": None}, "template"),
        ({"template": "../etc"}, "template"),
        ({"template": None, "subject": "x"}, "text"),
        ({"subject": "x"}, "subject"),
        ({"html": "x"}, "html"),
        ({"template": None, "subject": "a\nb", "text": "x"}, "subject"),
        ({"template": None, "subject": "a", "text": "\0"}, "text"),
        ({"version": 2}, "version"),
        ({"stream": "slow"}, "stream"),
        ({"params": {"a": {1}}}, "params.a"),
        ({"params": {"a": "\ud800"}}, "params.a"),
        ({"attachments": [{"filename": "a", "data": "AAAA" * (3 * 1024 * 1024)}]}, "attachments"),
        ({"attachments": [{"filename": "a\u202efdp.exe", "data": ""}]}, "attachments[0].filename"),
        ({"attachments": [{"filename": "a", "data": "", "content_type": "x/y; a=b"}]}, "attachments[0].content_type"),
    ],
)
def test_one_mistake_is_told_once(changes: dict[str, Any], path: str) -> None:
    assert list(told(PLAIN | changes)) == [path]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"to": ["ann@example.org"] * 101}, "to", "has 101 items, at most 100"),
        ({"reply_to": ["ann@example.org"] * 500_000}, "reply_to", "has 500000 items, at most 100"),
        ({"metadata": {str(i): "" for i in range(200_000)}}, "metadata", "has 200000 items, at most 50"),
        ({"metadata": {"k": "x" * 2001}}, "metadata.k", "String should have at most 2000 characters"),
        ({"params": {"a": [0] * 1_000_000}}, "params", "has too many values"),
        ({"params": {"a": [[]] * 20_000}}, "params", "has too many values"),
        ({"params": {"a": "x" * 1024 * 1024}}, "params", "is too long"),
        ({"params": {"a": "\n" * 600_000}}, "params", "is too long"),
        ({"params": {"x" * 2_000_000: 1}}, "params", "is too long"),
        ({"params": nested(40)}, "params", "is nested deeper than 32 levels"),
        ({"params": nested(100_000)}, "params", "is nested deeper than 32 levels"),
        ({str(i): 1 for i in range(300_000)}, "(request)", "is too large or too deep"),
        ({"attachments": [{str(i): 1 for i in range(300_000)}]}, "(request)", "is too large or too deep"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_what_is_too_large_is_told_before_it_costs_anything(changes: dict[str, Any], path: str, message: str) -> None:
    began = time.process_time()
    [(where, what)] = told(PLAIN | changes).items()
    assert where == path
    assert what.startswith(message)
    assert time.process_time() - began < 0.5


def test_a_body_beyond_the_limit_is_not_even_parsed() -> None:
    assert told(b" " * (16 * 1024 * 1024 + 1)) == {"(request)": "has 16777217 bytes, at most 16777216"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"params": {"a": [' + b"[]," * 4_000_000 + b"[]]}}",
        b'{"to": [' + b'"a@b.example",' * 900_000 + b'""]}',
        b'{"text": "' + b'\\",' * 4_000_000,
        b'"' * 10_000_000 + b"," * 30_000,
    ],
    ids=["lists", "strings", "unended", "quotes"],
)
def test_what_has_too_many_values_is_told_without_parsing_it(body: bytes) -> None:
    began = time.process_time()
    assert list(told(body)) == ["(request)"]
    assert time.process_time() - began < 0.5


def test_commas_in_a_text_are_no_values() -> None:
    text = 'a, "b" \\ ' * 90_000
    assert parse_send_email(json.dumps(PLAIN | {"template": None, "subject": "x", "text": text})).text == text


def test_endless_problems_are_told_up_to_a_hundred_and_long_keys_cut() -> None:
    assert len(told(PLAIN | {"params": {str(i): float("nan") for i in range(10_000)}})) == 100
    [path] = told(PLAIN | {"x" * 1_000_000: 1})
    assert len(path) == 100


def test_large_honest_params_pass() -> None:
    rows = [{"name": f"item {i}", "price": i} for i in range(6_000)]
    assert len(parse_send_email(json.dumps(PLAIN | {"params": {"rows": rows}})).params["rows"]) == 6_000


def test_an_attachment_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    limit = 8 * 1024 * 1024
    exact = parse_send_email(PLAIN | {"attachments": [Attachment.of("a", bytes(limit)).model_dump()]})
    assert len(exact.attachments[0].octets()) == limit
    for extra in (1, 2, 3):
        problems = told(PLAIN | {"attachments": [Attachment.of("a", bytes(limit + extra)).model_dump()]})
        assert problems == {"attachments": f"{limit + extra} bytes inline, at most {limit}; upload a blob instead"}


@pytest.mark.parametrize(
    ("times", "path", "message"),
    [
        ({"send_at": "9999-12-31T23:59:59Z"}, "send_at", "is not between the years 2000 and 2100"),
        ({"expires_at": "9999-12-31T23:59:59-23:59"}, "expires_at", "is not between the years 2000 and 2100"),
        ({"send_at": "0001-01-01T00:00:00+23:59"}, "send_at", "is not between the years 2000 and 2100"),
        (
            {"send_at": "2026-12-01T10:00:00Z", "expires_at": "2026-12-01T11:00:00+01:00"},
            "expires_at",
            "is not after send_at",
        ),
    ],
)
def test_times_are_of_this_age_and_in_order(times: dict[str, str], path: str, message: str) -> None:
    assert told(PLAIN | times) == {path: message}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"to": ["\xff"]}'])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    assert list(told(body)) == ["(request)"]


def test_a_problem_is_one_line_whatever_the_path_holds() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_send_email(PLAIN | {"headers": {"X\r\n250 ok": "x"}})
    assert str(refused.value) == r"headers.X\r\n250 ok: is not a header name of letters, digits and hyphens"


def test_a_request_survives_its_own_json() -> None:
    request = SendEmail(
        to=("Ann <ann@example.org>",), from_="b@example.com", template="invoice", params={"number": 42}, list_="news"
    )
    assert parse_send_email(request.to_json()) == request
    assert set(json.loads(request.to_json())) == {"version", "id", "to", "from", "template", "params", "list"}


def test_recipients_are_each_once() -> None:
    request = SendEmail(
        to=("Ann <ann@Example.org>", "ann@example.org"),
        cc=('"ann"@example.org',),
        bcc=("Ann@example.org",),
        template="x",
    )
    assert request.recipients() == ["ann@Example.org", "Ann@example.org"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"params": {"a": 1, "b": 2}}, {"params": {"b": 2, "a": 1}}),
        ({"params": {"a": 1}}, {"params": {"a": 1.0}}),
        ({"params": {"a": 1e21}}, {"params": {"a": 1000000000000000000000.0}}),
        ({"cc": []}, {}),
        ({"version": 1}, {"stream": None}),
        (
            {"attachments": [Attachment.of("x", b"abc").model_dump()]},
            {"attachments": [{"filename": "x", "blob": Attachment.of("x", b"abc").digest()}]},
        ),
    ],
)
def test_the_same_content_has_the_same_hash(one: dict[str, Any], other: dict[str, Any]) -> None:
    hashes = {parse_send_email(PLAIN | changes | {"id": ID}).content_hash() for changes in (one, other)}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "changes",
    [{"params": {"a": 1}}, {"params": {"a": "1"}}, {"to": ["bob@example.org"]}, {"locale": "de"}, {"bcc": ["x@y"]}],
)
def test_other_content_has_another_hash(changes: dict[str, Any]) -> None:
    plain = parse_send_email(PLAIN)
    other = parse_send_email(PLAIN | changes)
    assert plain.content_hash() != other.content_hash()
    assert (
        plain.content_hash() == parse_send_email(PLAIN | {"id": "0193d2a5-7f7e-7c37-8f67-1f2b6f0e9a11"}).content_hash()
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        # the example of RFC 8785, section 3.2.2
        (333333333.33333329, "333333333.3333333"),
        (1e30, "1e+30"),
        (4.50, "4.5"),
        (2e-3, "0.002"),
        (1e-27, "1e-27"),
        # its appendix B
        (-0.0, "0"),
        (5e-324, "5e-324"),
        (-1.7976931348623157e308, "-1.7976931348623157e+308"),
        (9007199254740992, "9007199254740992"),
        (295147905179352830000, "295147905179352830000"),
        (9.999999999999997e22, "9.999999999999997e+22"),
        (1e23, "1e+23"),
        (999999999999999700000, "999999999999999700000"),
        (1e21, "1e+21"),
        (9.999999999999997e-7, "9.999999999999997e-7"),
        (0.000001, "0.000001"),
        (-0.0000033333333333333333, "-0.0000033333333333333333"),
        (1424953923781206.2, "1424953923781206.2"),
        # strings and keys (sections 3.2.2.2 and 3.2.3)
        ('€$\u000f\nA\'B"\\\\"/', '"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'),
        (
            {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7},
            '{"\\r":2,"1":4,"\u0080":6,"ö":7,"€":1,"😀":5,"\ufb33":3}',
        ),
        ([True, None, {}], "[true,null,{}]"),
    ],
)
def test_canonical_json_is_rfc_8785(value: Any, text: str) -> None:
    assert canonical_json(value) == text
