"""What the whole web service says no to, as a browser and as a program hear it; and what forged questions are answered."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import HTML, form_token_in

from gateway.app.making import Store
from gateway.app.parts import Parts
from gateway.app.web import open_web
from gateway.errors import StoreUnavailable
from gateway.maillog import MailLog
from gateway.runtime import Stop
from gateway.settings import Settings
from gateway.web.serve import serve_http


@dataclass
class Whole:
    """The web service as it is put together, and the store behind it."""

    url: str
    store: Store


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    parts = Parts(Settings(data_dir=tmp_path, min_free_bytes=0).filled(), MailLog(stream=StringIO()))
    async with AsyncExitStack() as stack:
        web, listener, stop = await open_web(parts, stack), socket.create_server(("127.0.0.1", 0)), Stop()
        serving = asyncio.create_task(serve_http(web.app, listener, stop, grace_seconds=1, on_stop=web.close))
        yield Whole(f"http://127.0.0.1:{listener.getsockname()[1]}", await parts.store(stack))
        stop.set()
        async with asyncio.timeout(20):
            await serving


@pytest.fixture
async def browser(whole: Whole) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=whole.url, trust_env=False, timeout=30, headers=HTML) as client:
        yield client


def assert_is_page(answer: httpx.Response, status: int, words: str) -> None:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert words in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert "set-cookie" not in answer.headers


async def test_a_browser_reads_refusals_and_a_program_parses_them(browser: httpx.AsyncClient) -> None:
    for headers, status, words in (
        ({"Host": "attacker.example"}, 421, "Not under this name"),
        ({"Origin": "http://attacker.example"}, 403, "Requests from other origins are not served."),
        ({"Content-Encoding": "gzip"}, 415, "Compressed bodies are not read; send it plain."),
    ):
        assert_is_page(await browser.get("/mails", headers=headers), status, words)
        answer = await browser.get("/mails", headers=headers | {"Accept": "*/*"})
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        answer = await browser.get("/v1/mails", headers=headers)
        assert (answer.status_code, answer.json()["status"]) == (status, status)


async def test_a_button_of_a_session_that_is_over_leads_to_the_login(whole: Whole, browser: httpx.AsyncClient) -> None:
    await whole.store.access.add_key("shop", ["read"])
    answer = await browser.post("/mails/x/release", data={"form_token": "x"})
    assert_is_page(answer, 401, "Log in first")
    assert answer.headers["www-authenticate"] == 'Bearer realm="gateway"'


async def test_a_login_form_that_is_too_old_is_a_page_that_says_so(whole: Whole, browser: httpx.AsyncClient) -> None:
    await whole.store.access.add_key("shop", ["read"])
    page = await browser.get("/login")
    form = {"name": "ann", "password": "x", "form_token": form_token_in(page.text)}
    browser.cookies.clear()
    answer = await browser.post("/login", data=form)
    assert (answer.status_code, "too old or not ours" in answer.text) == (403, True)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


async def test_a_store_that_is_away_is_said_in_plain_words_with_its_style(
    whole: Whole, browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*args: Any, **values: Any) -> Any:
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(whole.store.database, "read", away)
    answer = await browser.get("/mails")
    assert_is_page(answer, 503, "Nothing is lost")
    assert answer.headers["retry-after"] == "5"
    style = answer.text.split('rel="stylesheet" href="')[1].split('"')[0]
    assert (await browser.get(style)).headers["content-type"].startswith("text/css")
    answer = await browser.get("/v1/mails")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert (await browser.get("/static/pages.css", headers={"Host": "attacker.example"})).status_code == 421


def cursor(*values: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "forged",
    [
        cursor("9999-12-31T23:59:59-23:59", "x", 1),
        cursor("0001-01-01T00:00:00+23:59", "x", 1),
        cursor("2026-01-01T00:00:00+00:00", "x", 10**30),
        cursor("2026-01-01T00:00:00+00:00", "x", -1),
        cursor("2026-01-01T00:00:00+00:00", "x", True),
        cursor("2026-01-01T00:00:00", "x", 1),
        cursor({}, []),
        "x" * 900,
    ],
)
async def test_a_forged_cursor_is_told_and_no_fault(browser: httpx.AsyncClient, forged: str) -> None:
    answer = await browser.get("/v1/emails", params={"after": forged})
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "after")
    assert (await browser.get("/emails", params={"after": forged})).status_code == 400


async def test_the_first_and_the_last_day_there_are_can_be_asked_for(browser: httpx.AsyncClient) -> None:
    assert (await browser.get("/mails?since=0001-01-01&until=9999-12-31")).status_code == 200
    assert (await browser.get("/mails?until=tomorrow")).status_code == 400
