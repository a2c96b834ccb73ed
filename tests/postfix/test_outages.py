"""Whatever happens to the gateway, Postfix keeps the mail: each arrives exactly once afterwards, and nothing bounces."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from mta import Mta
from premises import DOMAIN, Site

POSTS = f"posts@{DOMAIN}"
TRANSPORTS = pytest.mark.parametrize("transport", ["lmtp", pytest.param("pipe", marks=pytest.mark.long)])


def mail(name: str, size: int = 0) -> bytes:
    head = f"From: ann@example.net\r\nTo: {POSTS}\r\nDate: Fri, 27 Nov 2026 17:00:00 +0000\r\n"
    return (head + f"Message-ID: <{name}@example.net>\r\nSubject: {name}\r\n\r\n{name}\r\n").encode() + (
        b"x" * 76 + b"\r\n"
    ) * (size // 78)


def post(mta: Mta, names: list[str], size: int = 0) -> None:
    for name in names:
        mta.post("ann@example.net", [POSTS], mail(name, size))


def assert_each_once(site: Site, names: list[str]) -> None:
    """Every mail is delivered once; what Postfix had to hand over twice is a duplicate that points to it."""
    rows = site.mails(len(names))
    delivered = Counter(str(row["subject"]) for row in rows if row["disposition"] == "delivered")
    assert delivered == Counter(names)
    assert {str(row["disposition"]) for row in rows} <= {"delivered", "duplicate"}
    assert len(site.house.list("posts", "--limit", "5000")) == len(names)
    site.mta.assert_no_bounces()


@contextmanager
def locked(turn: Path) -> Iterator[None]:
    """Keeps everybody from writing to the file whose turns these are."""
    with turn.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class Fault:
    """What makes writing impossible, and possible again."""

    begin: Callable[[], object]
    end: Callable[[], object]


@contextmanager
def small_disk(site: Site) -> Iterator[Fault]:
    """The gateway's files on a file system of their own, which is filled to its last octet: ENOSPC."""
    folder = site.house.folder
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:  # mounting is forbidden here: then at least the next best fault
        with file_limit(site) as fault:
            yield fault
        return
    ballast = folder / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        assert os.statvfs(folder).f_bavail == 0

    try:
        yield Fault(begin=fill, end=ballast.unlink)
    finally:
        site.close()
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def file_limit(site: Site) -> Iterator[Fault]:
    """No file of the gateway's process may grow beyond what the queue's has now: EFBIG, wherever mounting is forbidden."""

    def limit(size: int) -> None:
        assert site.house.process is not None
        resource.prlimit(site.house.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    yield Fault(begin=lambda: limit(1), end=lambda: limit(resource.RLIM_INFINITY))


@TRANSPORTS
def test_mail_waits_in_postfix_while_the_gateway_is_stopped(transport: str, make_site: Callable[[str], Site]) -> None:
    site = make_site(transport)
    post(site.mta, ["never_started"])
    site.mta.wait_deferred(1)
    site.start_gateway()
    post(site.mta, ["running"])
    site.mails(1)
    assert site.house.stop() == 0
    post(site.mta, ["stopped"])
    site.mta.wait_deferred(2)
    site.start_gateway()
    site.mta.drain()
    assert_each_once(site, ["never_started", "running", "stopped"])


BREAKS: dict[str, Callable[[Path], None]] = {
    "client_gone": lambda libexec: (libexec / "gateway_pipe.py").unlink(),
    "client_empty": lambda libexec: (libexec / "gateway_pipe.py").write_text(""),
    "client_raises": lambda libexec: (libexec / "gateway_pipe.py").write_text("import no_such_module\n"),
    "client_exits_2": lambda libexec: (libexec / "gateway_pipe.py").write_text("import sys\nsys.exit(2)\n"),
    "client_killed": lambda libexec: (libexec / "gateway_pipe.py").write_text(
        "import posix\nposix.kill(posix.getpid(), 9)\n"
    ),
    "client_unreadable": lambda libexec: (libexec / "gateway_pipe.py").chmod(0),
    "python_gone": lambda libexec: _set_python(libexec, "/nonexistent/python3"),
    "python_does_nothing": lambda libexec: _set_python(libexec, "/bin/true"),
    "python_fails": lambda libexec: _set_python(libexec, "/bin/false"),
    "wrapper_gone": lambda libexec: (libexec / "gateway-pipe").unlink(),
}


def _set_python(libexec: Path, python: str) -> None:
    wrapper = libexec / "gateway-pipe"
    wrapper.write_text(wrapper.read_text().replace("python=/usr/bin/python3", f"python={python}"))


@pytest.mark.long
def test_a_broken_python_or_client_defers_every_mail(make_site: Callable[[str], Site]) -> None:
    site = make_site("pipe")
    site.start_gateway()
    libexec = site.folder / "libexec"
    for number, (name, break_it) in enumerate(BREAKS.items(), 1):
        break_it(libexec)
        post(site.mta, [name])
        site.mta.wait_deferred(number)
        site.mta.install(*site.install_words())
    site.mta.drain()
    assert_each_once(site, list(BREAKS))


@TRANSPORTS
def test_mail_waits_in_postfix_while_the_disk_is_full(transport: str, make_site: Callable[[str], Site]) -> None:
    site = make_site(transport)
    free = os.statvfs(site.folder).f_bavail * os.statvfs(site.folder).f_frsize
    site.house.more["GATEWAY_MIN_FREE_BYTES"] = str(2 * free)
    site.start_gateway()
    post(site.mta, ["one"])
    post(site.mta, ["two"], 1_000_000)
    site.mta.wait_deferred(2)
    assert "452" in site.mta.log()
    assert site.house.list("mails") == []
    site.house.stop()
    site.house.more["GATEWAY_MIN_FREE_BYTES"] = "1m"
    site.start_gateway()
    site.mta.drain()
    assert_each_once(site, ["one", "two"])


@TRANSPORTS
@pytest.mark.parametrize("fault", [small_disk, pytest.param(file_limit, marks=pytest.mark.long)])
def test_mail_waits_in_postfix_while_no_more_can_be_written(
    transport: str, fault: Callable[[Site], AbstractContextManager[Fault]], make_site: Callable[[str], Site]
) -> None:
    """Nothing is measured beforehand (`min_free_bytes` is off): the very write of a ticket or a blob fails."""
    site = make_site(transport)
    site.house.more["GATEWAY_MIN_FREE_BYTES"] = "0"
    with fault(site) as disk:
        site.start_gateway()
        post(site.mta, ["before"])
        site.mails(1)
        disk.begin()
        post(site.mta, ["one"], 20_000)
        post(site.mta, ["two"], 1_000_000)
        site.mta.wait_deferred(2)
        assert "451 4.3.0" in site.mta.log()
        disk.end()
        site.mta.drain()
        assert_each_once(site, ["before", "one", "two"])
        assert site.house.stop() == 0


@TRANSPORTS
def test_mail_waits_in_postfix_while_the_queue_is_locked_away(transport: str, make_site: Callable[[str], Site]) -> None:
    site = make_site(transport)
    site.start_gateway()
    with locked(site.house.folder / "queue.db.turn"):
        post(site.mta, ["one", "two"])
        site.mta.wait_deferred(2)
        assert "451 4.3.0" in site.mta.log()
    site.mta.drain()
    assert_each_once(site, ["one", "two"])


def test_mail_is_taken_while_the_store_is_locked_away_and_stored_later(make_site: Callable[[str], Site]) -> None:
    site = make_site("lmtp")
    site.start_gateway()
    names = [f"store_away_{number}" for number in range(5)]
    with locked(site.house.folder / "store.db.turn"):
        post(site.mta, names)
        site.mta.drain()
        log = site.house.log()
        assert log.count("mail-queued") == len(names)
        assert "mail-recorded" not in log
    assert_each_once(site, names)


@TRANSPORTS
@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.long)])
def test_kills_at_any_moment_lose_nothing_and_bounce_nothing(
    transport: str, kills: int, make_site: Callable[[str], Site]
) -> None:
    """Half of the kills at named places of the door, half at random moments of a large mail's DATA."""
    site = make_site(transport)
    moment = random.Random(transport)
    names: list[str] = []
    places = ("intake.published.before", "intake.published.after", "door.replied.before", "intake.blob_stored")
    for kill in range(kills):
        failpoint = places[kill // 2 % len(places)] if kill % 2 else ""
        site.start_gateway("lmtp", failpoint=failpoint)
        names.append(f"kill_{kill}")
        post(site.mta, names[-1:], 3_000_000)
        site.mta.flush()
        if not failpoint:
            _kill_within_data(site, moment.random())
        assert site.house.process is not None
        site.house.process.wait(timeout=60)
    site.start_gateway()
    site.mta.drain()
    assert_each_once(site, names)


def _kill_within_data(site: Site, share: float) -> None:
    """Kills the gateway once the large mail comes in, after a share of the time that takes."""
    assert site.house.process is not None
    deadline = time.monotonic() + 60
    while site.mta.waiting() and not site.is_taking_data():
        assert time.monotonic() < deadline, site.mta.log()[-3000:]
    time.sleep(share * 0.05)  # the random moment is the test
    site.house.kill()
