"""`gateway people`, `gateway address` and `gateway explain` as a person types them, with no gateway running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sender_desk import mail

SETTINGS = """
domains = ["in.example.net"]
dns_servers = ["127.0.0.1:1"]

[[mailboxes]]
address = "drop@in.example.net"
kind = "posts"
who = "secret"

[[mailboxes]]
address = "photos@in.example.net"
kind = "photos"
who = "members"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gateway.toml").write_text(SETTINGS)
    return tmp_path


def gateway(folder: Path, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    command = [sys.executable, "-m", "gateway.cli", *words]
    return subprocess.run(command, cwd=folder, env=kept, input=given, capture_output=True, timeout=120)


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line on stderr of a command that did not do it."""
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    return line


def explained(folder: Path, to: str, *words: str) -> dict[str, Any]:
    done = gateway(folder, "explain", "-", "--to", to, "--json", *words, given=mail())
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_people_come_and_go(folder: Path) -> None:
    assert gateway(folder, "people", "list").stdout == b""
    assert gateway(folder, "people", "add", "ann@example.org", "--name", "Ann").returncode == 0
    assert gateway(folder, "people", "add", "bob@example.org").returncode == 0
    rows = [json.loads(line) for line in gateway(folder, "people", "list", "--json").stdout.splitlines()]
    assert rows == [{"address": "ann@example.org", "name": "Ann"}, {"address": "bob@example.org", "name": ""}]
    assert said(gateway(folder, "people", "add", "ANN@example.org")) == "gateway: ANN@example.org is registered already"
    assert said(gateway(folder, "people", "add", "a@b@c")).startswith("gateway: a@b@c: must contain exactly one @")
    assert gateway(folder, "people", "remove", "Ann@Example.org").returncode == 0
    assert said(gateway(folder, "people", "remove", "ann@example.org")) == "gateway: ann@example.org is not registered"


def test_a_secret_address_is_made_used_and_made_void(folder: Path) -> None:
    assert "is not registered" in said(gateway(folder, "address", "new", "ann@example.org", "drop@in.example.net"))
    gateway(folder, "people", "add", "ann@example.org")
    wrong = gateway(folder, "address", "new", "ann@example.org", "photos@in.example.net")
    assert 'its who is not "secret"' in said(wrong)
    assert "unknown here" in said(gateway(folder, "address", "new", "ann@example.org", "nobody@in.example.net"))
    made = gateway(folder, "address", "new", "ann@example.org", "drop@in.example.net", "--days", "30")
    address = made.stdout.decode().strip()
    assert explained(folder, address)["disposition"] == "delivered"
    assert explained(folder, "drop@in.example.net")["disposition"] == "held"
    assert "secret addresses only" in explained(folder, "drop@in.example.net")["door"]
    assert gateway(folder, "address", "rotate", "ann@example.org").returncode == 0
    assert explained(folder, address)["disposition"] == "held"
    assert "is not registered" in said(gateway(folder, "address", "rotate", "eve@example.org"))


def test_explain_says_who_a_sender_is(folder: Path) -> None:
    gateway(folder, "people", "add", "ann@example.org")
    found = explained(folder, "photos@in.example.net", "--from", "ann@example.org")
    assert found["disposition"] == "held"
    assert "it says it is from ann@example.org, unproven" in found["reason"]
    assert (found["auth"]["verdict"], found["auth"]["author"]) == ("fail", "ann@example.org")
    words = ("--from", "ann@example.org", "--client", "192.0.2.1", "--helo", "host.example.org")
    found = explained(folder, "photos@in.example.net", *words)
    assert (found["disposition"], found["auth"]["verdict"]) == ("pending", "temperror")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("dns_servers=ns.example.org", "dns_servers"),
        ("trusted_authserv_id=a b", "trusted_authserv_id"),
        ('mailboxes=[{"address": "a@in.example.net", "kind": "posts", "who": "friends"}]', "mailboxes[0].who"),
    ],
)
def test_a_wrong_setting_is_named(folder: Path, setting: str, told: str) -> None:
    done = gateway(folder, "--set", setting, "doctor")
    assert done.returncode == 2
    assert f"gateway: {told}" in done.stderr.decode()
