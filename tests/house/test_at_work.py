"""The first run shows itself at work: what a newcomer sees is what really became of each thing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    return kept | {
        "GATEWAY_SMTP_LISTEN": f"127.0.0.1:{free_port()}",
        "GATEWAY_WEB_LISTEN": f"127.0.0.1:{free_port()}",
        "GATEWAY_MIN_FREE_BYTES": "1m",
    }


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str], str]]:
    """A first `gateway run --demo`, up to where it serves; then it is asked to stop and must do so well."""
    folder, env = tmp_path_factory.mktemp("first"), environment()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "run", "--demo"],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stdout is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("Serving until"):
            break
    yield folder, env, said
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, said + rest


def told(folder: Path, env: dict[str, str], *words: str) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "gateway.cli", *words, "--json"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_says_where_everything_is(first_run: tuple[Path, dict[str, str], str]) -> None:
    _, env, said = first_run
    assert env["GATEWAY_SMTP_LISTEN"] in said
    assert f"http://{env['GATEWAY_WEB_LISTEN']}/v1/emails" in said
    assert "gateway send welcome" in said
    assert "did not come to its end" not in said


def test_the_invoice_is_captured_with_its_pdf(first_run: tuple[Path, dict[str, str], str]) -> None:
    folder, env, _ = first_run
    [row] = [row for row in told(folder, env, "emails") if row["template"] == "invoice"]
    assert (row["disposition"], row["relay"], row["template"]) == ("relayed", "capture", "invoice")
    captured = [path.read_bytes() for path in (folder / "var" / "captured").glob("*.eml")]
    assert sum(b"invoice-2026-0042.pdf" in octets for octets in captured) == 1
    [story] = told(folder, env, "show", str(row["id"])[:20])
    steps = [line["step"] for line in story["timeline"]]  # type: ignore[attr-defined]
    assert steps == ["accepted", "rendered", "claimed", "dot_sent", "relayed"]


def test_the_post_has_its_umlauts_and_photos_and_the_hopeless_mail_is_held(
    first_run: tuple[Path, dict[str, str], str],
) -> None:
    folder, env, _ = first_run
    [post] = told(folder, env, "posts")
    assert (post["title"], post["author"]) == ("Grüße vom Müggelsee", "Jürgen Visitor")
    rows = {row["disposition"]: row for row in told(folder, env, "mails")}
    assert set(rows) == {"delivered", "held"}
    assert str(rows["held"]["reason"]).startswith("cannot be parsed")
    [story] = told(folder, env, "show", str(post["id"]))
    assert [item["filename"] for item in story["attachments"]] == ["morgen.png", "abend.png"]  # type: ignore[attr-defined]
