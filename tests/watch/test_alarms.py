"""Alarms through the real book, the real apprise and a provider on a local port: told once, told right, told again when over."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "fakes"))

from sms_receiver import Receiver

from gateway.inbound.certificate import Trouble
from gateway.maillog import MailLog
from gateway.outbound.relay import RelayHealth
from gateway.queue.broker import Depth
from gateway.queue.ticket import DEAD_FAILED, EMAIL_SEND, SUSPECT
from gateway.runtime import Stop
from gateway.store.accounting import HeldFaults
from gateway.watch.alarms.book import Admin, AlarmBook, Rules, process_name, read_alarms
from gateway.watch.alarms.conditions import TOPICS, Look, Sight, condition, look_at
from gateway.watch.alarms.failures import FailureMeter
from gateway.watch.alarms.sending import Postman, message_of
from gateway.watch.alarms.watch import watch
from gateway.watch.doctor import check_alarms

STORE = condition("store", "the store cannot be reached", "look at it")
EVERYTHING = frozenset(TOPICS)
FINE = Look(conditions=(), judged=EVERYTHING)


def found(*conditions: object) -> Look:
    return Look(conditions=conditions, judged=EVERYTHING)  # type: ignore[arg-type]


def depth(name: str, **values: object) -> Depth:
    kept = {"ready": 0, "leased": 0, "delayed": 0, "dead": 0, "oldest_seconds": None} | values
    return Depth(name=name, **kept)  # type: ignore[arg-type]


def admin(url: str, **values: object) -> Admin:
    return Admin(place="admins[0]", service="json://***", url=url, **values)  # type: ignore[arg-type]


@dataclass
class Host:
    """One host: its folder, its admins, and a clock for the book that only moves when told."""

    folder: Path
    admins: list[Admin]
    stream: io.StringIO = field(default_factory=io.StringIO)
    now: float = 1_800_000_000.0

    def __post_init__(self) -> None:
        self.log = MailLog(stream=self.stream)

    def process(self, name: str = "one", **rules: float) -> AlarmBook:
        return AlarmBook(self.folder, self.admins, process=name, rules=Rules(**rules))

    async def tell(self, book: AlarmBook) -> None:
        """What the postman does, at this host's time."""
        await Postman(Timed(book, self), self.folder, hostname="mx.example.org", log=self.log).round()  # type: ignore[arg-type]

    async def pass_time(self, book: AlarmBook, look: Look, seconds: float, step: float = 5) -> None:
        """Looks and tells every `step` seconds for so long."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step)
            book.report(look, self.now)
            await self.tell(book)


@dataclass
class Timed:
    """The book as the postman sees it, with the host's clock instead of the machine's."""

    book: AlarmBook
    host: Host

    def due(self, now: float) -> list[tuple[Admin, list[object]]]:
        return self.book.due(self.host.now)  # type: ignore[return-value]

    def note_told(self, admin: Admin, alarms: list[object]) -> None:
        self.book.note_told(admin, alarms)  # type: ignore[arg-type]

    def note_failed(self, admin: Admin, now: float) -> None:
        self.book.note_failed(admin, self.host.now)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found_:
        yield found_


@pytest.fixture
def host(tmp_path: Path, receiver: Receiver) -> Host:
    return Host(tmp_path, [admin(receiver.url)])


def texts(receiver: Receiver) -> list[str]:
    return [f"{item['title']} | {item['message']}" for item in receiver.messages]


async def test_an_outage_is_told_once_with_since_and_next_step_and_once_when_it_is_over(
    host: Host, receiver: Receiver
) -> None:
    book = host.process()
    await host.pass_time(book, found(STORE), 600)
    assert len(receiver.messages) == 1
    assert receiver.messages[0]["title"] == "[mx.example.org] critical: the store cannot be reached"
    assert receiver.messages[0]["type"] == "failure"
    assert (
        receiver.messages[0]["message"]
        == "the store cannot be reached. Since 2027-01-15 08:00:05 UTC. Next: look at it"
    )
    await host.pass_time(book, FINE, 600)
    assert len(receiver.messages) == 2
    assert receiver.messages[1]["title"] == "[mx.example.org] over again: the store cannot be reached"
    assert "lasted 10 min" in receiver.messages[1]["message"]
    assert receiver.messages[1]["type"] == "success"
    assert json.loads((host.folder / "alarms.json").read_text())["alarms"] == {}


async def test_a_blink_shorter_than_the_patience_is_not_told_at_all(host: Host, receiver: Receiver) -> None:
    book = host.process()
    relay = condition("relay", "paused", "look", subject="mx.example.net:25")
    await host.pass_time(book, found(relay), 50)
    await host.pass_time(book, FINE, 100)
    assert receiver.messages == []


async def test_a_gap_shorter_than_the_calm_is_the_same_alarm(host: Host, receiver: Receiver) -> None:
    book = host.process()
    for _ in range(10):
        await host.pass_time(book, found(STORE), 10)
        await host.pass_time(book, FINE, 5)
    assert len(receiver.messages) == 1


async def test_it_is_repeated_daily_while_it_lasts(host: Host, receiver: Receiver) -> None:
    await host.pass_time(host.process(), found(STORE), 3 * 86_400, step=3600)
    assert [text.partition("| ")[2].startswith("Still: ") for text in texts(receiver)] == [False, True, True]


async def test_several_processes_of_a_host_tell_once_and_a_restart_tells_nothing_again(
    host: Host, receiver: Receiver
) -> None:
    processes = [host.process(name) for name in ("one", "two", "three")]
    for _ in range(5):
        host.now += 5
        for book in processes:
            book.report(found(STORE), host.now)
        await asyncio.gather(*(host.tell(book) for book in processes))
    assert len(receiver.messages) == 1
    reborn = host.process("four")
    await host.pass_time(reborn, found(STORE), 60)
    assert len(receiver.messages) == 1
    await host.pass_time(reborn, FINE, 300)  # the three are gone without a word: their reports grow stale
    assert [text.split(" | ")[0] for text in texts(receiver)][1:] == [
        "[mx.example.org] over again: the store cannot be reached"
    ]


async def test_it_is_not_over_because_somebody_who_cannot_judge_sees_nothing(host: Host, receiver: Receiver) -> None:
    sender, web = host.process("sender"), host.process("web")
    relay = condition("relay", "paused", "look", subject="mx.example.net:25")
    blind = Look(conditions=(), judged=frozenset({"queue", "store"}))
    for _ in range(30):
        host.now += 5
        sender.report(found(relay), host.now)
        web.report(blind, host.now)
        await host.tell(web)
    sender.leave()
    await host.pass_time(web, blind, 3600)
    assert len(receiver.messages) == 1, "nobody knows whether the relay works again"


async def test_fifty_thousand_failures_in_a_minute_are_one_message_and_one_sum(host: Host, receiver: Receiver) -> None:
    book = host.process()
    for count in range(1000, 50_001, 1000):
        host.now += 1.2
        book.report(look_at(Sight(depths=[depth(EMAIL_SEND, dead=count)])), host.now)
        await host.tell(book)
    last = look_at(Sight(depths=[depth(EMAIL_SEND, dead=50_000)]))
    await host.pass_time(book, last, 3600)
    assert [item["message"].split(" (")[0] for item in receiver.messages] == [
        "1000 dead letters",
        "Still: 50000 dead letters",
    ]


async def test_fifty_thousand_failures_counted_by_two_processes_are_one_message_and_the_sum_of_both(
    host: Host, receiver: Receiver
) -> None:
    offices = [(host.process(name), FailureMeter()) for name in ("one", "two")]
    for second in range(-2, 1200, 2):
        host.now += 2
        failed = int(25_000 * min(1.0, max(0, second) / 60))
        for book, meter in offices:
            book.report(look_at(Sight(failures=meter.read(host.now, failed=failed, relayed=0))), host.now)
            await host.tell(book)
    first, summed, over = (item["message"] for item in receiver.messages)
    assert first.startswith("833 recipients failed for good")
    assert summed.startswith("Still: 50000 recipients failed for good")
    assert over.endswith("Last seen: 50000 recipients failed for good, more than were relayed")


async def test_alarms_that_come_together_are_one_message_with_the_worst_first_named(
    host: Host, receiver: Receiver
) -> None:
    letters = condition("dead-letters", "3 dead letters", "look", count=3)
    disk = condition("disk", "1 MiB free", "make room")
    host.process().report(found(letters, disk), host.now)
    await host.tell(host.process())
    [message] = receiver.messages
    assert message["title"] == "[mx.example.org] critical: too little disk, and 1 more"
    assert "3 dead letters" in message["message"]
    assert "1 MiB free" in message["message"]


async def test_an_admin_hears_of_his_topics_and_severities_only(tmp_path: Path) -> None:
    with Receiver() as night, Receiver() as relays:
        host = Host(
            tmp_path, [admin(night.url, from_severity="critical"), admin(relays.url, topics=frozenset({"relay"}))]
        )
        book = host.process()
        relay = condition("relay", "paused", "look", subject="mx.example.net:25")
        await host.pass_time(book, found(STORE, relay), 100)
        await host.pass_time(book, FINE, 100)
        assert [item["title"].split("] ")[1] for item in night.messages] == [
            "critical: the store cannot be reached",
            "over again: the store cannot be reached",
        ]
        assert [item["title"].split("] ")[1] for item in relays.messages] == [
            "warning: a relay does not work (mx.example.net:25)",
            "over again: a relay does not work (mx.example.net:25)",
        ]


async def test_an_admin_who_cannot_be_reached_is_logged_and_tried_again_and_the_others_still_hear(
    tmp_path: Path,
) -> None:
    with Receiver() as broken, Receiver() as well:
        broken.status = 503
        host = Host(tmp_path, [admin(broken.url), admin(well.url)])
        book = host.process()
        await host.pass_time(book, found(STORE), 600)
        assert len(well.messages) == 1
        assert 3 <= broken.asked <= 6, "tried again, in growing steps"
        said = host.stream.getvalue()
        assert "admin-not-told" in said
        assert "503" in said
        assert "hunter2" not in said + (tmp_path / "alarms.json").read_text()
        assert "token-of-ours" not in said + (tmp_path / "alarms.json").read_text()
        broken.status = 200
        await host.pass_time(book, FINE, 1000)
        assert [item["message"].split(".")[0] for item in broken.messages] == [
            "Over again: the store cannot be reached"
        ]
        assert len(well.messages) == 2


async def test_a_provider_that_hangs_blocks_neither_the_loop_nor_the_looks(tmp_path: Path, receiver: Receiver) -> None:
    receiver.released.clear()
    host = Host(tmp_path, [admin(receiver.url)])
    stop, looks = Stop(), 0
    disk = Sight(free_bytes=0, min_free_bytes=1)

    async def see(deaths: int) -> Sight:
        nonlocal looks
        looks += 1
        if looks == 5:
            assert receiver.messages == []
            receiver.released.set()
        if receiver.messages:
            stop.set()
        return disk

    book = host.process()
    postman = Postman(book, tmp_path, hostname="mx.example.org", log=host.log)
    async with asyncio.timeout(60):
        await watch(see, book, postman, stop=stop, log=host.log, look_seconds=0.01)
    assert looks > 5
    assert "alarm-raised" in host.stream.getvalue()


async def test_without_admins_alarms_are_logged_once_and_shown_by_the_doctor(tmp_path: Path) -> None:
    host = Host(tmp_path, [])
    stop, looks = Stop(), 0

    async def see(deaths: int) -> Sight:
        nonlocal looks
        looks += 1
        if looks == 3:
            stop.set()
        return Sight(free_bytes=0, min_free_bytes=2**20)

    book = host.process()
    await watch(see, book, Postman(book, tmp_path, hostname="", log=host.log), stop=stop, log=host.log, look_seconds=0)
    assert host.log.counters["alarm-raised"] == 1
    [finding] = check_alarms(tmp_path, admins=0)
    assert (finding.level, finding.what, finding.next_step) == (
        "wrong",
        "alarm disk",
        "make room on the disk of data_dir",
    )
    assert [alarm.topic for alarm in read_alarms(tmp_path)] == ["disk"]


async def test_a_look_that_fails_is_logged_and_the_next_one_comes(tmp_path: Path) -> None:
    host = Host(tmp_path, [])
    stop, looks = Stop(), 0

    async def see(deaths: int) -> Sight:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise RuntimeError("nobody foresaw this")
        stop.set()
        return Sight()

    book = host.process()
    await watch(see, book, Postman(book, tmp_path, hostname="", log=host.log), stop=stop, log=host.log, look_seconds=0)
    assert host.log.counters["alarms-failed"] == 1
    assert looks == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"alarms": {"x": {"topic": 1}}}', b"\xff\xfe"])
async def test_a_damaged_book_is_begun_anew(host: Host, receiver: Receiver, content: bytes) -> None:
    (host.folder / "alarms.json").write_bytes(content)
    assert read_alarms(host.folder) == []
    await host.pass_time(host.process(), found(STORE), 10)
    assert len(receiver.messages) == 1


async def test_a_book_of_the_next_version_is_read_and_nothing_of_it_told_again(host: Host, receiver: Receiver) -> None:
    book = host.process()
    await host.pass_time(book, found(STORE), 60)
    written = json.loads((host.folder / "alarms.json").read_text())
    written["escalations"] = {}
    for alarm in written["alarms"].values():
        alarm["escalated_at"] = None
    (host.folder / "alarms.json").write_text(json.dumps(written))
    await host.pass_time(book, found(STORE), 60)
    assert len(receiver.messages) == 1, receiver.messages


async def test_a_book_that_cannot_be_written_keeps_nobody_from_telling_once(
    host: Host, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.watch.alarms import book as book_module

    def is_full(path: Path, octets: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(book_module, "write_whole", is_full)
    book = host.process()
    await host.pass_time(book, found(STORE), 60)
    assert len(receiver.messages) == 1
    assert not book.is_shared
    monkeypatch.undo()
    await host.pass_time(book, FINE, 60)
    assert len(receiver.messages) == 2
    assert book.is_shared


def test_processes_that_died_unasked_are_counted_and_those_that_left_are_not(tmp_path: Path) -> None:
    now = time.time()
    for number in range(4):
        AlarmBook(tmp_path, [], process=f"{number}.never").enter()
    AlarmBook(tmp_path, [], process="0.never").leave()
    own = AlarmBook(tmp_path, [], process=process_name())
    own.enter()
    assert own.deaths(now) == 3
    assert own.deaths(now + 60) == 3
    assert [item.topic for item in look_at(Sight(deaths=3)).conditions] == ["restarts"]
    assert own.deaths(now + 4000) == 0


def test_each_fact_has_its_condition_and_fine_facts_have_none() -> None:
    well = Sight(
        depths=[depth(EMAIL_SEND, ready=5, oldest_seconds=10.0), depth(SUSPECT)],
        held=HeldFaults(templates=0, mailboxes=0),
        relays=[RelayHealth(relay="a", is_failing=False, is_proven=True, why="")],
        certificate=[],
        free_bytes=10,
        min_free_bytes=5,
    )
    assert look_at(well).conditions == ()
    ill = Sight(
        store_fault="locked away",
        queue_fault="no answer",
        depths=[
            depth(EMAIL_SEND, ready=5, oldest_seconds=1000.0),
            depth(SUSPECT, leased=1),
            depth(DEAD_FAILED, dead=2),
        ],
        held=HeldFaults(templates=1, mailboxes=2),
        relays=[RelayHealth(relay="a", is_failing=True, is_proven=False, why="421")],
        certificate=[Trouble(subject="dates", level="wrong", text="has expired", next_step="renew it")],
        free_bytes=4,
        min_free_bytes=5,
        failures=30,
        deaths=3,
    )
    conditions = look_at(ill).conditions
    assert {item.topic for item in conditions} == set(TOPICS)
    assert all(item.what and item.next_step for item in conditions)
    [relay] = [item for item in conditions if item.topic == "relay"]
    assert (relay.severity, relay.subject) == ("critical", "a"), "the only relay: nothing goes out"


def test_a_relay_never_tried_since_the_start_is_not_judged() -> None:
    untried = RelayHealth(relay="a", is_failing=False, is_proven=False, why="")
    assert "relay:a" not in look_at(Sight(relays=[untried])).judged


def test_a_few_failures_among_many_successes_are_none_of_the_admins_business() -> None:
    meter = FailureMeter()
    assert meter.read(0, failed=0, relayed=0) == 0
    assert meter.read(10, failed=19, relayed=0) == 0
    assert meter.read(20, failed=200, relayed=1000) == 0
    assert meter.read(30, failed=1400, relayed=1000) == 1400
    assert meter.read(40, failed=50_000, relayed=60_000) == 50_000, "once begun it is counted to its end"
    assert meter.read(400, failed=50_000, relayed=60_000) == 0


def test_a_message_shows_control_characters_of_peers_to_nobody(tmp_path: Path) -> None:
    book = AlarmBook(tmp_path, [admin("json://localhost")], process="one")
    look = look_at(Sight(free_bytes=0, min_free_bytes=1, queue_fault="\x1b[2Jgone\r\n" + "x" * 1000))
    book.report(look, 0)
    book.report(look, 100)
    [(_, alarms)] = book.due(100)
    body = message_of(alarms, "", hostname="mx").body
    assert "\x1b" not in body
    assert len(body) < 1000


def test_the_page_for_three_in_the_morning_has_a_row_for_each_topic() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "alarms.md").read_text()
    rows = {
        line.split("`")[1]: line for line in page.partition("## What to do")[2].splitlines() if line.startswith("| `")
    }
    assert set(rows) >= set(TOPICS)
    for name, topic in TOPICS.items():
        assert f"| {topic.severity}" in rows[name], name
