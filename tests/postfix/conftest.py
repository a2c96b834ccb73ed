"""A gateway behind a real Postfix, by LMTP or by pipe; each in private folders, both ended by their process ids."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "crash"))

from house import House
from mta import PIPE_USER, SETTLE_SECONDS, Mta, missing

DOMAIN = "in.example.org"
DOMAINS = (DOMAIN, "bücher.example", "xn--bcher-kva.example")
SETTINGS = f"""\
domains = ["{DOMAIN}", "bücher.example"]
[[mailboxes]]
address = "posts@{DOMAIN}"
kind = "posts"
[[mailboxes]]
address = "*@bücher.example"
kind = "posts"
"""


@dataclass
class Site:
    """One machine: Postfix, the gateway behind it, and what was posted."""

    mta: Mta
    house: House
    folder: Path
    transport: str
    open_files: int = 0

    @property
    def socket(self) -> Path:
        return self.folder / "lmtp.sock"

    def install_words(self) -> list[str]:
        """What the gateway's own installer is told for this site."""
        words = ["--recipients", str(self.folder / "recipients"), "--socket", str(self.socket)]
        words += ["--transport", self.transport, "--pipe-user", PIPE_USER, "--libexec", str(self.folder / "libexec")]
        return [*words, *(word for domain in DOMAINS for word in ("--domain", domain))]

    def start_gateway(self, *services: str, failpoint: str = "") -> None:
        self.house.start(failpoint, *services)
        if not services or "lmtp" in services:
            self.wait_for_door()

    def wait_for_door(self) -> None:
        assert self.house.process is not None
        wanted = f"pid={self.house.process.pid}"
        deadline = time.monotonic() + SETTLE_SECONDS
        while "gateway-serving" not in self.house.log() or wanted not in self.house.log():
            assert self.house.process.poll() is None, self.house.log()[-3000:]
            assert time.monotonic() < deadline, self.house.log()[-3000:]
            time.sleep(0.05)  # polling a log file: the process tells nobody else
        self.open_files = self._files()

    def is_taking_data(self) -> bool:
        """Whether the door has a connection (or more) that it had not when it began to serve."""
        return self._files() > self.open_files

    def _files(self) -> int:
        assert self.house.process is not None
        return len(os.listdir(f"/proc/{self.house.process.pid}/fd"))

    def gateway(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *words],
            env=self.house.environment(),
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def mails(self, count: int) -> list[dict[str, object]]:
        """Waits until so many (mail, recipient) have their disposition and returns them."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            rows = self.house.list("mails", "--limit", "5000")
            if len([row for row in rows if row["disposition"] != "pending"]) >= count:
                return rows
            assert time.monotonic() < deadline, (rows[-5:], self.house.log()[-3000:])
            time.sleep(0.1)  # asking by the command, as a person would

    def octets(self) -> dict[str, bytes]:
        """The octets of every mail in the store, by mail id."""
        with closing(sqlite3.connect(f"file:{self.house.folder}/store.db?mode=ro", uri=True)) as store:
            rows = store.execute("SELECT mail_id, blob, octets FROM mail_octets").fetchall()
        return {mail_id: octets if blob is None else self._blob(blob) for mail_id, blob, octets in rows}

    def _blob(self, digest: str) -> bytes:
        name = digest.removeprefix("sha256:")
        return (self.house.folder / "blobs" / name[:2] / name).read_bytes()


@pytest.fixture
def make_site() -> Iterator[Callable[[str], Site]]:
    """Builds a site; Postfix's own user must be able to enter its folder, which pytest's it could not."""
    if why := missing():
        pytest.skip(f"POSTFIX IS NOT TESTED: {why}")
    with ExitStack() as stack:

        def make(transport: str) -> Site:
            folder = Path(tempfile.mkdtemp(prefix="gateway-postfix-", dir="/tmp"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.chmod(0o755)
            (folder / "gateway.toml").write_text(SETTINGS)
            (folder / "var").mkdir()
            mta, house = Mta(folder / "mta"), House(folder / "var", "capture:")
            access = "mode=0660&group=postfix" if transport == "lmtp" else "mode=0666"
            house.more = {
                "GATEWAY_CONFIG": str(folder / "gateway.toml"),
                "GATEWAY_LMTP_LISTEN": f"unix:{folder}/lmtp.sock?{access}",
            }
            site = Site(mta, house, folder, transport)
            site.gateway("recipients", "export", str(folder / "recipients"))
            mta.prepare()
            mta.install(*site.install_words())
            mta.start()
            stack.callback(mta.stop)
            stack.callback(lambda: house.process and house.process.poll() is None and house.kill())
            return site

        yield make
