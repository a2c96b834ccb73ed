"""The systemd units: sound, hardened, and what they promise of the doors' sockets and of the memory holds for the gateway."""

from __future__ import annotations

import os
import shutil
import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "crash"))

from house import READY_SECONDS, House, free_port

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
NAMES = (
    "gateway.service",
    "gateway@ingest.service",
    "gateway-smtp.socket",
    "gateway-smtps.socket",
    "gateway-lmtp.socket",
)
EXPOSURE = "30"  # tenths
MAIL = b"From: ann@example.net\r\nTo: posts@localhost\r\nSubject: woken\r\n\r\nx\r\n"
GATEWAY = [sys.executable, "-m", "gateway.cli", "run"]
REFUSE_EXEC_GAIN = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as they are, but for the path of a gateway that exists here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("THE SYSTEMD UNITS ARE NOT TESTED: systemd-analyze is not installed")
    program = tmp_path / "gateway"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in UNITS.iterdir():
        text = path.read_text().replace("/opt/gateway/.venv/bin/gateway", str(program))
        (tmp_path / path.name).write_text(text)
    return tmp_path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", "--no-pager", *words], capture_output=True, text=True, timeout=120)


def test_the_units_are_sound(units: Path) -> None:
    done = analyze("verify", *(str(units / name) for name in NAMES))
    complaints = [line for line in done.stderr.splitlines() if str(units) in line or "gateway" in line]
    assert (done.returncode, complaints) == (0, []), done.stderr
    (units / "gateway.service").write_text("[Service]\nExecStart=nothing\nNoSuchKey=yes\n")
    assert analyze("verify", str(units / "gateway.service")).returncode != 0


@pytest.mark.parametrize("name", ["gateway.service", "gateway@ingest.service"])
def test_the_services_are_hardened(name: str, units: Path) -> None:
    path = units / name
    if "@" in name:
        shutil.copy(units / "gateway@.service", path)
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", str(path))
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overall exposure level" in done.stdout


def environment(folder: Path) -> dict[str, str]:
    return {"GATEWAY_DATA_DIR": str(folder), "GATEWAY_MIN_FREE_BYTES": "0"}


@pytest.fixture
def woken(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """A gateway that systemd starts at the first connection, with the SMTP door's socket and nothing named in the settings."""
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("SOCKET ACTIVATION IS NOT TESTED: systemd-socket-activate is not installed")
    port, folder = free_port(), tmp_path / "var"
    folder.mkdir()
    values = [f"--setenv={key}={value}" for key, value in environment(folder).items()]
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", "--fdname=smtp", *values, *GATEWAY, "smtp"],
        stdout=log,
        stderr=log,
        cwd=tmp_path,
        env=os.environ | environment(folder),
    )
    log.close()
    yield process, port, tmp_path
    process.kill()
    process.wait()


def test_a_door_woken_by_a_client_takes_its_mail(woken: tuple[subprocess.Popen[bytes], int, Path]) -> None:
    process, port, folder = woken
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            session = smtplib.SMTP("127.0.0.1", port, local_hostname="client.example.net", timeout=60)
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)  # polling for a listening port: there is nothing else to wait on
    with session:
        assert session.sendmail("ann@example.net", ["posts@localhost"], MAIL) == {}
    text = (folder / "log").read_text()
    assert f"at='127.0.0.1:{port}'" in text, text
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert "mail-queued" in (folder / "log").read_text()


def test_sockets_meant_for_another_process_are_left_alone(tmp_path: Path) -> None:
    code = (
        "import os; os.environ.update(LISTEN_PID='1', LISTEN_FDS='1', LISTEN_FDNAMES='smtp')\n"
        "from gateway.inbound.activation import Activation\n"
        "print(Activation().take('smtp'), 'LISTEN_FDS' in os.environ)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["[]", "False"]


def test_the_whole_gateway_works_where_no_memory_becomes_executable(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    house = House(tmp_path / "var", "capture:")
    log = (tmp_path / "gateway.log").open("wb")
    command = [sys.executable, "-c", REFUSE_EXEC_GAIN, *GATEWAY]
    house.process = subprocess.Popen(command, env=house.environment(), stdout=log, stderr=log, cwd=tmp_path)
    log.close()
    try:
        if not house.wait_ready():
            assert "Invalid argument" in house.log(), house.log()
            pytest.skip("MEMORYDENYWRITEEXECUTE IS NOT TESTED: this kernel has no PR_SET_MDWE")
        with smtplib.SMTP("127.0.0.1", house.smtp_port, local_hostname="client.example.net", timeout=60) as session:
            session.sendmail("ann@example.net", ["posts@localhost"], MAIL)
        house.list("emails")
        deadline = time.monotonic() + READY_SECONDS
        while not house.list("posts"):
            assert time.monotonic() < deadline, house.log()[-3000:]
            time.sleep(0.1)  # asking by the command, as a person would
        assert house.stop() == 0
    finally:
        house.kill()
