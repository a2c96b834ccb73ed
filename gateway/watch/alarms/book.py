"""The alarm book: which alarms are raised on this host, what each admin has been told, in one file for all its processes.

`data_dir/alarms.json`, read and replaced whole (written aside, fsynced, renamed) under `flock(alarms.lock)`.
An alarm is raised when its condition has been there for the topic's patience, by whichever process sees it first; it is over
when nobody has reported it for `calm_seconds` and somebody who can judge it has looked.  A process that died reports no more.
Each thing to tell raises the alarm's `news`; an admin is told when he has heard of less.  So a restart tells nothing twice,
and an admin who could not be reached hears of it later.
Limits: while the file cannot be written each process keeps a book of its own, and each may tell; times are this host's clock.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.watch.alarms.conditions import TOPICS, Condition, Look, Severity, concerns
from gateway.whole_file import write_whole

HOUR_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How long for what."""

    calm_seconds: float = 10
    stale_seconds: float = 120
    remind_seconds: float = 24 * HOUR_SECONDS
    settle_seconds: float = 60
    sum_up_again_seconds: float = HOUR_SECONDS
    try_again_seconds: float = 30
    try_again_at_most_seconds: float = 900
    forget_seconds: float = 24 * HOUR_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """Somebody to tell: `place` in the settings, and the `service` as it may be shown, name him in the log."""

    place: str
    service: str
    url: str
    from_severity: Severity = "warning"
    topics: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """What names him in the state without betraying the URL."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def wants(self, alarm: Alarm) -> bool:
        return concerns(alarm.severity, alarm.topic, from_severity=self.from_severity, topics=self.topics)


@dataclass(slots=True, kw_only=True)
class Alarm:
    """One alarm; times are seconds since 1970. `raised_at` None: not yet, the topic's patience is not over."""

    topic: str
    subject: str
    severity: Severity
    what: str
    next_step: str
    since: float
    last_seen: float
    count: int = 0
    is_urgent: bool = False
    raised_at: float | None = None
    over_at: float | None = None
    grown_at: float = 0
    news: int = 0
    news_at: float = 0
    news_count: int = 0
    sums: int = 0
    reporters: dict[str, tuple[float, int]] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        name = f" ({self.subject})" if self.subject else ""
        return TOPICS[self.topic].title + name

    @property
    def is_active(self) -> bool:
        return self.raised_at is not None and self.over_at is None

    def tell(self, now: float) -> None:
        self.news, self.news_at, self.news_count = self.news + 1, now, self.count


@dataclass(slots=True, kw_only=True)
class _State:
    alarms: dict[str, Alarm] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)
    deaths: list[float] = field(default_factory=list)
    failures: dict[str, tuple[float, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> _State:
        """Reads the file's text; raises ValueError or TypeError for one that is not ours.

        What only the next version knows is left out: the two run side by side while one is replaced by the other.
        """
        values = json.loads(text)
        alarms = {key: Alarm(**_known(Alarm, row)) for key, row in values.pop("alarms").items()}
        known = {key: alarm for key, alarm in alarms.items() if alarm.topic in TOPICS}
        return cls(alarms=known, **_known(cls, values))


def _known(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    return {item.name: values[item.name] for item in fields(kind) if item.name in values}


def read_alarms(folder: Path) -> list[Alarm]:
    """The alarms raised and not over, the oldest first, for whoever shows them; none where there is no book."""
    return sorted((alarm for alarm in _read(folder).alarms.values() if alarm.is_active), key=lambda item: item.since)


def _read(folder: Path) -> _State:
    try:
        return _State.of((folder / "alarms.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return _State()  # none yet, or damaged: what is still wrong is seen anew


def utc_text(seconds: float) -> str:
    """A time of the book for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class AlarmBook:
    """The book as one process uses it; blocking, for a thread."""

    def __init__(self, folder: Path, admins: Sequence[Admin], *, process: str, rules: Rules | None = None) -> None:
        self._folder = folder
        self._admins = admins
        self._process = process
        self._rules = rules or Rules()
        self._own: _State | None = None

    @property
    def is_shared(self) -> bool:
        """Whether the file could be written the last time."""
        return self._own is None

    def enter(self) -> None:
        """This process begins to look."""
        with self._open() as state:
            state.processes[self._process] = os.getpid()

    def leave(self) -> None:
        """This process ends because it was asked to; its reports go with it."""
        with self._open() as state:
            self._forget(state, self._process)

    def deaths(self, now: float) -> int:
        """How many processes died unasked within the last hour; notes those that did since the last look."""
        with self._open() as state:
            for process, pid in list(state.processes.items()):
                if not _is_alive(process, pid):
                    self._forget(state, process)
                    state.deaths.append(now)
            state.deaths = [at for at in state.deaths if now - at < HOUR_SECONDS]
            return len(state.deaths)

    def report(self, look: Look, now: float) -> list[Alarm]:
        """Enters what this process found; returns the alarms that were raised or ended by it."""
        with self._open() as state:
            for condition in look.conditions:
                self._enter_condition(state, condition, now)
            found = {_key(condition.topic, condition.subject) for condition in look.conditions}
            changed = [alarm for key, alarm in state.alarms.items() if self._move(key, alarm, look, key in found, now)]
            state.alarms = {key: alarm for key, alarm in state.alarms.items() if not self._is_spent(alarm, now)}
        return changed

    def due(self, now: float) -> list[tuple[Admin, list[Alarm]]]:
        """Who must be told of what."""
        with self._open() as state:
            found = []
            for admin in self._admins:
                failed_at, failures = state.failures.get(admin.key, (0.0, 0))
                if failures and now < failed_at + self._wait_seconds(failures):
                    continue
                news = [item for item in state.alarms.values() if self._is_news(item, admin)]
                if news:
                    found.append((admin, sorted(news, key=lambda item: item.since)))
            return found

    def note_told(self, admin: Admin, alarms: Sequence[Alarm]) -> None:
        """The admin was told of these alarms as they were then."""
        with self._open() as state:
            state.failures.pop(admin.key, None)
            for told in alarms:
                alarm = state.alarms.get(_key(told.topic, told.subject))
                if alarm is not None:
                    alarm.told[admin.key] = max(told.news, alarm.told.get(admin.key, 0))

    def note_failed(self, admin: Admin, now: float) -> None:
        """The admin could not be told; he is left alone for a while."""
        with self._open() as state:
            _, failures = state.failures.get(admin.key, (0.0, 0))
            state.failures[admin.key] = (now, failures + 1)

    def _enter_condition(self, state: _State, condition: Condition, now: float) -> None:
        key = _key(condition.topic, condition.subject)
        alarm = state.alarms.get(key)
        if alarm is None:
            values = {name: getattr(condition, name) for name in ("topic", "subject", "severity", "what", "next_step")}
            alarm = state.alarms[key] = Alarm(since=now, last_seen=now, grown_at=now, **values)
        if alarm.over_at is not None:
            self._raise_again(alarm, now)
        alarm.reporters[self._process] = (now, condition.count)
        alarm.last_seen, alarm.severity, alarm.is_urgent = now, condition.severity, condition.is_urgent
        own_counts = [count for _, count in alarm.reporters.values()]
        # A process whose failing is over, or that ended, takes none of its failures back.
        count = max(sum(own_counts), alarm.count) if condition.is_own else condition.count
        if count > alarm.count:
            alarm.grown_at = now
        alarm.count, alarm.what, alarm.next_step = count, condition.said(count), condition.next_step

    @staticmethod
    def _raise_again(alarm: Alarm, now: float) -> None:
        """It comes back before everybody was told that it had gone: who was, hears of a new one."""
        was_told = alarm.news in alarm.told.values()
        alarm.over_at = None
        if was_told:
            alarm.since = alarm.raised_at = now
            alarm.sums = alarm.count = 0
            alarm.tell(now)
        else:
            alarm.news -= 1  # nobody knows that it was over

    def _move(self, key: str, alarm: Alarm, look: Look, is_found: bool, now: float) -> bool:
        """Lets an alarm be raised, grow, be repeated or end; True when it was raised or ended."""
        can_judge = key in look.judged or alarm.topic in look.judged
        if can_judge and not is_found:
            alarm.reporters.pop(self._process, None)
        stale = [who for who, (at, _) in alarm.reporters.items() if now - at > self._rules.stale_seconds]
        for who in stale:
            del alarm.reporters[who]
        if alarm.raised_at is None:
            return self._may_raise(alarm, now)
        if alarm.over_at is not None:
            return False
        if alarm.reporters or not can_judge:
            self._go_on(alarm, now)
        elif now - alarm.last_seen >= self._rules.calm_seconds:
            alarm.over_at = now
            alarm.tell(now)
            return True
        return False

    def _may_raise(self, alarm: Alarm, now: float) -> bool:
        patience_seconds = 0 if alarm.is_urgent else TOPICS[alarm.topic].patience_seconds
        if not alarm.reporters or now - alarm.since < patience_seconds:
            return False
        alarm.raised_at = now
        alarm.tell(now)
        return True

    def _go_on(self, alarm: Alarm, now: float) -> None:
        """A growing number is summed up once it rests, and then at most every hour; all else is repeated daily."""
        rules = self._rules
        wait_seconds = rules.sum_up_again_seconds if alarm.sums else rules.settle_seconds
        rests = now - alarm.grown_at >= rules.settle_seconds / 2 or now - alarm.news_at >= 10 * wait_seconds
        if alarm.count > alarm.news_count and now - alarm.news_at >= wait_seconds and rests:
            alarm.sums += 1
            alarm.tell(now)
        elif now - alarm.news_at >= rules.remind_seconds:
            alarm.tell(now)

    def _is_spent(self, alarm: Alarm, now: float) -> bool:
        if alarm.raised_at is None:
            return not alarm.reporters and now - alarm.last_seen >= self._rules.calm_seconds
        if alarm.over_at is None:
            return False
        everybody_knows = not any(self._is_news(alarm, admin) for admin in self._admins)
        return everybody_knows or now - alarm.over_at > self._rules.forget_seconds

    @staticmethod
    def _is_news(alarm: Alarm, admin: Admin) -> bool:
        return alarm.raised_at is not None and admin.wants(alarm) and alarm.news > alarm.told.get(admin.key, 0)

    def _wait_seconds(self, failures: int) -> float:
        rules = self._rules
        return float(min(rules.try_again_seconds * 2 ** min(failures - 1, 16), rules.try_again_at_most_seconds))

    @staticmethod
    def _forget(state: _State, process: str) -> None:
        state.processes.pop(process, None)
        for alarm in state.alarms.values():
            alarm.reporters.pop(process, None)

    @contextmanager
    def _open(self) -> Iterator[_State]:
        """The state, alone with it; written back if it changed."""
        try:
            lock = os.open(self._folder / "alarms.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        except OSError:
            self._own = self._own or _read(self._folder)
            yield self._own
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self._own or _read(self._folder)
            before = asdict(state)
            yield state
            if asdict(state) != before or self._own is not None:
                self._save(state)
        finally:
            os.close(lock)

    def _save(self, state: _State) -> None:
        try:
            write_whole(self._folder / "alarms.json", json.dumps(asdict(state), indent=1).encode())
        except OSError:
            self._own = state  # disk full, say: that is what alarms are for
        else:
            self._own = None


def process_name() -> str:
    """This process among all that ever were: its number and when the kernel started it."""
    return f"{os.getpid()}.{_started(os.getpid())}"


def _started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_alive(process: str, pid: int) -> bool:
    return process == f"{pid}.{_started(pid)}"


def _key(topic: str, subject: str) -> str:
    return f"{topic}:{subject}" if subject else topic
