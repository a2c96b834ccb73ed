"""An embedded house with mail in flight grows up: everything comes along once, wherever the move is killed, and goes on there.

kill -9 at its named places, one after the other, on one house; `make test-long` kills at each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "crash"))
sys.path.insert(0, str(Path(__file__).parent.parent / "fakes"))

from house import House, Sink
from scripted_relay import ScriptedRelay

from gateway.client import Client
from gateway.errors import SettingsError
from gateway.mail.ids import new_id
from gateway.queue.sqlite import SqliteBroker
from gateway.queue.ticket import MAIL_INBOUND, Ticket
from gateway.store.blobs import FileBlobStore
from gateway.store.database import open_database

PATIENCE_SECONDS = 120
PLACES = ("move.copied:3", "move.staged", "move.releasing")
ALL_PLACES = (
    "move.ledger-begun",
    "move.copied:2",
    "move.copied:7",
    "move.copied-all",
    "move.ledger-closed",
    "move.blob",
    "move.blob",
    "move.staged",
    "move.staged",
    "move.removed",
    "move.removed",
    "move.releasing",
    "move.releasing",
    "move.batch:2",
    "move.receipts",
)
LARGE = b"many words in a line\r\n" * 20_000


def mail(token: str, text: bytes = b"text") -> tuple[str, bytes]:
    head = f"From: poster@localhost\r\nSubject: {token}\r\nMessage-ID: <{token}@test.localhost>\r\n\r\n"
    return new_id(), head.encode() + text + b"\r\n"


async def take_in(broker: SqliteBroker, token: str, *, blobs: FileBlobStore | None = None) -> None:
    """What a door does: the ticket carries the octets, or names the blob."""
    mail_id, octets = mail(token, LARGE if blobs else b"text")
    headers = {
        "mail_from": "poster@localhost",
        "rcpt_to": ["posts@localhost"],
        "received_at": datetime.now(UTC).isoformat(),
        "door": "smtp",
        "sha256": hashlib.sha256(octets).hexdigest(),
    }
    if blobs is not None:
        headers |= {"blob": await blobs.put(octets), "size": len(octets)}
    body = b"" if blobs else octets
    await broker.publish(
        [Ticket(queue=MAIL_INBOUND, id=mail_id, body=body, content_type="message/rfc822", headers=headers)]
    )


async def until(look: str, wanted: object, ask) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := await asyncio.to_thread(ask, look)) != wanted:
        assert time.monotonic() < deadline, f"{look}: {found}, not {wanted}"
        await asyncio.sleep(0.3)  # the ledger of another process: nobody rings for it


def move(house: House, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    environment = house.environment() | ({"GATEWAY_FAILPOINT": failpoint} if failpoint else {})
    command = [sys.executable, "-m", "gateway.cli", "move", "--json"]
    return subprocess.run(
        command, env=environment, cwd=house.folder.parent, capture_output=True, text=True, timeout=300
    )


EMAILS = "SELECT disposition FROM email_recipients ORDER BY 1"
MAILS = "SELECT disposition FROM deliveries ORDER BY 1"


async def live(house: House, folder: Path) -> None:
    """A house at work is stopped: one email relayed, two delayed, one post stored; then more come that nobody works."""

    def ask(query: str) -> list[str]:
        with contextlib.closing(sqlite3.connect(f"file:{folder}/store.db?mode=ro", uri=True)) as connection:
            try:
                return [value for (value,) in connection.execute(query)]
            except sqlite3.OperationalError:  # the tables are not made yet
                return []

    assert await asyncio.to_thread(house.wait_ready), house.log()
    async with SqliteBroker(folder / "queue.db") as broker, Client(broker=broker) as client:
        for number in range(3):
            await client.send("welcome", to=f"early-{number}@example.org", params={"name": "Ann"})
            await until("SELECT count(*) FROM email_recipients WHERE disposition <> 'pending'", [number + 1], ask)
        await take_in(broker, "stored")
        await until(EMAILS, ["delayed", "delayed", "relayed"], ask)
        await until(MAILS, ["delivered"], ask)
    await asyncio.to_thread(house.stop)
    async with SqliteBroker(folder / "queue.db") as broker, Client(broker=broker) as client:
        for number in range(3):
            await client.send("welcome", to=f"late-{number}@example.org", params={"name": "Ann"})
            await take_in(broker, f"waiting-{number}")
        await take_in(broker, "large", blobs=FileBlobStore(folder / "blobs"))


@pytest.mark.parametrize("places", [PLACES, pytest.param(ALL_PLACES, marks=pytest.mark.long)], ids=["some", "all"])
async def test_a_house_moves_with_mail_in_flight(
    tmp_path: Path, amqp_url: str, bare_postgres_url: str, postgres_server, places: tuple[str, ...]
) -> None:
    folder = tmp_path / "var"
    folder.mkdir()
    ladder = {"GATEWAY_RETRY_LADDER": "8s 1s 1s 1s"}
    refusing = ["250 2.1.5 ok", *["451 4.2.1 come later"] * 20]
    async with ScriptedRelay({"rcpt": refusing}) as relay:
        house = House(folder, f"smtp://127.0.0.1:{relay.port}", more=ladder)
        house.start()
        await live(house, folder)
    grown = {"GATEWAY_QUEUE_URL": amqp_url, "GATEWAY_DATABASE_URL": bare_postgres_url, "GATEWAY_BLOBS_URL": "database:"}
    name = urlsplit(bare_postgres_url).path[1:]

    def ask(query: str) -> list[str]:
        return postgres_server.run(query, name).split()

    async with Sink() as sink:
        house = House(folder, f"smtp://127.0.0.1:{sink.port}", more=ladder | grown)
        house.start()
        assert await asyncio.to_thread(house.wait_ready) is False, "it leaves nothing behind"
        assert "still holds 9 tickets (3 email.send, 2 email.send.retry, 4 mail.inbound)" in house.log()
        assert "holds a ledger (1 mails, 3 emails, 1 posts)" in house.log()
        for place in places:
            assert (await asyncio.to_thread(move, house, place)).returncode == -9, place
        done = await asyncio.to_thread(move, house)
        assert (done.returncode, "all is there" in done.stderr) == (0, True), done.stderr
        with pytest.raises(SettingsError, match="has moved to postgresql"):
            await open_database(f"sqlite:///{folder}/store.db")

        house.start()
        try:
            assert await asyncio.to_thread(house.wait_ready), house.log()[-3000:]
            await until(EMAILS, ["relayed"] * 6, ask)
            await until(MAILS, ["delivered"] * 5, ask)
            balance = await asyncio.to_thread(house.balance)
        finally:
            await asyncio.to_thread(house.stop)
    assert balance["accepted"] == 11
    assert balance["missing"] == []
    assert [taken.recipient for taken in relay.taken] == ["early-0@example.org"]
    expected = [f"{when}-{number}@example.org" for when in ("early", "late") for number in range(3)][1:]
    assert sorted(recipient for recipient, _ in sink.taken.elements()) == expected
