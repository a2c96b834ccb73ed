"""Traffic through the real doors of real gateways, and what must have become of it.

Mail servers post by SMTP, an app sends `email.send` by its client, a relay takes what goes out and refuses a part of it at
first.  At the end: every mail answered with 250 is in the store once by its id; what was sent again without an answer is
one post, its other copies are `duplicate`s; every confirmed email is relayed; `gateway reconcile` is balanced on each host.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.mta import Mta
from crash.house import House
from fakes.stubborn_relay import StubbornRelay
from services.postgres import PostgresServer

import gateway
from gateway.client import Client
from gateway.contract.email_send import SendEmail
from gateway.errors import QueueUnavailable
from gateway.mail.ids import new_id

PAUSE_SECONDS = 0.5
TWICE_EVERY = 10  # of the emails so many are refused twice, and wait in delay queues


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How many gateways, mail servers' sessions and senders of the app, how fast each is, and how much may be on its way."""

    houses: int
    sessions: int
    senders: int
    pace_seconds: float
    on_its_way: int


class Traffic:
    """`start`, chaos, `stop`, `drain`; then `faults` is to be empty."""

    def __init__(
        self, folder: Path, nodes: Sequence[str], server: PostgresServer, relay: StubbornRelay, amount: Amount
    ):
        self._server, self._relay, self._amount = server, relay, amount
        self._database = server.new_database()
        turns = [" ".join([*nodes[n % len(nodes) :], *nodes[: n % len(nodes)]]) for n in range(amount.houses)]
        self._urls = turns[-1]
        self.houses = [self._house(folder / f"host-{n}", folder / "blobs", url) for n, url in enumerate(turns)]
        ports = [house.smtp_port for house in self.houses]
        self.mta = Mta(ports, sessions=amount.sessions, pace_seconds=amount.pace_seconds)
        self.confirmed: dict[str, str] = {}  # email id → the recipient's local part
        self.outages = 0
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._may_send = asyncio.Event()

    def _house(self, folder: Path, blobs: Path, urls: str) -> House:
        folder.mkdir(parents=True)
        database_url = self._server.url(self._database)
        more = {"QUEUE_URL": urls, "DATABASE_URL": database_url, "BLOBS_URL": f"file://{blobs}", "LIMITS__CLAIM": "60s"}
        more |= {"RETRY_LADDER": "1s 2s 4s 8s 16s"}
        named = {f"GATEWAY_{key}": value for key, value in more.items()}
        return House(folder / "var", f"smtp://127.0.0.1:{self._relay.port}", more=named)

    @property
    def count(self) -> int:
        """The tickets that were confirmed: a 250 to the mail server, or to the app's client."""
        return len(self.mta.kept) + len(self.confirmed)

    async def start(self) -> None:
        for house in self.houses:
            house.start()
            assert await asyncio.to_thread(house.wait_ready), house.log()[-3000:]
        self.mta.start()
        self._tasks = [asyncio.create_task(self._send_all()), asyncio.create_task(self._keep_measure())]

    async def stop(self) -> None:
        """Stops the load; what was begun is seen through."""
        self._stop.set()
        self.mta.stop()
        await asyncio.to_thread(self.mta.join)
        await asyncio.gather(*self._tasks)

    def end(self) -> None:
        """Ends everything, seen through or not."""
        self.mta.give_up()
        for house in self.houses:
            if house.process is not None and house.process.poll() is None:
                house.kill()

    async def _keep_measure(self) -> None:
        """Lets no more be on its way than may be: the end is not to wait for a machine that is too slow for the load."""
        while not self._stop.is_set():
            recorded = int(await asyncio.to_thread(self._sql, "SELECT count(*) FROM mails"))
            for go, behind in (
                (self.mta.may_go, len(self.mta.kept) - recorded),
                (self._may_send, len(self.confirmed) - len(self._relay.order)),
            ):
                (go.set if behind < self._amount.on_its_way else go.clear)()
            await asyncio.sleep(PAUSE_SECONDS)
        self._may_send.set()
        self.mta.may_go.set()

    # the app

    async def _send_all(self) -> None:
        async with gateway.connect(self._urls) as client, asyncio.TaskGroup() as group:
            for number in range(self._amount.senders):
                group.create_task(self._send(client, number))

    async def _send(self, client: Client, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            name = f"e{number}-{count}{'-twice' if count % TWICE_EVERY == 0 else ''}"
            email = SendEmail(id=new_id(), to=(f"{name}@example.org",), subject="s", text="t")
            while not await self._is_confirmed(client, email):
                await asyncio.sleep(PAUSE_SECONDS)
            self.confirmed[email.id] = name
            await self._may_send.wait()
            await asyncio.sleep(self._amount.pace_seconds)

    async def _is_confirmed(self, client: Client, email: SendEmail) -> bool:
        try:
            await client.send(email)
        except QueueUnavailable:
            self.outages += 1
            return False
        return True

    # the end

    async def drain(self, *, idle_seconds: float) -> None:
        """Waits until all of it is where it must be, or nothing has moved for so long."""
        seen, moved_at = "", time.monotonic()
        while await asyncio.to_thread(self._is_open) and time.monotonic() - moved_at < idle_seconds:
            await asyncio.sleep(PAUSE_SECONDS)
            now = await asyncio.to_thread(self._progress)
            if now != seen:
                seen, moved_at = now, time.monotonic()

    def _progress(self) -> str:
        mails, emails = "SELECT count(*) FROM published_mails", "SELECT count(*), max(updated_at) FROM published_emails"
        return self._sql(mails) + self._sql(emails)

    def _is_open(self) -> bool:
        if int(self._sql("SELECT count(*) FROM published_emails WHERE disposition <> 'relayed'")):
            return True
        return bool(self._missing_mails() or self._missing_emails() or self._waiting())

    def _waiting(self) -> list[str]:
        """The queues that still hold something (a copy nobody was answered for is kept, too)."""
        rows = self.houses[0].list("queues")
        return [str(row) for row in rows if any(row[part] for part in ("ready", "leased", "delayed", "dead"))]

    def _missing_mails(self) -> set[str]:
        return set(self.mta.kept.values()) - set(self._sql("SELECT DISTINCT id FROM published_mails").split())

    def _missing_emails(self) -> set[str]:
        return self.confirmed.keys() - set(self._sql("SELECT DISTINCT id FROM published_emails").split())

    def faults(self) -> list[str]:
        """What is not as it must be; empty is the proof."""
        titles = Counter(self._sql("SELECT title FROM published_posts").split())
        found = {
            "refused": self.mta.refused,
            "mails lost": self._missing_mails(),
            "emails lost": self._missing_emails(),
            "recorded twice": self._sql("SELECT id FROM published_mails GROUP BY id HAVING count(*) > 1").split(),
            "stored twice": [title for title, count in titles.items() if count > 1],
            "without a post": self.mta.kept.keys() - titles.keys(),
            "ended otherwise": self._sql(
                "SELECT id, disposition FROM published_mails WHERE disposition NOT IN ('delivered', 'duplicate')"
                " UNION SELECT id, disposition FROM published_emails WHERE disposition <> 'relayed'"
            ).split(),
            "never taken by the relay": [name for name in self.confirmed.values() if not self._relay.copies[name]],
            "sent twice unasked": self._sent_twice(),
            "left in the queues": self._waiting(),
            "not balanced": [balance for house in self.houses if (balance := house.balance())["missing"]],
        }
        return [f"{what}: {len(which)}, {list(which)[:5]}" for what, which in found.items() if which]

    def _sent_twice(self) -> list[str]:
        """Emails the relay took more often than the ledger knows of copies."""
        rows = self._sql("SELECT recipient, copies FROM published_emails WHERE copies > 1").split()
        copies = {row.partition("@")[0]: int(row.partition("|")[2]) for row in rows}
        return [name for name, count in self._relay.copies.items() if count > copies.get(name, 1)]

    def told(self) -> str:
        """The numbers, in a line."""
        duplicates = self._sql("SELECT count(*) FROM published_mails WHERE disposition = 'duplicate'")
        return (
            f"{len(self.mta.kept)} mails answered with 250, {len(self.confirmed)} emails confirmed, "
            f"{self.mta.resent.total()} mails and {self.outages} emails sent again, {duplicates} duplicates accounted, "
            f"{self._relay.refused} refusals of the relay"
        )

    def _sql(self, statement: str) -> str:
        try:
            return self._server.run(statement, self._database)
        except subprocess.CalledProcessError as error:
            raise AssertionError(error.stderr) from error
