"""`gateway run --processes N`: several processes behind the same sockets, which stop and die together."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "crash"))

from house import House

MAILS = 40


def pids(house: House) -> list[int]:
    """The processes that say they serve; the first to say so started the others."""
    return [int(pid) for pid in re.findall(r"serving.*?pid=(\d+)", house.log())]


def wait_for_pids(house: House, count: int) -> list[int]:
    deadline = time.monotonic() + 60
    while len(found := pids(house)) < count:
        assert time.monotonic() < deadline, house.log()
        time.sleep(0.05)  # polling another process's log
    return found


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def house(tmp_path: Path) -> House:
    (tmp_path / "var").mkdir()
    return House(tmp_path / "var", "capture:")


def test_two_processes_share_the_doors_and_stop_when_they_are_asked(house: House) -> None:
    house.start("", "--processes", "2")
    try:
        parent, *workers = wait_for_pids(house, 3)
        assert parent == house.process.pid  # type: ignore[union-attr]
        served = set()
        for number in range(MAILS):
            with smtplib.SMTP("127.0.0.1", house.smtp_port, timeout=60) as client:
                client.sendmail("ann@example.org", ["posts@localhost"], f"Subject: {number}\r\n\r\nhello\r\n")
                served |= {pid for pid in workers if _has_client(pid, client.sock.getsockname()[1])}
        assert served == set(workers), "both took some"
        with socket.socket(socket.AF_UNIX) as lmtp:
            lmtp.connect(str(house.folder / "lmtp.sock"))
            assert lmtp.recv(3) == b"220"
        deadline = time.monotonic() + 60
        while len(house.list("posts")) < MAILS:
            assert time.monotonic() < deadline
        assert house.balance()["missing"] == []
        assert house.stop() == 0, house.log()
        assert not any(map(is_there, workers))
        assert not (house.folder / "lmtp.sock").exists()
    finally:
        house.kill()


def test_one_that_dies_ends_all_with_exit_one(house: House) -> None:
    house.start("", "smtp", "ingest", "--processes", "2")
    try:
        _, one, other = wait_for_pids(house, 3)
        os.kill(one, signal.SIGKILL)
        assert house.process.wait(timeout=60) == 1  # type: ignore[union-attr]
        assert not is_there(other)
        [told] = [line for line in house.log().splitlines() if "gateway-process-died" in line]
        assert f"pid={one}" in told
    finally:
        house.kill()


def test_none_outlives_the_one_that_started_it(house: House) -> None:
    house.start("", "smtp", "--processes", "2")
    _, *workers = wait_for_pids(house, 3)
    house.kill()
    deadline = time.monotonic() + 30
    while any(map(is_there, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)  # the kernel ends them; there is nothing to wait on for who is not their parent


def test_a_mistake_is_told_once_and_nothing_starts(house: House) -> None:
    with socket.create_server(("127.0.0.1", house.smtp_port)):
        house.start("", "smtp", "--processes", "3")
        assert house.process.wait(timeout=60) == 2  # type: ignore[union-attr]
    assert house.log().count("smtp_listen") == 2, house.log()  # its key, and the advice to change it
    assert "serving" not in house.log()


def _has_client(pid: int, port: int) -> bool:
    """Whether the process has the other end of that client's connection."""
    wanted = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, _, *_, inode = line.split()[:10]
        if int(remote.partition(":")[2], 16) == port:
            wanted.add(f"socket:[{inode}]")
    for item in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(item) in wanted:
                return True
    return False
