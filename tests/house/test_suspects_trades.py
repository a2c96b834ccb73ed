"""The suspects' process knows every trade: a suspect of any work queue finds its handler there."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from gateway import app, settings
from gateway.maillog import MailLog
from gateway.queue.ticket import HOME_QUEUES, SUSPECT, UNROUTABLE


async def test_every_work_queue_has_its_handler_among_the_suspects(tmp_path: Path) -> None:
    values = settings.load(environment={"GATEWAY_DATA_DIR": str(tmp_path)})
    async with AsyncExitStack() as stack:
        worker: Any = await app.build_suspects(app.Parts(values, MailLog()), stack)
    assert set(worker.keywords["handlers"]) == {*HOME_QUEUES, UNROUTABLE}
    assert set(worker.keywords["queues"]) == {SUSPECT}
