"""`gateway run` with its store locked away, and the command that tries the way to the admins: real processes, a local provider."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "fakes"))
sys.path.insert(0, str(Path(__file__).parent.parent / "crash"))

from house import House, Poster
from sms_receiver import Receiver

from gateway.app import check_values
from gateway.errors import SettingsError
from gateway.settings import AdminTable, Settings, load


def gateway(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    command = [sys.executable, "-m", "gateway.cli", *words]
    return subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


def move_store(source: Path, target: Path) -> None:
    # The file itself goes first and comes last: without its WAL it must never be found.
    for ending in ("", "-wal", "-shm") if target.name == "away" else ("-wal", "-shm", ""):
        (source / f"store.db{ending}").rename(target / f"store.db{ending}")


async def test_a_store_locked_away_is_one_sms_and_its_return_another_across_a_restart(
    tmp_path: Path, receiver: Receiver
) -> None:
    folder, away = tmp_path / "var", tmp_path / "away"
    folder.mkdir()
    away.mkdir()
    house = House(folder, "capture:", more={"GATEWAY_ADMIN_URLS": receiver.url})
    other = House(folder, "capture:", more={"GATEWAY_ADMIN_URLS": receiver.url})
    poster = Poster(house.smtp_port)
    house.start()
    try:
        assert await asyncio.to_thread(house.wait_ready)
        other.start("", "events", "sweep")  # a second process of this host, which sees the same
        await asyncio.to_thread(poster.post, "before", time.monotonic() + 30)
        await wait_until(lambda: [row["title"] for row in house.list("posts")] == ["before"])
        await wait_until(lambda: len(json.loads((folder / "alarms.json").read_text())["processes"]) == 2)
        move_store(folder, away)
        await asyncio.to_thread(poster.post, "meanwhile", time.monotonic() + 30)
        [message] = await asyncio.to_thread(receiver.wait_for, 1)
        assert "the store cannot be reached" in message["title"]
        assert "Since " in message["message"]
        assert "Next: " in message["message"]
        await wait_until(lambda: "admin-told" in house.log())  # who dies before that has it told again
        other.kill()
        move_store(away, folder)
        messages = await asyncio.to_thread(receiver.wait_for, 2)
        assert "over again: the store cannot be reached" in messages[1]["title"]
        await wait_until(lambda: {row["title"] for row in house.list("posts")} == {"before", "meanwhile"})
        assert (await asyncio.to_thread(house.balance))["missing"] == []
        assert await asyncio.to_thread(house.stop) == 0
        assert len(receiver.messages) == 2, receiver.messages
        book = json.loads((folder / "alarms.json").read_text())
        assert (book["processes"], len(book["deaths"])) == ({}, 1), "who was asked to stop is nobody's death"
    finally:
        house.kill()
        other.kill()
    assert "hunter2" not in house.log()
    assert "token-of-ours" not in house.log()


@pytest.mark.parametrize("more", [(), ("--processes", "2")], ids=["one", "two"])
def test_a_gateway_that_cannot_start_says_so_once_however_often_it_is_tried(
    tmp_path: Path, receiver: Receiver, more: tuple[str, ...]
) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "queue.db").write_bytes(b"no database at all, whatever its name says\n" * 100)
    listen = {"GATEWAY_SMTP_LISTEN": "127.0.0.1:0", "GATEWAY_WEB_LISTEN": "127.0.0.1:0"}
    said = [gateway(tmp_path, "run", *more, GATEWAY_ADMIN_URLS=receiver.url, **listen) for _ in range(3)]
    assert [done.returncode for done in said] == [75] * 3
    assert ["alarm-raised" in done.stderr for done in said] == [True, False, False]
    [message] = receiver.messages
    assert "critical: the queue cannot be reached" in message["title"]
    assert "the gateway cannot start, nothing is taken in or sent: " in message["message"]
    found = gateway(tmp_path, "doctor", "--json", GATEWAY_ADMIN_URLS=receiver.url)
    assert '"alarm queue"' in found.stdout


async def wait_until(holds: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(holds):  # type: ignore[arg-type]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)  # polling another process through its commands


def test_alarm_test_prints_a_line_for_each_url_and_fails_when_one_does(tmp_path: Path) -> None:
    with Receiver() as good, Receiver() as bad:
        bad.status = 403
        done = gateway(tmp_path, "alarm", "test", GATEWAY_ADMIN_URLS=good.url)
        assert done.returncode == 0, done.stderr
        assert [item["title"].partition("] ")[2] for item in good.messages] == ["test"]
        done = gateway(tmp_path, "alarm", "test", "--json", GATEWAY_ADMIN_URLS=f"{bad.url} {good.url}")
        assert done.returncode == 1
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(row["admin"], row["service"], row["outcome"]) for row in rows] == [
            ("admins[0]", "json://***", "failed"),
            ("admins[1]", "json://***", "sent"),
        ]
        assert "403" in rows[0]["why"]
        assert "hunter2" not in done.stdout + done.stderr
        assert "token-of-ours" not in done.stdout + done.stderr
    nobody = gateway(tmp_path, "alarm", "test")
    assert nobody.returncode == 1
    assert "admin_urls is empty" in nobody.stderr


@pytest.mark.parametrize(
    "url", ["nonsense", "unheard-of://hunter2", "twilio://hunter2@nothing", "slack://hunter2/short", "json://"]
)
def test_a_url_apprise_cannot_use_is_a_settings_error_that_names_the_key_and_hides_it(tmp_path: Path, url: str) -> None:
    settings = Settings(data_dir=tmp_path, admin_urls=("json://localhost", url)).filled()
    with pytest.raises(SettingsError, match=r"admins\[1\]: .*apprise") as caught:
        check_values(settings)
    assert "hunter2" not in str(caught.value)


def test_a_bad_admin_url_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = gateway(tmp_path, "run", GATEWAY_ADMIN_URLS="slack://hunter2/short")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "gateway: admins[0]: slack://*** is not a URL apprise can use: its scheme, or what belongs behind it"
    ]


def test_a_topic_there_is_not_is_told_with_those_there_are(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, admins=(AdminTable(url="json://localhost", topics=("weather",)),)).filled()
    with pytest.raises(
        SettingsError, match=r"admins\[0\]: json://\*\*\* has no topic 'weather'; there are store, queue"
    ):
        check_values(settings)


def test_admin_urls_are_short_for_admins_and_never_printed(tmp_path: Path) -> None:
    environment = {"GATEWAY_ADMIN_URLS": "tgram://123:hunter2/42 json://localhost"}
    settings = load(environment=environment)
    assert [item.url for item in settings.admins] == environment["GATEWAY_ADMIN_URLS"].split()
    done = gateway(tmp_path, "settings", "--json", **environment)
    shown = json.loads(done.stdout)
    assert shown["admin_urls"] == [item["url"] for item in shown["admins"]] == ["tgram://***", "json://***"]
    assert "hunter2" not in done.stdout + done.stderr
    both = {"GATEWAY_ADMINS": '[{"url": "json://localhost"}]', "GATEWAY_ADMIN_URLS": "json://localhost"}
    with pytest.raises(SettingsError, match="admin_urls"):
        load(environment=both)
