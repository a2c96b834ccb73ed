"""A whole gateway at work and what a test of it needs: its doors and API, a relay, an app that hears the events.

`gateway run` is a process of its own, reached by nothing but its ports, its queue and its commands.  Waiting is looking at
the API again and again, as a person would: nothing else tells of another process's work.
"""

from __future__ import annotations

import asyncio
import json
import smtplib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any, TypeVar

from crash.house import House
from fakes.scripted_relay import ScriptedRelay

import gateway
from gateway.client import Client
from gateway.errors import QueueUnavailable

T = TypeVar("T")
SETTLE_SECONDS = 120.0
LOOK_SECONDS = 0.2
LADDER = "1s 2s 4s"
SENDER = "ann@example.org"
MOODY = "moody@localhost"
_MAILBOXES = [
    *({"address": f"{kind}@localhost", "kind": kind} for kind in ("posts", "photos", "support")),
    {"address": MOODY, "kind": "moody_box:MoodyBox"},
]


def house_on(folder: Path, relay_port: int, urls: dict[str, str], **more: str) -> House:
    """A house in its own folder; `urls` has queue_url, database_url and blobs_url where they are not the default."""
    (folder / "data").mkdir(parents=True)
    values = {f"GATEWAY_{key.upper()}": url for key, url in urls.items()} | {
        "GATEWAY_RETRY_LADDER": LADDER,
        "GATEWAY_MAILBOXES": json.dumps(_MAILBOXES),
        "PYTHONPATH": str(Path(__file__).parent),
        "MOODY_MENDED": str(folder / "mended"),
    }
    return House(folder / "data", f"smtp://127.0.0.1:{relay_port}", more=values | more)


@dataclass
class Place:
    """One house with its neighbours."""

    house: House
    relay: ScriptedRelay
    queue_url: str
    client: Client
    events: list[dict[str, Any]] = field(default_factory=list)

    # what neighbours do

    async def mail(self, octets: bytes, *to: str) -> str:
        """Brings a mail to the SMTP door; returns the id that the 250 told. Raises what smtplib raises."""
        return await asyncio.to_thread(self._mail, octets, to)

    def _mail(self, octets: bytes, to: Sequence[str]) -> str:
        with smtplib.SMTP("127.0.0.1", self.house.smtp_port, local_hostname="here.test", timeout=90) as session:
            session.ehlo()
            session.mail(SENDER)
            for rcpt_to in to:
                assert session.rcpt(rcpt_to)[0] == 250
            code, text = session.data(octets)
        if code != 250:
            raise smtplib.SMTPDataError(code, text)
        return text.decode().rsplit(" ", 1)[-1]

    async def get(self, path: str) -> Any:
        """What the API says there, JSON or octets; None for 404 and while it cannot answer."""
        return await asyncio.to_thread(self._call, path, None)

    async def post(self, path: str, octets: bytes) -> Any:
        return await asyncio.to_thread(self._call, path, octets)

    def _call(self, path: str, octets: bytes | None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.house.web_port}{path}", data=octets)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body = answer.read()
                return json.loads(body) if answer.headers["Content-Type"] == "application/json" else body
        except urllib.error.URLError as error:
            if getattr(error, "code", 503) in (404, 503):
                return None
            raise

    async def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(self._command, words)

    def _command(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "gateway.cli", *words]
        environment, folder = self.house.environment(), self.house.folder.parent
        return subprocess.run(line, env=environment, capture_output=True, text=True, cwd=folder, timeout=90)

    async def rows(self, *words: str) -> list[dict[str, Any]]:
        """What a listing command prints."""
        done = await self.command(*words, "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    @asynccontextmanager
    async def another(self, *services: str) -> AsyncIterator[None]:
        """One more process of the same house, with these services."""
        beside = House(self.house.folder, self.house.relay_url, more=self.house.more)
        beside.start("", *services)
        try:
            yield
            assert await asyncio.to_thread(beside.stop) == 0, beside.log()[-4000:]
        finally:
            _end(beside)

    # waiting

    async def until(self, look: Callable[[], Awaitable[T]], *, seconds: float = SETTLE_SECONDS) -> T:
        """Looks until there is something to see; returns it."""
        deadline = time.monotonic() + seconds
        while not (found := await look()):
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s; {self.house.log()[-4000:]}"
            await asyncio.sleep(LOOK_SECONDS)
        return found

    async def email(self, email_id: str, *dispositions: str) -> dict[str, Any]:
        """The story of an email once each of its recipients has one of these dispositions."""
        return await self._story(f"/v1/emails/{email_id}", dispositions)

    async def delivered(self, mail_id: str, *dispositions: str) -> dict[str, Any]:
        """The story of a mail once each of its recipients has one of these dispositions."""
        return await self._story(f"/v1/mails/{mail_id}", dispositions or ("delivered",))

    async def _story(self, path: str, dispositions: Sequence[str]) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            story = await self.get(path) or {}
            now = {row["disposition"] for row in story.get("recipients", ())}
            return story if now and now <= set(dispositions) else None

        return await self.until(look)

    async def heard(self, kind: str, subject: str) -> dict[str, Any]:
        """The event of that type about that subject."""

        async def look() -> dict[str, Any] | None:
            return next((item for item in self.events if (item["type"], item["subject"]) == (kind, subject)), None)

        return await self.until(look)


def a_mail(subject: str, *, to: str = "posts@localhost", files: Sequence[tuple[str, str, bytes]] = ()) -> bytes:
    """A mail with attachments: (file name, type, octets) each."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"], mail["Message-ID"] = SENDER, to, subject, f"<{subject}@example.org>"
    mail.set_content(f"The text of {subject}.")
    for name, kind, octets in files:
        main, _, sub = kind.partition("/")
        mail.add_attachment(octets, maintype=main, subtype=sub, filename=name)
    return mail.as_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@asynccontextmanager
async def opened(house: House, relay: ScriptedRelay, queue_url: str, *services: str) -> AsyncIterator[Place]:
    """Starts the house, waits until it serves, subscribes; ends it by SIGTERM when all went well, else by force."""
    house.start("", *services)
    async with AsyncExitStack() as stack:
        stack.callback(_end, house)
        assert await asyncio.to_thread(house.wait_ready), house.log()[-4000:]
        await _until_serving(house)
        client = await stack.enter_async_context(gateway.connect(queue_url))
        place = Place(house, relay, queue_url, client)
        listening = asyncio.create_task(_listen(place))
        stack.push_async_callback(_cancelled, listening)
        yield place
        assert await asyncio.to_thread(house.stop) == 0, house.log()[-4000:]


async def _until_serving(house: House) -> None:
    """Its doors open first; a test of faults begins when everything is open."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while "gateway-serving" not in house.log():
        assert time.monotonic() < deadline, house.log()[-4000:]
        await asyncio.sleep(LOOK_SECONDS)


def _end(house: House) -> None:
    if house.process is not None and house.process.poll() is None:
        house.kill()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _listen(place: Place) -> None:
    """Hears the events for ever; an app that lost its queue subscribes again."""
    while True:
        with suppress(QueueUnavailable):
            async for event in place.client.events("clerk"):
                place.events.append(event)
        await asyncio.sleep(LOOK_SECONDS)
