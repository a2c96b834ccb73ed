"""Our recipients as Postfix reads them: the lines, the file, and what a fault leaves behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.inbound.recipient_map import recipient_map, write_map
from gateway.inbound.router import MailboxRoute, Router


def gateway(folder: Path, *words: str, **values: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    command = [sys.executable, "-m", "gateway.cli", *words]
    return subprocess.run(command, env=kept | values, cwd=folder, capture_output=True, text=True, timeout=60)


def test_every_address_and_backstop_has_a_line_in_both_spellings() -> None:
    routes = [("Posts@example.org", "posts"), ("*@müller.example", "posts"), ('"two words"@example.org', "posts")]
    router = Router(
        [MailboxRoute(address=address, kind=kind) for address, kind in routes],
        domains=["example.org", "müller.example"],
    )
    assert recipient_map(router).splitlines() == [
        *("@xn--mller-kva.example ok", "@müller.example ok"),
        "abuse@example.org ok",
        *("abuse@xn--mller-kva.example ok", "abuse@müller.example ok"),
        "postmaster@example.org ok",
        *("postmaster@xn--mller-kva.example ok", "postmaster@müller.example ok"),
        "posts@example.org ok",
        '"two words@example.org" ok',
    ]


def test_the_command_writes_the_file_once_and_keeps_it_when_the_settings_are_wrong(tmp_path: Path) -> None:
    done = gateway(tmp_path, "recipients", "export", "map")
    assert done.returncode == 0, done.stderr
    assert "map: 5 recipients, written" in done.stderr
    assert not (tmp_path / "var").exists()
    file = tmp_path / "map"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    first = file.stat().st_ino
    assert "posts@localhost ok\n" in file.read_text()
    assert "unchanged" in gateway(tmp_path, "recipients", "export", "map").stderr
    assert file.stat().st_ino == first
    wrong = gateway(tmp_path, "recipients", "export", "map", GATEWAY_RETRY_LADDER="soon")
    assert wrong.returncode == 2
    assert file.stat().st_ino == first
    assert gateway(tmp_path, "recipients", "export", "-").stdout == file.read_text()
    assert gateway(tmp_path, "recipients", "export", "nowhere/map").returncode == 75
    assert [item.name for item in tmp_path.iterdir()] == ["map"]


def test_a_fault_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "map"
    assert write_map(file, "a@example.org ok\n")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_map(file, "b@example.org ok\n")
    assert file.read_text() == "a@example.org ok\n"
    assert [item.name for item in tmp_path.iterdir()] == ["map"]
