"""Metrics in Prometheus' text format: what this process counted, and what its alarms saw at their last look.

A scrape asks nobody anything: queue depths and relay states are those of the latest look, seconds old (`gateway_look_age_seconds`
says how old).  Every process serves its own numbers; counters of several are to be added, facts of the host are the same in each.
Promise: labels are words of our own (events, dispositions, work queues, topics) or names from the settings (relays), never
addresses, ids or anything a peer chose.  Home of prometheus-client.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gateway.maillog import MailLog
from gateway.queue.broker import Depth
from gateway.queue.ticket import DEAD_CRASHED, DEAD_FAILED, SUSPECT, WORK_QUEUES, retry_queue
from gateway.watch.alarms.book import read_alarms
from gateway.watch.alarms.conditions import TOPICS, Sight

_KNOWN_QUEUES = frozenset((*WORK_QUEUES, *map(retry_queue, WORK_QUEUES), SUSPECT, DEAD_FAILED, DEAD_CRASHED))
_STATES = ("ready", "leased", "delayed", "dead")


class Metrics:
    """What `GET /metrics` shows; `render` is quick and waits for nothing but a small local file."""

    def __init__(self, log: MailLog, latest: Callable[[], Sight | None], data_dir: Path) -> None:
        self._log = log
        self._latest = latest
        self._data_dir = data_dir
        self._registry = CollectorRegistry()
        self._registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def render(self) -> tuple[bytes, str]:
        """The body and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client asks of a collector."""
        yield from self._counters()
        yield self._alarms()
        sight = self._latest()
        if sight is not None:
            yield from _of_sight(sight)

    def describe(self) -> Sequence[Metric]:
        """Nothing beforehand: asked at the registration, when there is nothing to see yet."""
        return ()

    def _counters(self) -> Iterator[Metric]:
        events = CounterMetricFamily("gateway_events", "Lines of the mail log, by event.", labels=["event"])
        for event, count in list(self._log.counters.items()):
            events.add_metric([event], count)
        ends = CounterMetricFamily(
            "gateway_dispositions", "What was recorded of recipients, in and out.", labels=["way", "disposition"]
        )
        for (way, disposition), count in list(self._log.dispositions.items()):
            ends.add_metric([way, disposition], count)
        yield from (events, ends)

    def _alarms(self) -> Metric:
        family = GaugeMetricFamily(
            "gateway_alarm_active", "Alarms raised on this host now, by topic.", labels=["topic"]
        )
        raised = [alarm.topic for alarm in read_alarms(self._data_dir)]
        for topic in TOPICS:
            family.add_metric([topic], raised.count(topic))
        return family


def _of_sight(sight: Sight) -> Iterator[Metric]:
    yield _gauge("gateway_look_age_seconds", "How old what follows is.", time.monotonic() - sight.seen_at)
    yield _gauge("gateway_queue_up", "Whether the queue answered.", float(sight.queue_fault is None))
    if sight.asks_store:
        yield _gauge("gateway_store_up", "Whether the store answered.", float(sight.store_fault is None))
    if sight.free_bytes is not None:
        yield _gauge("gateway_disk_free_bytes", "Free bytes on the disk of data_dir.", sight.free_bytes)
        yield _gauge("gateway_disk_wanted_bytes", "Below this the doors answer 452.", sight.min_free_bytes)
    if sight.held is not None:
        held = GaugeMetricFamily("gateway_held", "Recipients held for a fault of ours.", labels=["fault"])
        held.add_metric(["template"], sight.held.templates)
        held.add_metric(["mailbox"], sight.held.mailboxes)
        yield held
    yield from _of_queues(sight.depths or ())
    relays = GaugeMetricFamily("gateway_relay_usable", "0 while a relay fails, 1 otherwise.", labels=["relay"])
    for relay in sight.relays:
        relays.add_metric([relay.relay], float(not relay.is_failing))
    yield relays


def _of_queues(depths: Sequence[Depth]) -> Iterator[Metric]:
    """By queue; those that apps named (subscribers) together as `other`."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    ages: dict[str, float] = {}
    for depth in depths:
        name = depth.name if depth.name in _KNOWN_QUEUES else "other"
        for state in _STATES:
            counts[name, state] += getattr(depth, state)
        ages[name] = max(ages.get(name, 0.0), depth.oldest_seconds or 0.0)
    tickets = GaugeMetricFamily("gateway_queue_tickets", "Tickets, by state.", labels=["queue", "state"])
    for (name, state), count in counts.items():
        tickets.add_metric([name, state], count)
    oldest = GaugeMetricFamily("gateway_queue_oldest_seconds", "Age of the oldest ready ticket.", labels=["queue"])
    for name, age in ages.items():
        oldest.add_metric([name], age)
    yield from (tickets, oldest)


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_, value=value)
