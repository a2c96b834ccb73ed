"""Who may ask: the open house for this machine only, the closed one for users and keys only, whatever a request claims."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from conftest import HTML, WebHouse, log_in

from gateway.web.guard import MAX_HEADERS, BodyLimits

STRANGE_ADDRESS = "203.0.113.9"
PATHS = ["/v1/emails", "/v1/mails", "/v1/openapi.json", "/metrics", "/v1/nothing", "/nothing", "/v1/events"]


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Host", "gateway.attacker.example", 421),
        ("Host", "localhost.attacker.example", 421),
        ("Host", "10.1.2.3", 421),
        ("Host", "[::1", 421),
        ("Host", "attacker.example@localhost", 421),
        ("Host", "localhost/static/?", 421),
        ("Origin", "http://attacker.example", 403),
        ("Origin", "http://localhost.attacker.example", 403),
        ("Origin", "null", 403),
        ("X-Forwarded-For", "127.0.0.1", 403),
        ("X-Forwarded-Proto", "https", 403),
        ("X-Forwarded-Port", "443", 403),
        ("Forwarded", "for=127.0.0.1", 403),
        ("Via", "1.1 proxy", 403),
        ("Content-Encoding", "gzip", 415),
        ("Content-Encoding", "br, identity", 415),
    ],
)
async def test_the_open_house_serves_this_machine_only(
    http: httpx.AsyncClient, header: str, value: str, status: int
) -> None:
    answer = await http.post("/v1/emails", content=b"{}", headers={header: value})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_the_open_house_serves_local_names_and_local_pages(http: httpx.AsyncClient) -> None:
    for headers in ({}, {"Host": "localhost"}, {"Host": "[::1]:8025"}, {"Origin": "http://localhost:3000"}):
        assert (await http.get("/v1/emails", headers=headers)).status_code == 200, headers


async def test_the_open_house_is_no_part_of_another_sites_page(http: httpx.AsyncClient) -> None:
    for site, mode, status in (
        ("cross-site", "no-cors", 403),
        ("cross-site", "cors", 403),
        ("cross-site", "navigate", 200),
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),
    ):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
        assert (await http.get("/v1/emails", headers=headers)).status_code == status, headers


async def test_nobody_from_elsewhere_finds_the_open_house(house: WebHouse, http: httpx.AsyncClient) -> None:
    house.appears_from(STRANGE_ADDRESS)
    for path in PATHS:
        assert (await http.get(path)).status_code == 403, path
    assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("how", ["user", "key"])
async def test_the_first_user_or_key_closes_the_house_at_once(
    house: WebHouse, http: httpx.AsyncClient, how: str
) -> None:
    assert (await http.get("/v1/emails")).status_code == 200
    key = ""
    if how == "user":
        await house.add_user()
    else:
        key = await house.store.access.add_key("shop", ["read"])
    assert (await http.get("/v1/emails")).status_code == 401
    assert await (house.store.access.remove_user("ann") if how == "user" else house.store.access.revoke_key(key))
    assert (await http.get("/v1/emails")).status_code == 200


async def test_a_closed_house_says_the_same_of_everything(house: WebHouse, http: httpx.AsyncClient) -> None:
    key = await house.store.access.add_key("shop", ["read"])
    answers = set()
    for path in PATHS:
        for headers in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": f"Bearer {key[:-1]}x"},
            {"Cookie": "gateway_session=x"},
        ):
            answer = await http.get(path, headers=headers)
            answers.add(
                (answer.status_code, answer.headers["content-type"], answer.headers["www-authenticate"], answer.text)
            )
    assert len(answers) == 1
    status, kind, challenge, text = answers.pop()
    assert (status, kind, challenge) == (401, "application/problem+json", 'Bearer realm="gateway"')
    assert "shop" not in text
    for path in ("/healthz", "/readyz"):
        assert (await http.get(path)).status_code == 200


async def test_a_browser_is_led_to_the_login_and_back_to_where_it_was(house: WebHouse, http: httpx.AsyncClient) -> None:
    await house.add_user()
    answer = await http.get("/v1x/y?a=b&c=d", headers=HTML)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2Fv1x%2Fy%3Fa%3Db%26c%3Dd")
    assert (await http.post("/anything", headers=HTML)).status_code == 401


@pytest.mark.parametrize(("scope", "statuses"), [("send", [200, 403, 403]), ("read", [200] * 3), ("admin", [200] * 3)])
async def test_a_key_opens_what_its_scope_names_and_nothing_when_revoked(
    house: WebHouse, scope: str, statuses: list[int]
) -> None:
    key, _ = [await house.store.access.add_key(app, [scope]) for app in ("shop", "other")]
    async with house.app(key) as app:
        assert [(await app.get(path)).status_code for path in ("/v1/emails", "/v1/mails", "/v1/posts")] == statuses
        assert await house.store.access.revoke_key(key[:11])
        assert (await app.get("/v1/emails")).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "gateway.test"}, 200),
        ({"Host": "mail.example.org"}, 200),
        ({"Host": "203.0.113.80:8025"}, 200),
        ({"Host": "rebound.attacker.example"}, 421),
        ({"Host": "mail.example.org.attacker.example"}, 421),
        ({"Host": "mail.example.org", "Origin": "https://mail.example.org"}, 200),
        ({"Host": "mail.example.org", "Origin": "https://attacker.example"}, 403),
        ({"Host": "mail.example.org", "Origin": "null"}, 403),
        ({"Host": "mail.example.org", "Origin": "https://mail.example.org:444"}, 403),
    ],
)
async def test_the_closed_house_answers_to_its_own_names_and_pages(
    open_house: Callable[..., Any], headers: dict[str, str], status: int
) -> None:
    async with open_house(public_url="https://mail.example.org", hostname="gateway.test") as house:
        house.appears_from(STRANGE_ADDRESS)
        key = await house.store.access.add_key("shop", ["read"])
        async with house.app(key) as app:
            assert (await app.get("/v1/emails", headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.5", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.5", "6.6.6.6, 198.51.100.7, 10.0.0.9", "198.51.100.7"),
        ("10.0.0.5", "nonsense", "10.0.0.5"),
        ("10.0.0.5", "", "10.0.0.5"),
        ("198.51.100.7", "127.0.0.1", "198.51.100.7"),
        ("127.0.0.1", "10.0.0.9", "127.0.0.1"),
    ],
)
async def test_only_trusted_proxies_say_who_the_client_is(
    open_house: Callable[..., Any], peer: str, forwarded: str, client: str
) -> None:
    async with open_house(trusted_hosts=("10.0.0.0/8",)) as house, house.http() as http:
        await house.add_user()
        house.appears_from(peer)
        page = await http.get("/login", headers=HTML)
        assert page.status_code == 200
        form = {"name": "ann", "password": "wrong", "form_token": _token(page.text)}
        answer = await http.post(
            "/login", data=form, headers=HTML | {"Origin": house.url, "X-Forwarded-For": forwarded}
        )
        assert answer.status_code == 403
        assert f"client={client!r}" in house.log.getvalue()


def _token(page: str) -> str:
    return page.split('name="form_token" value="')[1].split('"')[0]


async def test_a_session_changes_things_from_our_own_pages_only(house: WebHouse) -> None:
    await house.add_user()
    async with house.http() as browser:
        assert (await log_in(browser)).status_code == 303
        for origin, status in ((None, 403), ("http://attacker.example", 403), ("null", 403), (house.url, 422)):
            headers = {} if origin is None else {"Origin": origin}
            assert (await browser.post("/v1/emails", content=b"{}", headers=headers)).status_code == status, origin
        assert (await browser.get("/v1/emails")).status_code == 200


@pytest.mark.parametrize("request_headers", [b"", b"Host: localhost\r\nHost: localhost\r\n"])
async def test_a_host_missing_or_given_twice_is_refused(house: WebHouse, request_headers: bytes) -> None:
    said = await house.raw(b"GET /v1/emails HTTP/1.1\r\n" + request_headers + b"Connection: close\r\n\r\n")
    assert said.split()[1] in {b"400", b"421"}


async def test_a_body_announced_too_large_is_refused_unread(house: WebHouse) -> None:
    for path in (b"/v1/emails", b"/v1/blobs", b"/login"):
        said = await house.raw(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n" % path)
        assert said.startswith(b"HTTP/1.1 413 "), path


@pytest.mark.parametrize("path", ["/v1/emails", "/v1/blobs", "/v1/posts"])
async def test_a_body_without_a_length_is_cut_off_at_the_limit(
    house: WebHouse, http: httpx.AsyncClient, path: str
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            yield b" " * 1024 * 1024
            sent += 1024 * 1024

    try:
        assert (await http.post(path, content=endless())).status_code == 413
    except httpx.NetworkError:
        pass  # shut while we were still pushing: the answer may be lost in the reset, the body was cut off all the same
    assert sent < 100 * 1024 * 1024
    left = list((house.settings.data_dir / "blobs").glob("*/*"))
    assert left == [], "nothing is left of what was cut off"


async def test_a_flood_of_headers_is_refused(house: WebHouse) -> None:
    many = b"".join(b"X-%d: y\r\n" % number for number in range(MAX_HEADERS + 1))
    said = await house.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n")
    assert said.startswith(b"HTTP/1.1 431 ")
    said = await house.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000 + b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 400 ")


async def test_a_body_that_does_not_come_is_ended(open_house: Callable[..., Any]) -> None:
    async with open_house(limits=BodyLimits(idle_seconds=0.2)) as house:
        said = await house.raw(b"POST /v1/emails HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        assert said.startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_drips_is_ended(open_house: Callable[..., Any]) -> None:
    async with open_house(limits=BodyLimits(idle_seconds=0.2, least_rate=1e9)) as house:
        reader, writer = await asyncio.open_connection(*house.address)
        writer.write(b"POST /v1/blobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")

        async def drip() -> None:
            while not writer.is_closing():
                writer.write(b"x")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(30):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        dripping.cancel()
        writer.close()


async def test_headers_that_do_not_come_end_the_connection(house: WebHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.web.serve.PatientProtocol.header_seconds", 0.2)
    for begun in (b"", b"GET /healthz HTTP/1.1\r\nHost: loc"):
        assert await house.raw(begun) == b""
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    said = await house.raw(whole + b"GET /healthz HTT")
    assert said.count(b"HTTP/1.1 200") == 1


async def test_more_connections_than_we_hold_are_closed(house: WebHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.web.serve.PatientProtocol.max_connections", 2)
    held = [await asyncio.open_connection(*house.address) for _ in range(2)]
    assert await house.raw(b"") == b""
    for _, writer in held:
        writer.close()


async def test_one_client_cannot_hold_all_connections(house: WebHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.web.serve.PatientProtocol.max_per_client", 2)
    held = [await asyncio.open_connection(*house.address) for _ in range(2)]
    assert await house.raw(b"") == b""
    for _, writer in held:
        writer.close()


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/static/../../etc/passwd", "/static/%2e%2e%2fx"]
)
async def test_no_path_leads_out(house: WebHouse, path: str) -> None:
    said = await house.raw(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
    assert said.split()[1] == b"404"
    assert b"root:" not in said


async def test_every_answer_forbids_guessing_and_framing(http: httpx.AsyncClient) -> None:
    for answer in (await http.get("/v1/emails"), await http.get("/nothing"), await http.get("/login", headers=HTML)):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"


async def test_a_store_that_does_not_answer_is_503_and_a_known_key_still_queues(house: WebHouse, monkeypatch) -> None:
    from gateway.errors import StoreUnavailable

    key = await house.store.access.add_key("shop", ["send", "read"])
    other = await house.store.access.add_key("other", ["send"])

    async def away(*args: Any, **values: Any) -> Any:
        raise StoreUnavailable("the store is away")

    async with house.app(key) as app, house.app(other) as stranger:
        assert (await app.get("/v1/emails")).status_code == 200
        monkeypatch.setattr(house.store.database, "read", away)
        request = {"template": "welcome", "to": ["ann@example.org"], "params": {"name": "Ann"}}
        assert (await app.post("/v1/emails", json=request)).status_code == 202
        for client, path in ((stranger, "/v1/emails"), (app, "/v1/emails"), (app, "/v1/mails"), (app, "/v1/events")):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), path
        assert (await app.get("/readyz")).status_code == 503
        assert (await app.get("/healthz")).status_code == 200
