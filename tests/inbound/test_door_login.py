"""Logins at the door by a real store: users, keys, tries that are counted, and a store that is away."""

from __future__ import annotations

import base64
import json
import ssl
from io import StringIO
from typing import Any

import pytest
from argon2 import PasswordHasher
from conftest import House, Talk

from gateway.errors import StoreUnavailable, TransientFailure
from gateway.inbound.certificate import Certificates
from gateway.inbound.door_auth import Shown
from gateway.inbound.login import DoorLogins
from gateway.maillog import MailLog
from gateway.runtime import utc_now
from gateway.store.access import Access
from gateway.store.database import open_database
from gateway.web.passwords import Passwords
from gateway.web.throttle import LoginThrottle

ANN, SECRET = "ann@example.org", "correct horse"
CLIENT = "192.0.2.7"


@pytest.fixture
async def logins(house: House) -> DoorLogins:
    """Ann is a user, and the store answers."""
    database = await open_database(house.store_url)
    house.stack.push_async_callback(database.close)
    access, passwords = Access(database, clock=utc_now), Passwords(PasswordHasher(time_cost=1, memory_cost=64))
    await access.add_user(ANN, await passwords.keep(SECRET))
    return DoorLogins(access=access, passwords=passwords, throttle=LoginThrottle(), log=house.log)


def shown(name: str, password: str) -> Shown:
    return Shown(name=name, password=password)


async def test_a_user_logs_in_by_password(logins: DoorLogins) -> None:
    assert await logins.prove(shown(f" {ANN.upper()} ", SECRET), client=CLIENT) == ANN
    for name, password in ((ANN, "wrong"), (ANN, ""), ("nobody", SECRET), ("", SECRET), ("x" * 10_000, SECRET)):
        assert await logins.prove(shown(name, password), client=CLIENT) == ""


async def test_an_app_logs_in_by_a_key_that_may_send(logins: DoorLogins) -> None:
    key = await logins.access.add_key("shop", ["send"])
    prefix = key.rpartition("_")[0][:11]
    reader = await logins.access.add_key("stats", ["read"])
    for name in ("shop", "Shop", prefix):
        assert await logins.prove(shown(name, key), client=CLIENT) == "app:shop"
    assert await logins.prove(shown("other", key), client=CLIENT) == ""
    assert await logins.prove(shown("stats", reader), client=CLIENT) == ""
    assert await logins.prove(shown("shop", key[:-1] + ("A" if key[-1] != "A" else "B")), client=CLIENT) == ""
    await logins.access.revoke_key(key)
    assert await logins.prove(shown("shop", key), client=CLIENT) == ""


async def test_many_tries_are_told_to_wait_and_others_are_not(logins: DoorLogins) -> None:
    for _ in range(5):
        assert await logins.prove(shown(ANN, "wrong"), client=CLIENT) == ""
    with pytest.raises(TransientFailure) as waiting:
        await logins.prove(shown(ANN, SECRET), client=CLIENT)
    assert str(waiting.value.reply).startswith("454 4.7.0 too many wrong tries, wait ")
    assert await logins.prove(shown(ANN, SECRET), client="192.0.2.8") == ANN


async def test_a_wrong_key_is_counted_and_a_right_one_is_not(logins: DoorLogins) -> None:
    key = await logins.access.add_key("shop", ["send"])
    for _ in range(30):
        assert await logins.prove(shown("shop", key), client=CLIENT) == "app:shop"
    await logins.access.revoke_key(key)
    for _ in range(5):
        assert await logins.prove(shown("shop", key), client=CLIENT) == ""
    with pytest.raises(TransientFailure):
        await logins.prove(shown("shop", key), client=CLIENT)


async def test_while_the_store_is_away_nobody_is_called_wrong(logins: DoorLogins, monkeypatch: Any) -> None:
    async def away(*words: Any, **values: Any) -> None:
        raise StoreUnavailable("secret path")

    monkeypatch.setattr(logins.access, "password_hash", away)
    monkeypatch.setattr(logins.access, "look", away)
    for password in [SECRET] * 10 + ["gw_abcdefgh_" + "A" * 43]:
        with pytest.raises(TransientFailure) as failure:
            await logins.prove(shown(ANN, password), client=CLIENT)
        assert str(failure.value.reply) == "454 4.7.0 logins cannot be checked now, try again later"
    monkeypatch.undo()
    assert await logins.prove(shown(ANN, SECRET), client=CLIENT) == ANN


async def test_a_login_stands_in_the_mail_and_nothing_shown_in_the_log(
    house: House, logins: DoorLogins, certificates: Certificates, client_context: ssl.SSLContext
) -> None:
    stream = StringIO()
    house.log = MailLog(stream=stream, as_json=True)
    door = await house.open_door(certificates=certificates, logins=logins, failed_login_seconds=0.0)
    talk = await Talk.with_door(door)
    house.stack.callback(talk.close)
    await talk.reply()
    for line in ("EHLO client", "STARTTLS"):
        await talk.say(line)
    await talk.start_tls(client_context)
    await talk.say("EHLO client")
    tries = [base64.b64encode(f"\0{ANN}\0{word}".encode()).decode() for word in ("oops-typed", SECRET)]
    assert [(await talk.say(f"AUTH PLAIN {item}"))[:3] for item in tries] == ["535", "235"]
    # A client that does not listen goes on with its password where AUTH has failed already.
    assert [await talk.say(line) for line in ("AUTH LOGIN", tries[0], tries[1])] == [
        "503 5.5.1 you have logged in already",
        *["500 5.5.2 that is no command here"] * 2,
    ]
    for line in (f"MAIL FROM:<{ANN}>", "RCPT TO:<posts@localhost>", "DATA"):
        await talk.say(line)
    assert (await talk.say(f"From: {ANN}\r\n\r\nx\r\n.")).startswith("250")
    (ticket,) = await house.tickets()
    assert ticket.headers["auth"] == ANN
    said = stream.getvalue()
    refused = [json.loads(line) for line in said.splitlines() if '"refused"' in line]
    assert [(item["verb"], item["reply"][:9]) for item in refused] == [
        ("AUTH", "535 5.7.8"),
        ("AUTH", "503 5.5.1"),
        *[("COMMAND", "500 5.5.2")] * 2,
    ]
    for word in ("oops", SECRET, *tries):
        assert word.upper() not in said.upper()
