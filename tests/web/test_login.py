"""How people become known: sessions that cannot be guessed, fixed, forged or kept, passwords that cannot be tried for long."""

from __future__ import annotations

import time
from datetime import timedelta

import httpx
import pytest
from conftest import HTML, PASSWORD, WebHouse, form_token_in, log_in

from gateway.runtime import utc_now
from gateway.store.access import IDLE_SECONDS, LIFETIME_SECONDS
from gateway.web.credentials import Shown
from gateway.web.login import local_path
from gateway.web.passwords import Passwords
from gateway.web.throttle import ENTRIES, WINDOW_SECONDS, LoginThrottle


async def test_a_person_logs_in_stays_known_and_logs_out(house: WebHouse, http: httpx.AsyncClient) -> None:
    await house.add_user()
    answer = await log_in(http, next="/mails?x=1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/mails?x=1")
    [cookie] = [value for value in answer.headers.get_list("set-cookie") if value.startswith("gateway_session=")]
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert (await http.get("/v1/mails")).status_code == 200
    session = http.cookies["gateway_session"]
    headers = {"Origin": house.url}
    assert (await http.post("/logout", data={"form_token": "x"}, headers=headers)).status_code == 403
    assert (await house.store.access.look(session=session)).user == "ann"
    form = {"form_token": Shown(session=session).form_token}
    assert (await http.post("/logout", data=form, headers=headers)).headers["location"] == "/login"
    assert (await http.get("/v1/mails", headers={"Cookie": f"gateway_session={session}"})).status_code == 401


async def test_a_login_makes_a_new_session_and_ends_the_old_one(house: WebHouse, http: httpx.AsyncClient) -> None:
    await house.add_user()
    http.cookies.set("gateway_session", "chosen-by-somebody-else", domain="127.0.0.1")
    await log_in(http)
    first = http.cookies["gateway_session"]
    assert first != "chosen-by-somebody-else"
    token = await house.login.log_in("ann", PASSWORD, client="x", old_session=first)
    look = house.store.access.look
    assert (await look(session=first)).user is None
    assert (await look(session=token)).user == "ann"


async def test_sessions_end_when_idle_and_when_old(house: WebHouse) -> None:
    await house.add_user()
    now = utc_now()
    access = house.store.access
    token = await house.login.log_in("ann", PASSWORD, client="x", old_session="")
    for seconds in range(IDLE_SECONDS - 60, LIFETIME_SECONDS, IDLE_SECONDS - 60):
        access._clock = lambda seconds=seconds: now + timedelta(seconds=seconds)
        assert (await access.look(session=token)).is_stale
        await access.note_seen(token)
    access._clock = lambda: now + timedelta(seconds=LIFETIME_SECONDS + 60)
    assert (await access.look(session=token)).user is None
    other = await access.start_session("ann", await access.password_hash("ann") or "")
    access._clock = lambda: now + timedelta(seconds=LIFETIME_SECONDS + 120 + IDLE_SECONDS)
    assert (await access.look(session=other)).user is None


async def test_another_password_and_a_removal_end_all_sessions(house: WebHouse) -> None:
    await house.add_user()
    await house.add_user("ben")
    access = house.store.access
    tokens = [await house.login.log_in("ann", PASSWORD, client="x", old_session="") for _ in range(2)]
    assert await access.set_password("Ann", await house.login.passwords.keep("another password"))
    assert [(await access.look(session=token)).user for token in tokens] == [None, None]
    assert await house.login.log_in("ann", PASSWORD, client="x", old_session="") == ""
    token = await house.login.log_in("ann", "another password", client="x", old_session="")
    assert await access.remove_user("ann")
    assert (await access.look(session=token)).user is None
    assert not await access.remove_user("ann")


@pytest.mark.parametrize(
    ("name", "password"),
    [("ann", "not this one"), ("nobody", PASSWORD), ("", ""), ("ann", "\x00" * 9), ("a" * 9999, "ü")],
)
async def test_wrong_names_and_wrong_passwords_look_alike(
    house: WebHouse, http: httpx.AsyncClient, name: str, password: str
) -> None:
    await house.add_user()
    answer = await log_in(http, name, password)
    assert answer.status_code == 403
    assert "Name or password is wrong." in answer.text
    assert not password or password not in answer.text
    assert "gateway_session" not in http.cookies


async def test_nobodys_password_costs_what_a_wrong_one_costs() -> None:
    """The same work is done for both; time is compared generously, the machine is shared."""
    passwords = Passwords()
    kept = await passwords.keep(PASSWORD)
    await passwords.is_right(None, "warm")

    async def least(kept: str | None) -> float:
        took = []
        for _ in range(5):
            began = time.process_time()
            assert not await passwords.is_right(kept, "wrong")
            took.append(time.process_time() - began)
        return min(took)

    nobody, wrong = await least(None), await least(kept)
    assert nobody > wrong / 3


async def test_after_five_wrong_passwords_even_the_right_one_waits(house: WebHouse, http: httpx.AsyncClient) -> None:
    await house.add_user()
    await house.add_user("ben")
    statuses = [(await log_in(http, "ann", "wrong")).status_code for _ in range(5)]
    answer = await log_in(http)
    assert [*statuses, answer.status_code] == [403] * 5 + [429]
    assert 0 < int(answer.headers["retry-after"]) <= WINDOW_SECONDS
    assert (await log_in(http, "ben")).status_code == 303
    house.appears_from("127.0.0.2")
    async with house.http() as elsewhere:
        assert (await log_in(elsewhere)).status_code == 303


def test_the_throttle_counts_by_client_and_by_name_and_forgets() -> None:
    now = [0.0]
    throttle = LoginThrottle(lambda: now[0])
    for number in range(20):
        assert throttle.wait_seconds(f"n{number}", "2001:db8::1") == 0
        throttle.failed(f"n{number}", f"2001:db8::{number:x}")
    assert throttle.wait_seconds("another", "2001:db8::ffff") > 0, "one /64 is one client"
    assert throttle.wait_seconds("another", "2001:db8:1::1") == 0
    for number in range(20):
        throttle.failed(f"n{number}", "::ffff:192.0.2.77")  # as a socket for both families has it
    assert throttle.wait_seconds("another", "192.0.2.77") > 0
    assert throttle.wait_seconds("another", "::ffff:192.0.2.78") == 0
    for number in range(50):
        throttle.failed("ann", f"10.0.{number}.1")
    assert throttle.wait_seconds("Ann ", "192.0.2.1") > 0
    now[0] = WINDOW_SECONDS + 1
    assert throttle.wait_seconds("ann", "192.0.2.1") == 0
    for number in range(ENTRIES):
        throttle.failed(f"m{number}", f"10.{number >> 8 & 255}.{number & 255}.1")
    assert len(throttle._counts) == ENTRIES


@pytest.mark.parametrize("field", ["", "x" * 64, None])
async def test_a_form_without_its_token_is_refused(house: WebHouse, http: httpx.AsyncClient, field: str | None) -> None:
    await house.add_user()
    await http.get("/login", headers=HTML)
    form = {"name": "ann", "password": PASSWORD} | ({} if field is None else {"form_token": field})
    answer = await http.post("/login", data=form, headers={"Origin": house.url})
    assert answer.status_code == 403
    assert "gateway_session" not in http.cookies


async def test_another_browsers_form_token_is_none_of_ours(house: WebHouse, http: httpx.AsyncClient) -> None:
    await house.add_user()
    async with house.http() as attacker:
        theirs = form_token_in((await attacker.get("/login", headers=HTML)).text)
    await http.get("/login", headers=HTML)
    form = {"name": "ann", "password": PASSWORD, "form_token": theirs}
    assert (await http.post("/login", data=form, headers={"Origin": house.url})).status_code == 403


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/mails?x=1#y", "/mails?x=1#y"),
        ("//attacker.example", "/"),
        ("/\\attacker.example", "/"),
        ("https://attacker.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\r\nSet-Cookie: x", "/"),
        ("/\t/attacker.example", "/"),
        ("", "/"),
    ],
)
def test_the_way_back_leads_to_our_own_pages_only(text: str, path: str) -> None:
    assert local_path(text) == path


async def test_an_invitation_makes_its_user_once_and_logs_him_in(house: WebHouse, http: httpx.AsyncClient) -> None:
    link = f"/invitation/{house.login.tokens.sign('invitation', await house.store.access.invite('Carla'))}"
    assert await house.store.access.is_entered()
    page = await http.get(link, headers=HTML)
    assert "carla" in page.text
    form = {"form_token": form_token_in(page.text), "password": "short"}
    assert (await http.post(link, data=form, headers=HTML)).status_code == 422
    answer = await http.post(link, data=form | {"password": PASSWORD}, headers=HTML)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert (await http.get("/v1/mails")).status_code == 200
    async with house.http() as other:
        assert (await other.get(link, headers=HTML)).status_code == 404
        assert (await other.get("/v1/mails")).status_code == 401


async def test_only_an_invitation_is_open_to_the_world_while_there_is_no_user(
    house: WebHouse, http: httpx.AsyncClient
) -> None:
    link = f"/invitation/{house.login.tokens.sign('invitation', await house.store.access.invite('carla'))}"
    house.appears_from("203.0.113.9")
    page = await http.get(link, headers=HTML)
    assert page.status_code == 200
    assert (await http.get("/v1/mails")).status_code == 403
    form = {"form_token": form_token_in(page.text), "password": PASSWORD}
    answer = await http.post(link, data=form, headers=HTML | {"Origin": house.url})
    assert answer.status_code == 303
    assert (await http.get("/v1/mails")).status_code == 200


async def test_invitations_that_are_over_or_forged_are_none(house: WebHouse, http: httpx.AsyncClient) -> None:
    sign = house.login.tokens.sign
    over = await house.store.access.invite("carla", lifetime_seconds=-1)
    assert not await house.store.access.is_entered()
    good = sign("invitation", await house.store.access.invite("carla"))
    forged = [
        sign("invitation", over),
        sign("support", over),
        good[:-1] + ("a" if good[-1] != "a" else "b"),
        "x",
        "%00",
    ]
    assert [(await http.get(f"/invitation/{token}", headers=HTML)).status_code for token in forged] == [404] * 5


async def test_behind_https_the_cookie_is_secure_and_ours_alone(open_house) -> None:
    headers = {"X-Forwarded-Proto": "https", "Host": "mail.example.org"}
    values = {"public_url": "https://mail.example.org", "trusted_hosts": ("127.0.0.1",)}
    async with open_house(**values) as house, house.http(headers=headers) as http:
        await house.add_user()
        page = await http.get("/login", headers=HTML)
        visit = page.headers["set-cookie"].partition(";")[0]
        form = {"name": "ann", "password": PASSWORD, "form_token": form_token_in(page.text)}
        sent = HTML | {"Origin": "https://mail.example.org", "Cookie": visit}
        answer = await http.post("/login", data=form, headers=sent)
        assert answer.status_code == 303
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-gateway_session=")
        assert cookie.endswith("; Secure")
        session = cookie.partition(";")[0]
        assert (await http.get("/v1/mails", headers={"Cookie": session})).status_code == 200
        plain = session.removeprefix("__Host-")
        assert (await http.get("/v1/mails", headers={"Cookie": plain})).status_code == 401
