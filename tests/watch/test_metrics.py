"""What a scrape gets: parsed by the format's own parser, bounded in its labels, asking nobody anything."""

from __future__ import annotations

import io
import re
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.app import Parts
from gateway.maillog import MailLog
from gateway.outbound.relay import RelayHealth
from gateway.queue.broker import Depth
from gateway.queue.ticket import EMAIL_SEND, MAIL_INBOUND, Ticket
from gateway.settings import Settings
from gateway.store.accounting import HeldFaults
from gateway.watch.alarms.book import AlarmBook
from gateway.watch.alarms.conditions import Sight, look_at
from gateway.watch.metrics import Metrics

SIGHT = Sight(
    depths=[
        Depth(name=MAIL_INBOUND, ready=2, leased=1, delayed=3, dead=4, oldest_seconds=5.5),
        Depth(name=EMAIL_SEND, ready=0, leased=0, delayed=0, dead=0, oldest_seconds=None),
        Depth(name="subscriber.ann@example.org", ready=7, leased=0, delayed=0, dead=0, oldest_seconds=70.0),
        Depth(name="subscriber.bob@example.org", ready=1, leased=0, delayed=0, dead=0, oldest_seconds=10.0),
    ],
    held=HeldFaults(templates=1, mailboxes=2),
    relays=[RelayHealth(relay="mx.example.net:25", is_failing=True, is_proven=True, why="421 secret words")],
    free_bytes=1000,
    min_free_bytes=500,
    seen_at=time.monotonic(),
)


@pytest.fixture
def log() -> MailLog:
    log = MailLog(stream=io.StringIO())
    log.mail_queued("m1", door="smtp", client="192.0.2.1", size=1, recipients=1)
    log.mail_recorded("m1", rcpt_to="ann@example.org", disposition="delivered", reason="")
    for recipient in ("ann@example.org", "bob@example.org"):
        log.email_attempted("e1", recipient=recipient, relay="mx", disposition="relayed", reply="250 ok")
    return log


def scraped(metrics: Metrics) -> dict[str, Metric]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def values(family: Metric) -> dict[tuple[str, ...], float]:
    """By the labels' values, the labels in the order of their names."""
    return {tuple(value for _, value in sorted(item.labels.items())): item.value for item in family.samples}


def test_counters_depths_relays_and_alarms_are_there(tmp_path: Path, log: MailLog) -> None:
    AlarmBook(tmp_path, [], process="one").report(look_at(Sight(free_bytes=0, min_free_bytes=1)), 0)
    found = scraped(Metrics(log, lambda: SIGHT, tmp_path))
    assert values(found["gateway_events"]) == {("mail-queued",): 1, ("mail-recorded",): 1, ("email-relayed",): 2}
    assert values(found["gateway_dispositions"]) == {("delivered", "in"): 1, ("relayed", "out"): 2}
    tickets = values(found["gateway_queue_tickets"])
    assert [tickets[MAIL_INBOUND, state] for state in ("ready", "leased", "delayed", "dead")] == [2, 1, 3, 4]
    assert tickets["other", "ready"] == 8
    assert values(found["gateway_queue_oldest_seconds"]) == {(MAIL_INBOUND,): 5.5, (EMAIL_SEND,): 0, ("other",): 70}
    assert values(found["gateway_relay_usable"]) == {("mx.example.net:25",): 0}
    assert values(found["gateway_held"]) == {("template",): 1, ("mailbox",): 2}
    assert [topic for (topic,), value in values(found["gateway_alarm_active"]).items() if value] == ["disk"]
    assert values(found["gateway_store_up"]) == values(found["gateway_queue_up"]) == {(): 1}
    assert "process_resident_memory_bytes" in found


def test_no_label_and_no_help_holds_what_a_peer_said(tmp_path: Path, log: MailLog) -> None:
    body = Metrics(log, lambda: SIGHT, tmp_path).render()[0].decode()
    for word in ("ann@example.org", "bob@", "192.0.2.1", "m1", "e1", "secret words"):
        assert not re.search(rf"\b{re.escape(word)}", body), word


def test_before_the_first_look_and_without_a_store_there_is_less_and_no_fault(tmp_path: Path, log: MailLog) -> None:
    found = scraped(Metrics(log, lambda: None, tmp_path))
    assert "gateway_queue_up" not in found
    assert "gateway_store_up" not in scraped(Metrics(log, lambda: Sight(asks_store=False), tmp_path))
    down = scraped(Metrics(log, lambda: Sight(store_fault="gone", queue_fault="gone"), tmp_path))
    assert values(down["gateway_store_up"]) == values(down["gateway_queue_up"]) == {(): 0}


def test_names_follow_the_conventions_of_prometheus(tmp_path: Path, log: MailLog) -> None:
    body = Metrics(log, lambda: SIGHT, tmp_path).render()[0].decode()
    own = {line.split()[2]: line.split()[3] for line in body.splitlines() if line.startswith("# TYPE gateway_")}
    assert len(own) >= 10
    for name, kind in own.items():
        assert re.fullmatch(r"gateway_[a-z_]+", name)
        assert name.endswith("_total") == (kind == "counter"), name


async def test_what_the_web_is_handed_shows_what_the_last_look_of_its_process_saw(tmp_path: Path) -> None:
    log = MailLog(stream=io.StringIO())
    parts = Parts(Settings(data_dir=tmp_path).filled(), log)
    render = parts.metrics()
    async with AsyncExitStack() as stack:
        broker, _ = await parts.queue(stack), await parts.store(stack)
        await broker.publish([Ticket(queue=EMAIL_SEND, id="e1", body=b"{}")])
        assert b"gateway_queue_tickets{" not in render()[0]
        await parts.eyes().see(0)
        assert b'gateway_queue_tickets{queue="email.send",state="ready"} 1.0' in render()[0]
        assert b"gateway_store_up 1.0" in render()[0]
        (tmp_path / "store.db").unlink()
        await parts.eyes().see(0)
        assert b"gateway_store_up 0.0" in render()[0]
