"""One machine: a gateway behind a real Postfix, by LMTP or by pipe; all in private folders, ended by their process ids."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "crash"))

from house import House
from mta import PIPE_USER, SETTLE_SECONDS, Mta

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
[[mailboxes]]
address = "members@{DOMAIN}"
kind = "posts"
who = "members"
[[mailboxes]]
address = "drop@{DOMAIN}"
kind = "posts"
who = "secret"
"""


@dataclass
class Site:
    """Postfix and the gateway behind it."""

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

    def close(self) -> None:
        self.mta.stop()
        if self.house.process is not None and self.house.process.poll() is None:
            self.house.kill()

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

    def mails(self, count: int, subjects: Collection[str] = ()) -> list[dict[str, object]]:
        """Waits until so many (mail, recipient), of these subjects if any, have their disposition and returns them."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            listed = self.house.list("mails", "--limit", "5000")
            rows = [row for row in listed if not subjects or row["subject"] in subjects]
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


@contextmanager
def open_sites() -> Iterator[Callable[[str], Site]]:
    """Builds sites; Postfix's own user must be able to enter their folders, which pytest's it could not."""
    with ExitStack() as stack:
        yield partial(_open_site, stack)


def _open_site(stack: ExitStack, transport: str) -> Site:
    folder = Path(tempfile.mkdtemp(prefix="gateway-postfix-", dir="/tmp"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    (folder / "gateway.toml").write_text(SETTINGS)
    (folder / "var").mkdir()
    access = "mode=0660&group=postfix" if transport == "lmtp" else "mode=0666"
    house = House(folder / "var", "capture:")
    house.more = {
        "GATEWAY_CONFIG": str(folder / "gateway.toml"),
        "GATEWAY_LMTP_LISTEN": f"unix:{folder}/lmtp.sock?{access}",
    }
    site = Site(Mta(folder / "mta"), house, folder, transport)
    site.gateway("recipients", "export", str(folder / "recipients"))
    site.mta.prepare()
    site.mta.install(*site.install_words())
    stack.callback(site.close)
    site.mta.start()
    return site
