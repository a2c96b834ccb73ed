"""What the kill tests run in a process of its own: `python store_children.py NAME [URL] [FOLDER] [ID]`; callable in place, too."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.contract.email_send import SendEmail
from gateway.events import relay_events
from gateway.mail.envelope import Envelope
from gateway.queue.broker import Event
from gateway.reply import Reply
from gateway.runtime import Stop, utc_now
from gateway.store.blobs import FileBlobStore
from gateway.store.database import open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.mails import Mails
from gateway.store.posts import NewPost


async def deliver(url: str, folder: str, mail_id: str) -> None:
    """Receives a mail and delivers it as a post."""
    database = await open_database(url)
    mails = Mails(database, FileBlobStore(Path(folder) / "blobs"), clock=utc_now, hostname="mx.test")
    now = utc_now()
    arrived = Envelope(mail_id=mail_id, mail_from="", rcpt_to=("a@localhost",), received_at=now, door="smtp")
    await mails.record_received(arrived, b"octets", 6, "0")
    post = NewPost(
        mailbox="a@localhost",
        kind="posts",
        author="",
        author_address="",
        title="t",
        text="",
        html=None,
        created_at=now,
    )
    await mails.record_delivered(mail_id, "a@localhost", "a@localhost", post)
    await database.close()


async def send(url: str, folder: str, email_id: str) -> None:
    """Accepts an email and relays it, with a claim that runs out at once."""
    database = await open_database(url)
    ledger = DatabaseLedger(database, FileBlobStore(Path(folder) / "blobs"), clock=utc_now, hostname="mx.test")
    email = SendEmail(id=email_id, to=("ann@example.org",), subject="s", text="t")
    await ledger.record_accepted(
        email, app="", content_hash=email.content_hash(), ticket_id="t", stream="normal", message_id="<1@mx.test>"
    )
    claim = await ledger.claim(email_id, "ann@example.org", ticket_id="t", lifetime_seconds=0)
    await ledger.record_dot_sent(claim)
    await ledger.record_relayed(claim, relay="r1", reply=Reply(code=250, enhanced_status="2.0.0", text="ok"))


async def put(folder: str) -> None:
    """Puts a blob."""
    await FileBlobStore(Path(folder)).put(b"octets")


async def relay(url: str, folder: str) -> None:
    """Publishes events into a file, for ever."""

    class Exchange:
        async def publish_events(self, events: Sequence[Event]) -> None:
            with open(f"{folder}/published", "a") as file:
                file.writelines(f"{event.id}\n" for event in events)

    await relay_events(await open_database(url), Exchange(), stop=Stop(), on_fault=print)


async def open_it(url: str) -> None:
    """Opens the store, makes it if need be, twice; fails if that took alembic."""
    for _ in range(2):
        await (await open_database(url)).close()
    assert "alembic" not in sys.modules


if __name__ == "__main__":
    asyncio.run(
        {"deliver": deliver, "send": send, "put": put, "relay": relay, "open": open_it}[sys.argv[1]](*sys.argv[2:])
    )
