"""`gateway users`, `gateway keys`, `gateway schema`, and what the running gateway makes of them; no secret is ever told twice."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_at_work import environment

PASSWORD = "planted-password-7f3a"
RELAY_SECRET = "planted-relay-secret-91c2"


def gateway(folder: Path, *words: str, said: str = "", env: dict[str, str] | None = None) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "gateway.cli", *words]
    done = subprocess.run(
        command, cwd=folder, env=env or environment(), input=said, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def ask(listen: str, path: str, *, method: str = "GET", body: str = "", **headers: str) -> tuple[int, str]:
    host, _, port = listen.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body=body or None, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@contextlib.contextmanager
def running(folder: Path, env: dict[str, str], log: Path) -> Iterator[None]:
    """The web service of these settings, ready to answer."""
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "run", "web"],
            cwd=folder,
            env=env,
            stdout=stderr,
            stderr=stderr,
            text=True,
        )
        try:
            wait_until_served(process, env["GATEWAY_WEB_LISTEN"], log)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, log.read_text()


def wait_until_served(process: subprocess.Popen[str], listen: str, log: Path) -> None:
    host, _, port = listen.rpartition(":")
    while True:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=60):
            return


def test_users_are_made_listed_changed_and_removed(tmp_path: Path) -> None:
    assert gateway(tmp_path, "users", "list")[2] == "no users\n"
    assert gateway(tmp_path, "users", "add", "Ann", said=f"{PASSWORD}\n") == (0, "", "")
    code, _, said = gateway(tmp_path, "users", "add", "ann", said=f"{PASSWORD}\n")
    assert (code, said.count("\n")) == (1, 1)
    code, _, said = gateway(tmp_path, "users", "password", "ann", said="short\n")
    assert (code, "10 characters" in said) == (2, True)
    assert gateway(tmp_path, "users", "password", "ann", said=f"{PASSWORD}-2\n")[0] == 0
    [user] = [json.loads(line) for line in gateway(tmp_path, "users", "list", "--json")[1].splitlines()]
    assert (user["name"], user["sessions"]) == ("ann", 0)
    assert gateway(tmp_path, "users", "remove", "ann")[0] == 0
    assert gateway(tmp_path, "users", "remove", "ann")[0] == 1


def test_keys_are_told_once_listed_by_their_beginning_and_revoked(tmp_path: Path) -> None:
    code, key, said = gateway(tmp_path, "keys", "add", "shop", "--scope", "send", "--scope", "read")
    assert (code, said) == (0, "")
    listed = gateway(tmp_path, "keys", "list", "--json")[1]
    assert key.strip()[12:] not in listed
    row = json.loads(listed)
    assert (row["prefix"], row["app"], row["scopes"], row["revoked_at"]) == (key[:11], "shop", "send read", None)
    assert gateway(tmp_path, "keys", "revoke", key[:11])[0] == 0
    code, _, said = gateway(tmp_path, "keys", "revoke", key.strip())
    assert code == 1
    assert key.strip()[12:] not in said
    assert gateway(tmp_path, "keys", "add", "shop", "--scope", "all")[0] == 2


def test_listening_beyond_loopback_needs_a_user_and_says_how_to_make_one(tmp_path: Path) -> None:
    env = environment()
    env["GATEWAY_WEB_LISTEN"] = "0.0.0.0:" + env["GATEWAY_WEB_LISTEN"].rpartition(":")[2]
    code, _, said = gateway(tmp_path, "run", "web", env=env)
    assert (code, said.count("\n")) == (2, 1)
    assert "gateway users add NAME" in said
    gateway(tmp_path, "keys", "add", "shop", env=env)
    assert gateway(tmp_path, "run", "web", env=env)[0] == 2, "a key is nobody who could log in"
    code, link, _ = gateway(tmp_path, "--set", "public_url=https://mail.example.org", "users", "invite", "ann", env=env)
    assert (code, link.startswith("https://mail.example.org/invitation/")) == (0, True)
    listen = "127.0.0.1:" + env["GATEWAY_WEB_LISTEN"].rpartition(":")[2]
    with running(tmp_path, env, tmp_path / "log"):
        assert ask(listen, "/v1/emails")[0] == 401
        assert ask(listen, link.strip().removeprefix("https://mail.example.org"), Accept="text/html")[0] == 200


@pytest.mark.parametrize("name", ["email.send", "post.create", "event", "openapi", "asyncapi"])
def test_schemas_are_printed_from_the_code(tmp_path: Path, name: str) -> None:
    code, told, said = gateway(tmp_path, "schema", name)
    assert (code, said) == (0, "")
    document: dict[str, Any] = json.loads(told)
    assert {"$schema", "openapi", "asyncapi"} & set(document)
    assert list(tmp_path.iterdir()) == [], "a look makes no files"


def test_an_unknown_schema_is_refused_with_those_there_are(tmp_path: Path) -> None:
    code, _, said = gateway(tmp_path, "schema", "email.lost")
    assert (code, "email.send" in said) == (1, True)


def test_planted_secrets_appear_in_no_log_page_metric_or_error(tmp_path: Path) -> None:
    """The first user closes a running gateway; then everything that can be asked is asked, well and badly."""
    env = environment() | {"GATEWAY_RELAY_URLS": f"smtps://user:{RELAY_SECRET}@127.0.0.1:1"}
    listen = env["GATEWAY_WEB_LISTEN"]
    log = tmp_path / "log"
    with running(tmp_path, env, log):
        assert ask(listen, "/v1/emails")[0] == 200
        gateway(tmp_path, "users", "add", "ann", said=f"{PASSWORD}\n", env=env)
        key = gateway(tmp_path, "keys", "add", "shop", "--scope", "admin", env=env)[1].strip()
        assert ask(listen, "/v1/emails")[0] == 401
        told = [
            gateway(tmp_path, *words, env=env)
            for words in (["settings"], ["users", "list"], ["keys", "list"], ["doctor"])
        ]
        bearer = {"Authorization": f"Bearer {key}"}
        for path in (
            "/v1/emails",
            "/v1/mails",
            "/v1/openapi.json",
            "/metrics",
            "/readyz",
            "/login",
            "/nothing",
            "/v1/emails/x",
        ):
            for headers in (bearer, {"Authorization": f"Bearer {key}x"}, {"Accept": "text/html"}):
                told.append((*ask(listen, path, **headers), ""))
        for body in (f'{{"template": "{PASSWORD[:4]}"}}', "{", f"name=ann&password={PASSWORD}"):
            told.append((*ask(listen, "/v1/emails", method="POST", body=body, **bearer), ""))
            told.append((*ask(listen, "/login", method="POST", body=body, Origin=f"http://{listen}"), ""))
    everything = repr(told) + log.read_text()
    for secret in (RELAY_SECRET, PASSWORD, key[12:]):
        assert secret not in everything
    assert "logged-in" not in everything
    assert key[:11] in everything
