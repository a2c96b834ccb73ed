"""One mail that kills whoever works it, among 200: it alone ends dead, the others are done, and the gateway goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from house import House

from gateway.inbound.intake import Intake
from gateway.inbound.router import MailboxRoute, Router
from gateway.mail.envelope import Envelope
from gateway.maillog import MailLog
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import DEAD_CRASHED, MAIL_INBOUND
from gateway.runtime import utc_now
from gateway.store.blobs import FileBlobStore
from gateway.store.database import open_database
from gateway.store.lists import Lists

MAILS = 200
ADDRESS = "killer@localhost"
PATIENCE_SECONDS = 60


@pytest.fixture
def house(tmp_path: Path) -> House:
    mailbox = {"address": ADDRESS, "kind": "killer_box:KillerBox"}
    more = {
        "PYTHONPATH": str(Path(__file__).parent),
        "GATEWAY_DOMAINS": "localhost",
        "GATEWAY_MAILBOXES": json.dumps([mailbox]),
    }
    (tmp_path / "var").mkdir()
    return House(tmp_path / "var", "capture:", more=more)


async def put_mails(folder: Path) -> None:
    """Before the gateway runs, so that the killer is among many that are leased together."""
    router = Router([MailboxRoute(address=ADDRESS, kind="any")], domains=["localhost"])
    async with SqliteBroker(folder / "queue.db") as broker:
        blobs, log = FileBlobStore(folder / "blobs"), MailLog(stream=StringIO())
        intake = Intake(router, broker, blobs, data_dir=folder, clock=utc_now, log=log)
        for number in range(MAILS):
            subject = "killer" if number == MAILS // 2 else f"mail {number}"
            envelope = Envelope(
                mail_id="", mail_from="ann@example.org", rcpt_to=(ADDRESS,), received_at=datetime.now(UTC), door="smtp"
            )
            await intake.accept(envelope, f"Subject: {subject}\r\n\r\nwords of {subject}\r\n".encode())


def children_of(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return found


def is_the_suspects_process(pid: int) -> bool:
    with suppress(OSError):
        return b"work_suspects" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


async def has_ended(watched: int) -> None:
    """Waits for the end of the process behind a pidfd."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(watched, ended.set)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(watched)
        os.close(watched)


async def all_ended(house: House, lists: Lists) -> list[dict[str, object]]:
    """Waits until every mail is delivered or dead, and starts the gateway again whenever it dies, as an init system would."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        assert house.process is not None
        assert time.monotonic() < deadline, house.log()[-3000:]
        if house.process.poll() is not None:
            assert house.process.returncode == -signal.SIGKILL, house.log()[-3000:]
            house.start("", "ingest")
        rows = await lists.newest("mails")
        if len(rows) == MAILS and all(row["disposition"] in ("delivered", "dead") for row in rows):
            return rows
        await asyncio.sleep(0.1)  # polling a process and a file of another process


async def test_a_killer_among_200_ends_dead_alone_and_its_last_process_ends_with_the_gateway(house: House) -> None:
    await put_mails(house.folder)
    database = await open_database(f"sqlite:///{house.folder}/store.db")
    house.start("", "ingest")
    try:
        lists = Lists(database)
        rows = await all_ended(house, lists)
        posts = await lists.newest("posts")
        balance = await asyncio.to_thread(house.balance)
        async with SqliteBroker(house.folder / "queue.db") as broker, asyncio.timeout(PATIENCE_SECONDS):
            while not (dead := await broker.dead()):
                await asyncio.sleep(0.05)  # its death is recorded in the store first
        assert house.process is not None
        (child,) = [pid for pid in children_of(house.process.pid) if is_the_suspects_process(pid)]
        watched = os.pidfd_open(child)
        house.kill()
        await has_ended(watched)
    finally:
        house.kill()
        await database.close()
    assert balance == {"accepted": MAILS, "accounted": MAILS, "missing": [], "extra": 0}
    (killer,) = [row for row in rows if row["disposition"] == "dead"]
    assert killer["subject"] == "killer"
    assert [(item.ticket.id, item.box, item.queue) for item in dead] == [(killer["id"], DEAD_CRASHED, MAIL_INBOUND)]
    assert len({str(post["title"]) for post in posts}) == len(posts) == MAILS - 1
    assert house.log().count("gateway-serving") - house.log().count("services='suspects'") == 3, "two deaths of all"
    assert house.log().count("suspects-died") == 3, "from then on the process of the suspects died in its place"
    assert house.log().index("ticket-suspected") < house.log().index("suspects-started"), "it is started lazily"
