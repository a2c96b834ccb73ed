"""kill -9 at every named place of both ways, under load, then a restart: nothing missing, nothing twice.

Clients act as MTAs: what was not answered they send again.  An email may reach the relay twice only if the ledger lists
it as one that was `unknown`: it died between the final dot and our record.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from house import House, Poster, Sink

import gateway

MAILS = 24
EMAILS = 24
POSTERS = 6
SETTLE_SECONDS = 45
DONE = {"delivered", "duplicate", "relayed"}

INBOUND = (
    "intake.published.before",
    "intake.published.after",
    "door.replied.before",
    "ingest.decided",
    "store.delivered.before",
    "store.delivered.after",
    "ingest.recorded",
    "ingest.acked.before",
)
BOTH = (
    "queue.published",
    "queue.leased",
    "queue.acknowledging",
    "worker.handled",
    "events.published.before_mark",
)
OUTBOUND = (
    "deliver.accepted",
    "deliver.rendered",
    "deliver.claimed",
    "relay.body_sent",
    "deliver.dot_recorded",
    "relay.dot_sent",
    "relay.replied",
    "deliver.recorded",
    "deliver.acked.before",
)


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as found:
        yield found


async def run_load(house: House, died: asyncio.Task[None]) -> tuple[dict[str, list[str]], list[str]]:
    """Posts and sends concurrently until everything is answered; returns mail ids by token and the email ids kept."""
    deadline = time.monotonic() + SETTLE_SECONDS
    poster = Poster(house.smtp_port)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(POSTERS) as pool:
        posting = [loop.run_in_executor(pool, poster.post, f"post-{i}", deadline) for i in range(MAILS)]
        async with gateway.connect(f"sqlite:///{house.folder}/queue.db") as client:
            sending = [
                asyncio.create_task(client.send("welcome", to=f"ann{i}@example.org", params={"name": f"Ann {i}"}))
                for i in range(EMAILS)
            ]
            emails = await asyncio.gather(*sending)
            await asyncio.gather(*posting)
    await died
    return poster.kept, emails


async def restarted_after_death(house: House) -> None:
    """Waits for the armed process to die at its failpoint, then starts a sound one."""
    assert house.process is not None
    code = await asyncio.to_thread(house.process.wait, SETTLE_SECONDS)
    assert code == -9, f"the gateway ended with {code}, not at its failpoint; log: {house.log()[-2000:]}"
    house.start()
    assert await asyncio.to_thread(house.wait_ready)


async def settled(house: House) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Waits until no row is open any more."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        mails = await asyncio.to_thread(house.list, "mails")
        emails = await asyncio.to_thread(house.list, "emails")
        rows = [*mails, *emails]
        done = len({row["id"] for row in emails}) >= EMAILS
        if done and all(row["disposition"] in DONE for row in rows):
            return mails, emails
        left = [(row["id"], row["disposition"], row["reason"]) for row in rows if row["disposition"] not in DONE]
        assert time.monotonic() < deadline, f"{len(left)} still open: {left[:3]}; log: {house.log()[-1500:]}"
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("failpoint", [*INBOUND, *BOTH, *OUTBOUND])
async def test_killed_here_nothing_is_missing_and_nothing_is_twice(failpoint: str, tmp_path: Path, sink: Sink) -> None:
    folder = tmp_path / "var"
    folder.mkdir()
    house = House(folder, f"smtp://127.0.0.1:{sink.port}?verify=no")
    house.start(f"{failpoint}:5")
    assert await asyncio.to_thread(house.wait_ready)
    try:
        died = asyncio.create_task(restarted_after_death(house))
        kept, email_ids = await run_load(house, died)
        mails, emails = await settled(house)
        posts = await asyncio.to_thread(house.list, "posts")
    finally:
        house.kill()

    assert set(kept) == {f"post-{i}" for i in range(MAILS)}
    assert {mail_id for ids in kept.values() for mail_id in ids} <= {row["id"] for row in mails}, (
        "a kept mail is missing"
    )
    assert sorted(str(post["title"]) for post in posts) == sorted(kept), "each post exactly once"

    assert {row["id"] for row in emails} == set(email_ids), "every confirmed email is in the ledger, and no other"
    copies = {str(row["recipient"]): row for row in emails}
    for (recipient, _), count in sink.taken.items():
        assert count <= int(str(copies[recipient]["copies"])), (
            f"{recipient} was sent {count} times, the ledger says {copies[recipient]}"
        )
    assert {recipient for recipient, _ in sink.taken} == set(copies), "every relayed email reached the relay"
    for row in (row for row in emails if int(str(row["copies"])) > 1):
        [story] = await asyncio.to_thread(house.list, "show", str(row["id"]))
        steps = [line["step"] for line in story["timeline"]]  # type: ignore[attr-defined]
        assert "unknown" in steps, f"sent again without having been unknown: {steps}"
