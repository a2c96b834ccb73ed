"""Wrong in, one clear line out: key, path or field, the right exit code, nothing half done."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.app import open_store
from gateway.contract.email_send import SendEmail
from gateway.mail.ids import new_id
from gateway.settings import Settings


def gateway(
    folder: Path, *words: str, env: dict[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    command = [sys.executable, "-m", "gateway.cli", *words]
    return subprocess.run(
        command, cwd=folder, env=kept | (env or {}), capture_output=True, text=True, timeout=60, input=stdin
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What was said on stderr: every line must begin with our name, none may be a traceback."""
    said = done.stderr.splitlines()
    assert said, "nothing was said"
    assert all(line.startswith("gateway: ") for line in said), done.stderr
    return said


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (["frobnicate"], {}, "No such command 'frobnicate'"),
        (["send"], {}, "Missing argument"),
        (["--set", "colour=red", "queues"], {}, "colour (--set colour): unknown key"),
        (["queues"], {"GATEWAY_RELAY_URL": "smtp://x"}, "did you mean GATEWAY_RELAY_URLS?"),
        (["queues"], {"GATEWAY_SMTP_LISTEN": "2525"}, "smtp_listen (environment GATEWAY_SMTP_LISTEN)"),
        (["run"], {"GATEWAY_RETRY_LADDER": "1m soon"}, "retry_ladder"),
        (["run"], {"GATEWAY_RELAY_URLS": "gopher://x"}, "relays[0].url"),
        (["run"], {"GATEWAY_QUEUE_URL": "redis://x"}, "queue_url"),
        (["run"], {"GATEWAY_DATABASE_URL": "mysql://x"}, "database"),
        (["run"], {"GATEWAY_BLOBS_URL": "ftp://x"}, "blobs_url"),
        (["run"], {"GATEWAY_TEMPLATES_DIR": "nowhere"}, "templates_dir"),
        (["run"], {"GATEWAY_MAILBOXES": '[{"address": "a@b.example", "kind": "poems"}]'}, "no kind 'poems'"),
        (["run", "smpt"], {}, "no service 'smpt'"),
        (["send", "invoise", "--to", "a@b.example"], {}, "template: "),
        (["send", "welcome", "--to", "a@b.example"], {}, "params"),
        (["send", "welcome", "--to", "a@b@c", "--param", "name=A"], {}, "to"),
        (["send", "welcome", "--to", "a@b.example", "--param", "name=A", "--id", "42"], {}, "id: "),
        (["send", "welcome", "--to", "a@b.example", "--param", "name=A", "--stream", "slow"], {}, "stream: "),
        (["send", "welcome", "--to", "a@b.example", "--param", "name"], {}, "--param name"),
        (["send", "welcome", "--to", "a@b.example", "--params", "no.json"], {}, "no.json"),
        (["send", "welcome", "--to", "a@b.example", "--param", "name=A", "--attach", "no.pdf"], {}, "no.pdf"),
    ],
)
def test_a_mistake_is_one_clear_line_with_exit_2_and_nothing_half_done(
    tmp_path: Path, words: list[str], env: dict[str, str], said: str
) -> None:
    done = gateway(tmp_path, *words, env=env)
    assert done.returncode == 2, done.stderr
    assert any(said in line for line in lines(done)), done.stderr
    assert done.stdout == ""
    if (tmp_path / "var" / "queue.db").exists():
        queued = gateway(tmp_path, "queues", "--json")
        assert sum(json.loads(line)["ready"] for line in queued.stdout.splitlines()) == 0


def test_a_missing_template_names_the_nearest(tmp_path: Path) -> None:
    done = gateway(tmp_path, "send", "invoise", "--to", "a@b.example")
    assert "invoice" in lines(done)[0]


def test_a_busy_port_is_told_with_its_key(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for key in ("SMTP", "WEB"):
            other = {"GATEWAY_SMTP_LISTEN": "127.0.0.1:0", "GATEWAY_WEB_LISTEN": "127.0.0.1:0"}
            done = gateway(tmp_path, "run", env=other | {f"GATEWAY_{key}_LISTEN": f"127.0.0.1:{port}"})
            assert done.returncode == 2
            said = [line for line in done.stderr.splitlines() if line.startswith("gateway: ")]
            assert len(said) == 1
            assert said[0].startswith(f"gateway: {key.lower()}_listen: 127.0.0.1:{port}: ")


def test_what_is_not_there_is_exit_1(tmp_path: Path) -> None:
    for words in (["show", "0199"], ["dead", "show", "7"], ["dead", "retry", "7"], ["dead", "drop", "7"]):
        done = gateway(tmp_path, *words)
        assert done.returncode == 1, (words, done.stderr)
        assert len(lines(done)) == 1


def test_lists_are_empty_and_quiet_on_stdout_before_the_first_run(tmp_path: Path) -> None:
    for name in ("emails", "mails", "posts", "queues"):
        done = gateway(tmp_path, name, "--json")
        assert (done.returncode, done.stdout) == (0, "")
    assert list(tmp_path.iterdir()) == [], "a look makes no files"


def test_settings_are_printed_with_secrets_masked(tmp_path: Path) -> None:
    done = gateway(tmp_path, "settings", "--json", env={"GATEWAY_RELAY_URLS": "smtps://u:hunter2@mail.example.org"})
    assert done.returncode == 0
    assert "hunter2" not in done.stdout + done.stderr
    assert json.loads(done.stdout)["relay_urls"] == ["smtps://u:***@mail.example.org"]


def test_params_come_from_words_json_words_files_and_stdin(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text('{"name": "File"}')
    told = ["send", "welcome", "--to", "a@b.example"]
    assert gateway(tmp_path, *told, "--params", "params.json").returncode == 0
    assert gateway(tmp_path, *told, "--params", "-", stdin='{"name": "Pipe"}').returncode == 0
    assert gateway(tmp_path, *told, "--param", 'name:="Json"').returncode == 0
    queued = gateway(tmp_path, "queues", "--json").stdout.splitlines()
    assert sum(json.loads(line)["ready"] for line in queued if json.loads(line)["name"] == "email.send") == 3


def test_help_answers_at_once_without_heavy_imports(tmp_path: Path) -> None:
    began = time.process_time()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gateway.cli", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert time.process_time() - began < 5
    heavy = ("sqlalchemy", "pydantic", "fastapi", "jinja2", "aiosmtpd", "alembic", "structlog", "asyncio.sslproto")
    assert [name for name in heavy if f"| {name}\n" in done.stderr.replace("|   ", "| ")] == []
    assert "send" in done.stdout


def test_import_gateway_is_light(tmp_path: Path) -> None:
    code = (
        "import sys, gateway; print([m for m in ('pydantic', 'sqlalchemy', 'asyncio', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_imported() -> None:
    import gateway as package

    assert [name for name in package.__all__ if getattr(package, name, None) is None] == []


def test_a_changed_queue_url_strands_nothing(tmp_path: Path) -> None:
    assert gateway(tmp_path, "send", "welcome", "--to", "a@b.example", "--param", "name=A").returncode == 0
    done = gateway(tmp_path, "run", env={"GATEWAY_QUEUE_URL": f"sqlite:///{tmp_path}/other.db"})
    assert done.returncode == 2
    assert "queue_url" in lines(done)[0]
    assert "still holds 1 tickets" in lines(done)[0]


def test_the_demo_queues_nothing_where_nobody_listens_or_email_is_really_sent(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        nobody = {"GATEWAY_SMTP_LISTEN": f"127.0.0.1:{probe.getsockname()[1]}"}
    assert gateway(tmp_path, "demo", env=nobody).returncode == 75
    assert gateway(tmp_path, "demo", env={"GATEWAY_RELAY_URLS": "smtp://mail.example"}).returncode == 2
    assert not (tmp_path / "var" / "queue.db").exists()


def test_queues_of_rabbitmq_have_commands_of_their_own(tmp_path: Path) -> None:
    granted = gateway(tmp_path, "queues", "grants", "billing", "--vhost", "mail")
    assert granted.returncode == 0
    assert granted.stdout.startswith("rabbitmqctl set_permissions -p mail billing ")
    assert granted.stdout.count("gateway\\.commands") == 1, "it may publish there and nowhere else"
    migrated = gateway(tmp_path, "queues", "migrate")
    assert (migrated.returncode, migrated.stdout) == (2, "")
    assert lines(migrated) == ["gateway: queue_url: a file needs no migration; this is for amqp(s)://"]


async def test_hold_holds_each_email_that_waits_and_says_which_does_not(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "var").filled()
    waiting, sent = (SendEmail(to=("a@b.example",), subject="s", text="t") for _ in range(2))
    async with open_store(settings) as store:
        for email in (waiting, sent):
            facts = {"app": "", "ticket_id": email.id, "stream": "normal", "message_id": f"<{email.id}@x.example>"}
            await store.ledger.record_accepted(email, content_hash=email.content_hash(), **facts)
        await store.ledger.cancel(sent.id)
    done = await asyncio.to_thread(gateway, tmp_path, "hold", waiting.id)
    assert (done.returncode, done.stderr) == (0, f"{waiting.id}: 1 held\n")
    done = await asyncio.to_thread(gateway, tmp_path, "hold", waiting.id, sent.id)
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        [f"{waiting.id}: nothing of it waits to be sent", f"{sent.id}: nothing of it waits to be sent"],
    )
    done = await asyncio.to_thread(gateway, tmp_path, "release", waiting.id)
    assert (done.returncode, done.stderr) == (0, "1 released\n")
    assert lines(await asyncio.to_thread(gateway, tmp_path, "hold", new_id()))[0].startswith(
        "gateway: nothing is known of"
    )
