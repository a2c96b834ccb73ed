"""A whole gateway in a process of its own, and what the tests put into it: real mail through the door, real email from an app."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.message import EmailMessage
from email.policy import SMTP
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from PIL import Image, ImageDraw

import gateway
from gateway.app import Store, open_store
from gateway.client import open_broker
from gateway.mail.ids import new_id
from gateway.queue.ticket import POST_CREATE, Ticket
from gateway.settings import load
from gateway.store.lists import ListKind

WAIT_SECONDS = 90
SCRIPT = "<script>alert(1)</script>"
BROKEN_TEMPLATE = "{% set shelf = {} %}{{ shelf[name] }}"
HTML = """<table bgcolor="#eef6f4" width="560" align="center"><tr><td style="padding:24px;font-family:Georgia">
<h1 style="color:#0b5f54">Greetings from the lake</h1><p>Here is the <b>harbour</b>:</p><img src="cid:harbour@test" width="320">
<p><a href="https://example.org/">More of it</a></p></td></tr></table>"""


class Lodge:
    """The gateway of one test module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.smtp_port, self.web_port = _free_port(), _free_port()
        self.url = f"http://127.0.0.1:{self.web_port}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
        self.env = kept | {
            "GATEWAY_DATA_DIR": str(folder / "var"),
            "GATEWAY_SMTP_LISTEN": f"127.0.0.1:{self.smtp_port}",
            "GATEWAY_WEB_LISTEN": f"127.0.0.1:{self.web_port}",
            "GATEWAY_TEMPLATES_DIR": str(folder / "templates"),
            "GATEWAY_MIN_FREE_BYTES": "1m",
        }

    @contextmanager
    def running(self) -> Iterator[Lodge]:
        self._write_template("broken", subject="Broken", text=BROKEN_TEMPLATE)
        self._write_template("mended", subject="For {{ name }}", text="Hello {{ name }}")
        log = (self.folder / "log").open("wb")
        command = [sys.executable, "-m", "gateway.cli", "run"]
        process = subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=log, stderr=log)
        try:
            self.until(self._answers, "the gateway answers")
            yield self
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=WAIT_SECONDS)
            log.close()
        assert process.returncode == 0, self.log()

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        """Waits until something is so, and returns it."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if found := holds():
                return found
            time.sleep(0.1)
        raise AssertionError(f"not within {WAIT_SECONDS} s: {what}\n{self.log()[-4000:]}")

    def invitation(self, name: str) -> str:
        """The path of the link that makes a user."""
        line = [sys.executable, "-m", "gateway.cli", "users", "invite", name]
        done = subprocess.run(line, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=WAIT_SECONDS)
        assert done.returncode == 0, done.stderr
        return "/invitation/" + done.stdout.strip().rsplit("/", 1)[-1]

    def mail(self, octets: bytes, rcpt_to: str, mail_from: str = "visitor@localhost") -> str:
        """Mails through the door; returns the mail id it told."""
        with smtplib.SMTP("127.0.0.1", self.smtp_port, local_hostname="t.localhost", timeout=WAIT_SECONDS) as session:
            session.ehlo()
            session.mail(mail_from)
            session.rcpt(rcpt_to)
            code, text = session.data(octets)
        assert code == 250, text
        return text.decode().rsplit(" ", 1)[-1]

    def deliver(self, octets: bytes, rcpt_to: str, disposition: str = "delivered", **values: str) -> dict[str, Any]:
        """Mails and waits for its disposition; returns the line of the list."""
        return self._settled("mails", self.mail(octets, rcpt_to, **values), disposition)

    def send(self, template: str, disposition: str = "relayed", **fields: Any) -> str:
        """Sends an email as an app would, and waits for its disposition."""

        async def queue() -> str:
            async with gateway.connect(f"sqlite:///{self.folder}/var/queue.db") as client:
                return str(await client.send(template, **fields))

        email_id = run(queue())
        self._settled("emails", email_id, disposition)
        return email_id

    def _settled(self, kind: ListKind, identity: str, disposition: str) -> dict[str, Any]:
        wanted = {"id": identity, "disposition": disposition}

        def line() -> dict[str, Any] | None:
            return next(iter(self.with_store(lambda store: store.lists.page(kind, wanted)).rows), None)

        return dict(self.until(line, f"{identity} is {disposition}"))

    def with_store(self, work: Callable[[Store], Awaitable[Any]]) -> Any:
        """Asks the store, as another process beside the gateway."""
        settings = load(environment=self.env)

        async def at_the_store() -> Any:
            async with open_store(settings) as store:
                return await work(store)

        return run(at_the_store())

    def with_broker(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        """Does something at the queue, as another process beside the gateway."""

        async def at_the_queue() -> Any:
            async with open_broker(f"sqlite:///{self.folder}/var/queue.db") as broker:
                return await work(broker)

        return run(at_the_queue())

    def dead_letter(self, octets: bytes = b'{"no": "post"}') -> str:
        """A request that can never become a post ends as a dead letter; returns its number."""
        identity = new_id()
        self.with_broker(lambda broker: broker.publish([Ticket(queue=POST_CREATE, id=identity, body=octets)]))

        def number() -> str | None:
            letters = self.with_broker(lambda broker: broker.dead())
            return next((item.number for item in letters if item.ticket.id == identity), None)

        return str(self.until(number, "the ticket is a dead letter"))

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def _write_template(self, name: str, *, subject: str, text: str) -> None:
        folder = self.folder / "templates" / name
        folder.mkdir(parents=True)
        (folder / "subject.txt").write_text(subject)
        (folder / "body.txt").write_text(text)
        schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        (folder / "schema.json").write_text(json.dumps(schema))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine in a thread of its own: Playwright keeps a loop running in the test's."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def photo(words: str, colour: str) -> bytes:
    """A picture with words on it."""
    image = Image.new("RGB", (1200, 800), colour)
    ImageDraw.Draw(image).text((80, 80), words, fill="white", font_size=96)
    file = BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()


def message(subject: str, text: str = "Hello\n", *, sender: str = "Ann Example <ann@example.org>") -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = sender
    mail["To"] = "posts@localhost"
    mail["Subject"] = subject
    mail.set_content(text)
    return mail


def album() -> bytes:
    mail = message("A day at the lake", "Two photos.\n\n1. The harbour at noon\n2. The last boat home\n")
    for name, colour in (("img_0001.jpg", "#2a6f97"), ("img_0002.jpg", "#b5651d")):
        mail.add_attachment(photo(name, colour), maintype="image", subtype="jpeg", filename=name)
    return mail.as_bytes(policy=SMTP)


def html_mail(subject: str = "Greetings from the lake", html: str = HTML) -> bytes:
    mail = message(subject, "Greetings from the lake.\n")
    mail.add_alternative(html, subtype="html")
    body = mail.get_payload(1)
    body.add_related(photo("harbour", "#0b5f54"), "image", "jpeg", cid="<harbour@test>")
    mail.add_attachment(b"%PDF-1.4\n%%EOF\n", maintype="application", subtype="pdf", filename="plan of the lake.pdf")
    return mail.as_bytes(policy=SMTP)


def matryoshka(subject: str = "A matryoshka") -> bytes:
    """Parts within parts, deeper than any budget allows: it is held."""
    head = f"From: visitor@localhost\r\nSubject: {subject}\r\nMIME-Version: 1.0\r\n"
    parts = "".join(f'Content-Type: multipart/mixed; boundary="b{depth}"\r\n\r\n--b{depth}\r\n' for depth in range(400))
    return (head + parts + "Content-Type: text/plain\r\n\r\nthe smallest one\r\n").encode()
