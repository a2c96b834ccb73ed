"""The log: what goes wrong again and again is said once, and counted each time."""

from __future__ import annotations

import io

import pytest

from gateway import maillog
from gateway.errors import StoreUnavailable
from gateway.maillog import MailLog


def test_the_same_fault_of_a_service_is_said_once_and_counted_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    log = MailLog(stream=stream, as_json=False)
    for _ in range(3):
        log.service_failed("events", error=StoreUnavailable("its file is gone"))
    log.service_failed("sweeper", error=StoreUnavailable("its file is gone"))
    log.service_failed("events", error=StoreUnavailable("it is a folder"))
    assert [stream.getvalue().count(event) for event in ("events-failed", "sweeper-failed")] == [2, 1]
    assert (log.counters["events-failed"], log.counters["sweeper-failed"]) == (4, 1)
    monkeypatch.setattr(maillog, "SAY_AGAIN_SECONDS", 0.0)
    log.service_failed("events", error=StoreUnavailable("it is a folder"))
    assert stream.getvalue().count("events-failed") == 3
