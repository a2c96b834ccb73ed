"""An app's subscription through the client, with an event loop and without: done when the next event is asked for."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from contextlib import aclosing
from pathlib import Path
from queue import Queue

import pytest

import gateway
from gateway.queue.broker import Event
from gateway.queue.sqlite import SqliteBroker


async def publish(queue: Path, *subjects: str) -> None:
    async with SqliteBroker(queue) as broker:
        await broker.publish_events(
            [
                Event(key="email.relayed", id=subject, body=json.dumps({"id": subject, "subject": subject}).encode())
                for subject in subjects
            ]
        )


async def subscribe(queue: Path) -> None:
    async with SqliteBroker(queue) as broker:
        await broker.subscribe("billing", ["email.#"])


async def test_an_event_is_done_when_the_next_one_is_asked_for(tmp_path: Path) -> None:
    queue = tmp_path / "queue.db"
    await subscribe(queue)
    await publish(queue, "1", "2", "3")
    for expected in (["1", "2"], ["2", "3"]):
        heard = []
        async with (
            gateway.connect(f"sqlite:///{queue}") as client,
            aclosing(client.events("billing", ["email.#"])) as it,
        ):
            async for event in it:
                heard.append(event["subject"])
                if len(heard) == 2:
                    break
        assert heard == expected, "the one in hand when it left came again"


async def test_the_same_without_an_event_loop(tmp_path: Path) -> None:
    queue = tmp_path / "queue.db"
    await subscribe(queue)
    await publish(queue, "1", "2", "3")

    def app() -> list[str]:
        heard = []
        for expected in ("2", "3"):
            with gateway.connect_blocking(f"sqlite:///{queue}") as client:
                for event in client.events("billing", ["email.#"]):
                    heard.append(event["subject"])
                    if event["subject"] == expected:
                        break
        return heard

    assert await asyncio.wait_for(asyncio.to_thread(app), 60) == ["1", "2", "2", "3"]


async def test_who_waits_for_an_event_in_one_thread_sends_in_another(tmp_path: Path) -> None:
    queue = tmp_path / "queue.db"
    await subscribe(queue)
    heard: Queue[str] = Queue()

    def listen(client: gateway.client.BlockingClient) -> None:
        for event in client.events("billing", ["email.#"]):
            heard.put(event["subject"])
            break

    def app() -> str:
        with gateway.connect_blocking(f"sqlite:///{queue}") as client:
            listening = threading.Thread(target=listen, args=[client], daemon=True)
            listening.start()
            client.send("welcome", to="ann@example.org")
            asyncio.run(publish(queue, "1"))
            subject = heard.get(timeout=30)
            listening.join(30)
        return subject

    assert await asyncio.wait_for(asyncio.to_thread(app), 60) == "1"


def test_ctrl_c_ends_the_waiting_and_leaves_nothing_in_hand(tmp_path: Path) -> None:
    queue = tmp_path / "queue.db"
    asyncio.run(subscribe(queue))
    with gateway.connect_blocking(f"sqlite:///{queue}") as client:
        client._loop.call_soon_threadsafe(client._loop.call_later, 0.2, os.kill, os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            next(client.events("billing", ["email.#"]))
        asyncio.run(publish(queue, "1"))
        assert next(client.events("billing", ["email.#"]))["subject"] == "1"
