"""A real Postfix of its own: private folders, a free port, set up by `postfix/install`, ended by its process id."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "postfix" / "install"
READY_SECONDS = 30
SETTLE_SECONDS = 90
POLL_SECONDS = 0.05
PIPE_USER = "nobody"

MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
myhostname = mta.example.net
mydestination = mta.example.net
inet_interfaces = 127.0.0.1
inet_protocols = all
mynetworks = 127.0.0.0/8
smtpd_authorized_xforward_hosts = 127.0.0.0/8
smtpd_peername_lookup = no
smtpd_recipient_limit = 2000
alias_maps =
alias_database =
smtpd_client_connection_count_limit = 0
minimal_backoff_time = 600s
queue_run_delay = 600s
"""
MASTER_CF = """\
{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
smtp unix - - n - - smtp
relay unix - - n - - smtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


def missing() -> str:
    """Why there can be no Postfix here, '' when there can."""
    if os.getuid() != 0:
        return "Postfix's master is started as root"
    if not Path("/usr/lib/postfix/sbin/master").exists():
        return "Postfix is not installed (make services)"
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Mta:
    """Postfix in `folder`, which its own user must be able to enter."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.folder / "conf"

    def prepare(self) -> None:
        """Writes the configuration of a plain Postfix."""
        for name in ("conf", "queue", "data"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        os.chown(self.folder / "data", pwd.getpwnam("postfix").pw_uid, grp.getgrnam("postfix").gr_gid)
        (self.config / "main.cf").write_text(MAIN_CF.format(folder=self.folder))
        (self.config / "master.cf").write_text(MASTER_CF.format(port=self.port))
        for name in ("postfix-files", "dynamicmaps.cf"):
            shutil.copy(f"/etc/postfix/{name}", self.config / name)
        for name in ("postfix-files.d", "dynamicmaps.cf.d"):
            (self.config / name).mkdir()

    def install(self, *words: str) -> str:
        """Runs `postfix/install` on it and returns what that printed."""
        done = subprocess.run(
            [str(INSTALL), "--config", str(self.config), *words], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        log = (self.folder / "start.log").open("wb")
        self.process = subprocess.Popen(
            ["/usr/sbin/postfix", "-c", str(self.config), "start-fg"], stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "start.log").read_text() + self.log()
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                    if connection.recv(3) == b"220":
                        return
            except OSError:
                time.sleep(POLL_SECONDS)  # polling for a listening port: there is nothing else to wait on
        raise AssertionError(f"Postfix did not come up: {self.log()[-3000:]}")

    def stop(self) -> None:
        """Ends master, and with it all of Postfix; `start-fg` is a script above it that only waits for its end."""
        if self.process is not None and self.process.poll() is None:
            os.kill(int((self.folder / "queue" / "pid" / "master.pid").read_text()), signal.SIGTERM)
            self.process.wait(timeout=60)

    def log(self) -> str:
        file = self.folder / "maillog"
        return file.read_text(errors="replace") if file.exists() else ""

    def post(self, mail_from: str, rcpt_to: list[str], octets: bytes, **facts: str) -> None:
        """Posts a mail as a client would; with facts as one for whom another mail server speaks (XFORWARD)."""
        with smtplib.SMTP("127.0.0.1", self.port, local_hostname="client.example.net", timeout=120) as session:
            session.ehlo()
            if facts:
                code, reply = session.docmd("XFORWARD", " ".join(f"{key}={value}" for key, value in facts.items()))
                assert code == 250, reply
            options = ["BODY=8BITMIME", f"SIZE={len(octets)}"]
            if not (mail_from + "".join(rcpt_to)).isascii():
                session.command_encoding = "utf-8"
                options.append("SMTPUTF8")
            code, reply = session.mail(mail_from, options)
            assert code == 250, reply
            for recipient in rcpt_to:
                code, reply = session.rcpt(recipient)
                assert code == 250, (recipient, reply)
            code, reply = session.data(octets)
            assert code == 250, reply

    def command(self, name: str, *words: str) -> str:
        done = subprocess.run([f"/usr/sbin/{name}", "-c", str(self.config), *words], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def flush(self) -> None:
        self.command("postqueue", "-f")

    def waiting(self) -> int:
        """How many mails Postfix still has."""
        folders = ("incoming", "active", "deferred", "maildrop", "hold")
        return sum(1 for name in folders for path in (self.folder / "queue" / name).rglob("*") if path.is_file())

    def wait_deferred(self, mails: int) -> None:
        """Waits until each of so many mails was tried and deferred, none of them being tried any more."""
        self._until(lambda: self._in("deferred") >= mails and self._in("active") + self._in("incoming") == 0)

    def drain(self) -> None:
        """Flushes the queue until it is empty, as an administrator after an outage."""
        self.flush()
        began = time.monotonic()

        def is_empty() -> bool:
            nonlocal began
            if time.monotonic() - began > 2 and self.waiting():
                self.flush()  # what was in flight during the last flush, or while Postfix reloaded, was passed over
                began = time.monotonic()
            return self.waiting() == 0

        self._until(is_empty)

    def _in(self, name: str) -> int:
        return sum(1 for path in (self.folder / "queue" / name).rglob("*") if path.is_file())

    def _until(self, condition: object) -> None:
        assert callable(condition)
        deadline = time.monotonic() + SETTLE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.log()[-4000:]
            time.sleep(POLL_SECONDS)  # Postfix tells nobody when it is done

    def assert_no_bounces(self) -> None:
        log = self.log()
        statuses = Counter(re.findall(r"status=(\w+)", log))
        assert not {name for name in statuses if name not in {"sent", "deferred"}}, (statuses, log[-4000:])
        for line in log.splitlines():
            is_bad = "fatal:" in line or "panic:" in line
            assert not is_bad or "execvp" in line, line  # a program that is gone is one of the cases
        for name in ("bounce", "corrupt"):
            assert self._in(name) == 0, log[-4000:]
        if not self.waiting():
            assert self._in("defer") == 0, log[-4000:]


def without_trace(octets: bytes) -> bytes:
    """A mail as Postfix got it: without the one Received header it put on top."""
    assert octets.startswith(b"Received: from "), octets[:200]
    lines = octets.split(b"\r\n")
    end = next(number for number, line in enumerate(lines[1:], 1) if line[:1] not in (b" ", b"\t"))
    return b"\r\n".join(lines[end:])
