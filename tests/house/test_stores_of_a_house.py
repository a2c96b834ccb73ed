"""A whole gateway on PostgreSQL: other URLs, the same gateway; what `gateway db` says and does."""

from __future__ import annotations

import json
import os
import smtplib
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "crash"))

from house import House

LOOKS = 60
LARGE = "many words in a line\r\n" * 20_000


def gateway(folder: Path, *words: str, url: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    given = {
        "GATEWAY_DATABASE_URL": url,
        "GATEWAY_DATA_DIR": str(folder / "var"),
        "GATEWAY_RELAY_URLS": "capture:",
    } | env
    command = [sys.executable, "-m", "gateway.cli", *words]
    return subprocess.run(command, cwd=folder, env=kept | given, capture_output=True, text=True, timeout=120)


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_mail_goes_in_and_out_with_everything_in_the_server(
    bare_postgres_url: str, postgres_server, tmp_path: Path
) -> None:
    more = {"GATEWAY_DATABASE_URL": bare_postgres_url, "GATEWAY_BLOBS_URL": "database:"}
    name = urlsplit(bare_postgres_url).path[1:]
    (tmp_path / "var").mkdir()
    house = House(tmp_path / "var", "capture:", more=more)
    house.start()
    try:
        assert house.wait_ready(), house.log()
        with smtplib.SMTP("127.0.0.1", house.smtp_port, timeout=60) as client:
            client.sendmail("ann@example.org", ["posts@localhost"], f"Subject: large\r\n\r\n{LARGE}\r\n")
        sent = gateway(
            tmp_path, "send", "welcome", "--to", "ann@example.org", "--param", "name=Ann", url=bare_postgres_url
        )
        assert sent.returncode == 0, sent.stderr
        assert any(_is_done(tmp_path, bare_postgres_url) for _ in range(LOOKS))
        events = "SELECT count(*) FROM outbox WHERE published_at IS NULL"
        assert any(postgres_server.run(events, name) == "0" for _ in range(LOOKS))
    finally:
        house.stop()
    assert not (tmp_path / "var" / "store.db").exists()
    assert not (tmp_path / "var" / "blobs").exists()
    assert int(postgres_server.run("SELECT count(*) FROM blobs", name)) >= 1
    doctor = rows(gateway(tmp_path, "doctor", "--json", url=bare_postgres_url, GATEWAY_BLOBS_URL="database:"))
    assert [item["level"] for item in doctor if item["what"] == "store"] == ["ok"]


def _is_done(folder: Path, url: str) -> bool:
    mails = rows(gateway(folder, "mails", "--json", url=url))
    emails = rows(gateway(folder, "emails", "--json", url=url))
    found = [item["disposition"] for item in (*mails, *emails)]
    return found == ["delivered", "relayed"]


def test_upgrade_makes_the_schema_once_and_says_so(bare_postgres_url: str, tmp_path: Path) -> None:
    first = gateway(tmp_path, "db", "upgrade", url=bare_postgres_url)
    again = gateway(tmp_path, "db", "upgrade", url=bare_postgres_url)
    assert (first.returncode, again.returncode) == (0, 0)
    assert "it was not made yet" in first.stderr
    assert "as it was" in again.stderr


def test_what_grants_prints_can_be_run_by_psql(bare_postgres_url: str, postgres_server, tmp_path: Path) -> None:
    assert gateway(tmp_path, "db", "upgrade", url=bare_postgres_url).returncode == 0
    printed = gateway(tmp_path, "db", "grants", "--app", "shop", "--worker", "mailer", url=bare_postgres_url)
    name = urlsplit(bare_postgres_url).path[1:]
    postgres_server.run("CREATE ROLE shop; CREATE ROLE mailer")
    try:
        postgres_server.run(printed.stdout, name)
        asked = "SELECT has_table_privilege('shop', 'published_posts', 'SELECT'), has_table_privilege('shop', 'posts', 'SELECT')"
        assert postgres_server.run(asked, name) == "t|f"
    finally:
        postgres_server.run("DROP OWNED BY shop, mailer; DROP ROLE shop, mailer", name)


@pytest.mark.parametrize(
    ("words", "url", "said"),
    [
        (("db", "grants"), "sqlite:///x.db", "a file has no roles"),
        (("db", "grants", "--app", 'x"; DROP'), "postgresql://h/db", "no name for a role"),
        (("db", "upgrade"), "postgresql://h/db?sslmode=maybe", "sslmode is one of"),
        (("run",), "postgresql://h/db?sslmod=require", "'sslmod' is not known"),
    ],
)
def test_a_mistake_about_the_store_is_one_line_and_exit_2(words, url: str, said: str, tmp_path: Path) -> None:
    done = gateway(tmp_path, *words, url=url)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_ledger_in_the_folder_is_not_left_behind_for_a_server(tmp_path: Path) -> None:
    assert gateway(tmp_path, "db", "upgrade", url=f"sqlite:///{tmp_path}/var/store.db").returncode == 0
    done = gateway(tmp_path, "run", "web", url="postgresql://127.0.0.1:1/db", GATEWAY_WEB_LISTEN="127.0.0.1:0")
    assert done.returncode == 2
    assert "store.db holds a ledger" in done.stderr


def test_a_server_that_is_away_is_told_in_one_line_and_exit_75(tmp_path: Path) -> None:
    done = gateway(tmp_path, "emails", url="postgresql://u:s3cret@127.0.0.1:1/db")
    assert done.returncode == 75
    assert "s3cret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_broker_that_is_away_is_told_in_one_line_and_exit_75(tmp_path: Path) -> None:
    queue = {"GATEWAY_QUEUE_URL": "amqp://u:s3cret@127.0.0.1:1/", "GATEWAY_RELAY_URLS": "capture:"}
    done = gateway(tmp_path, "queues", url=f"sqlite:///{tmp_path}/var/store.db", **queue)
    assert done.returncode == 75
    assert "s3cret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
