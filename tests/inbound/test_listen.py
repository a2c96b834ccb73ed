"""Where a door listens: addresses, socket files, who may connect, and whose file it is."""

from __future__ import annotations

import asyncio
import errno
import grp
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import House, Talk

from gateway.inbound.listen import TcpAddress, UnixAddress, open_unix, parse_listen
from gateway.inbound.lmtp_door import LmtpDoor

LISTENER = """
import sys
from pathlib import Path
from gateway.inbound.listen import UnixAddress, open_unix
listener = open_unix(UnixAddress(path=Path(sys.argv[1])))
print("listening", flush=True)
sys.stdin.read()
"""


def test_addresses_are_read() -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    assert parse_listen("127.0.0.1:24") == TcpAddress(host="127.0.0.1", port=24)
    assert parse_listen("[::1]:24") == TcpAddress(host="::1", port=24)
    assert parse_listen("unix:/run/a.sock") == UnixAddress(path=Path("/run/a.sock"), mode=0o600)
    assert parse_listen("unix:/run/a.sock?mode=0660") == UnixAddress(path=Path("/run/a.sock"), mode=0o660)
    with_group = UnixAddress(path=Path("/run/a.sock"), mode=0o660, gid=os.getgid())
    assert parse_listen(f"unix:/run/a.sock?group={group}") == with_group
    assert parse_listen("unix:/" + "x" * 106).path == Path("/" + "x" * 106)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("unix:/" + "x" * 107, "at most 107 bytes, this one has 108"),
        ("unix:/" + "ü" * 54, "this one has 109"),
        ("unix:run/a.sock", "starts with /"),
        ("unix:/a?mode=rw", "octal"),
        ("unix:/a?mode=1777", "octal"),
        ("unix:/a?owner=root", "no option 'owner'"),
        ("unix:/a?group=no-such-group", "no such group"),
        ("lmtp.sock", "neither HOST:PORT nor unix:PATH"),
        ("localhost:70000", "neither"),
        (":24", "neither"),
    ],
)
def test_a_wrong_address_is_told(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_listen(text)


def test_mode_and_group_are_set_before_anyone_can_connect(tmp_path: Path) -> None:
    group = next((gid for gid in os.getgroups() if gid != os.getgid()), os.getgid())
    before = os.umask(0)
    try:
        listener = open_unix(UnixAddress(path=tmp_path / "a.sock", mode=0o620, gid=group))
    finally:
        os.umask(before)
    with listener:
        found = (tmp_path / "a.sock").stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o620, group)


def test_the_socket_of_a_killed_process_is_replaced_and_of_a_living_one_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    with pytest.raises(OSError) as refused:
        open_unix(UnixAddress(path=path))
    assert refused.value.errno == errno.EADDRINUSE
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.exists()
    with open_unix(UnixAddress(path=path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_of_many_that_start_at_once_exactly_one_listens(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LISTENER, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(4)
    ]
    said = [process.stdout.readline() for process in processes if process.stdout]
    for process in processes:
        process.communicate()
    assert sorted(said) == ["", "", "", "listening\n"]


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(FileExistsError, match="no socket"):
        open_unix(UnixAddress(path=path))
    assert path.read_text() == "data"


async def test_a_door_on_a_socket_takes_mail_and_takes_its_file_away(house: House) -> None:
    path = house.folder / "lmtp.sock"
    door = await house.open_door(LmtpDoor, listen=f"unix:{path}?mode=0666")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    talk = await Talk.with_door(door)
    await talk.begin_data()
    assert (await talk.say("x\r\n.")).startswith("250")
    talk.close()
    await door.close()
    assert not path.exists()
    (ticket,) = await house.tickets()
    assert (ticket.headers["door"], ticket.headers["client"]) == ("lmtp", "local")


async def test_a_closing_door_leaves_its_successors_file(house: House) -> None:
    path = house.folder / "lmtp.sock"
    first = await house.open_door(LmtpDoor, listen=f"unix:{path}")
    path.unlink()
    second = await house.open_door(LmtpDoor, listen=f"unix:{path}")
    await first.close()
    talk = await Talk.with_door(second)
    assert (await talk.reply()).startswith("220")
    talk.close()


async def test_programs_of_this_machine_may_come_in_any_number(house: House) -> None:
    door = await house.open_door(LmtpDoor, listen=f"unix:{house.folder}/lmtp.sock", connections_per_client=2)
    talks = await asyncio.gather(*(Talk.with_door(door) for _ in range(5)))
    assert [(await talk.reply())[:3] for talk in talks] == ["220"] * 5
    for talk in talks:
        talk.close()
