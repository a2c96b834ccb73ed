"""The LMTP door as a service of `gateway run`: its socket, its settings, two gateways on one folder, a killed one."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import app, settings
from gateway.errors import SettingsError


def environment(folder: Path, **values: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    return kept | {"GATEWAY_DATA_DIR": str(folder), "GATEWAY_MIN_FREE_BYTES": "0"} | values


def start(folder: Path, **values: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "run", "lmtp"],
        env=environment(folder, **values),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder.parent,
    )


def wait_until_it_listens(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "lmtp-door-listening" in line:
            return
    raise AssertionError("".join(lines))


def talk(path: Path) -> list[str]:
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as replies:
        client.settimeout(10)
        client.connect(str(path))
        said = [replies.readline().decode()]
        client.sendall(b"LHLO mta\r\nMAIL FROM:<>\r\nRCPT TO:<posts@localhost>\r\nRCPT TO:<postmaster>\r\nDATA\r\n")
        while not said[-1].startswith("354"):
            said.append(replies.readline().decode())
        client.sendall(b"Subject: x\r\n\r\nx\r\n.\r\n")
        return [replies.readline().decode() for _ in range(2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "var").mkdir()
    return tmp_path / "var"


def test_a_second_gateway_is_told_and_a_killed_one_is_replaced(folder: Path) -> None:
    first = start(folder)
    wait_until_it_listens(first)
    assert stat.S_IMODE((folder / "lmtp.sock").stat().st_mode) == 0o600
    replies = talk(folder / "lmtp.sock")
    assert len(set(replies)) == 1
    assert replies[0].startswith("250 2.0.0 Ok: kept as ")

    second = start(folder)
    _, told = second.communicate(timeout=30)
    assert second.returncode == 2, told
    assert "lmtp_listen" in told
    assert "Address already in use" in told

    first.send_signal(signal.SIGKILL)
    first.communicate()
    third = start(folder, GATEWAY_LMTP_LISTEN=f"unix:{folder}/lmtp.sock?mode=0660")
    wait_until_it_listens(third)
    assert stat.S_IMODE((folder / "lmtp.sock").stat().st_mode) == 0o660
    assert talk(folder / "lmtp.sock")[0].startswith("250")
    third.terminate()
    third.communicate(timeout=30)
    assert third.returncode == 0
    assert not (folder / "lmtp.sock").exists()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"GATEWAY_DATA_DIR": "/tmp/" + "x" * 100}, "lmtp_listen: /tmp/x.*at most 107 bytes, this one has 115"),
        ({"GATEWAY_LMTP_LISTEN": "unix:/a?group=no-such-group"}, "lmtp_listen: group=no-such-group"),
        ({"GATEWAY_LMTP_LISTEN": "nowhere"}, "lmtp_listen: 'nowhere' is neither"),
        ({"GATEWAY_LIMITS__ROOM": "1m"}, "limits.room: is less than one mail"),
    ],
)
def test_a_wrong_setting_of_the_door_is_told_with_its_key(values: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        app.check_values(settings.load(environment=values))


def test_a_relative_socket_begins_where_the_setting_stands(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "gateway.toml"
    file.parent.mkdir()
    file.write_text('lmtp_listen = "unix:run/a.sock?mode=0660"\n')
    assert settings.load(config=file, environment={}).lmtp_listen == f"unix:{file.parent}/run/a.sock?mode=0660"
    from_environment = settings.load(environment={"GATEWAY_LMTP_LISTEN": "unix:a.sock"})
    assert from_environment.lmtp_listen == f"unix:{Path.cwd()}/a.sock"
    assert settings.load(environment={}).lmtp_listen == f"unix:{Path.cwd()}/var/lmtp.sock"
    assert "lmtp" in app.SERVICES
