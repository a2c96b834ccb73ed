"""The cage: what a job may do to itself, and that it never does it to anyone else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.cage import Cage
from gateway.errors import JobFailed, OverBudget, TransientFailure

JOBS = "cage_jobs:"
MIB = 1024 * 1024


@pytest.fixture
async def cage() -> AsyncIterator[Cage]:
    async with Cage(
        children=2, memory_bytes=64 * MIB, cpu_seconds=0.5, allow=(JOBS,), preload=("gateway.mail.addresses",)
    ) as cage:
        yield cage


async def until(condition: Callable[[], bool], *, timeout_seconds: float = 10) -> None:
    async with asyncio.timeout(timeout_seconds):
        while not condition():
            await asyncio.sleep(0.005)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    """The cage's children among all of them: services of other tests may live beside them."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in found if b"gateway.cage" in Path(f"/proc/{child}/cmdline").read_bytes()]


async def pids(cage: Cage) -> int:
    return int((await cage.run(JOBS + "who", {}))[0]["pid"])


async def test_json_and_octets_come_back_as_they_went(cage: Cage) -> None:
    request = {"text": "ü😀\ud800\0", "number": 1.5, "list": [None, True]}
    octets = bytes(range(256)) * 20_000
    assert await cage.run(JOBS + "echo", request, octets) == (request, octets)


async def test_modules_are_preloaded_and_nothing_else_is_inherited(cage: Cage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SECRET", "hush")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        async with Cage(children=1, allow=(JOBS,)) as late:
            seen, _ = await late.run(JOBS + "who", {})
    finally:
        os.close(reader)
        os.close(writer)
    assert set(seen["environment"]) <= {"LC_ALL", "PATH", "PYTHONPATH", "PYTHONUTF8", "LD_LIBRARY_PATH"}
    assert [name.partition(":")[0] for name in seen["descriptors"]] == ["/dev/null"] * 3 + ["socket"]
    assert (await cage.run(JOBS + "who", {}))[0]["preloaded"]


async def test_entering_does_not_wait_for_the_children() -> None:
    began = time.perf_counter()
    async with Cage(allow=(JOBS,)):
        assert time.perf_counter() - began < 0.05


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        ("burn", "cpu"),
        ("bloat", "memory"),
        ("bloat_slowly", "memory"),
        ("crash", "crashed"),
        ("killed", "died"),
        ("doze", "wall"),
    ],
)
async def test_a_job_is_ended_at_its_limit_and_the_next_goes_on(
    cage: Cage, job: str, kind: str, tmp_path: Path
) -> None:
    with pytest.raises(OverBudget) as caught:
        await cage.run(JOBS + job, {"note": str(tmp_path / "note")}, wall_seconds=0.3 if kind == "wall" else 10)
    assert caught.value.kind == kind
    assert await cage.run(JOBS + "echo", {"next": 1}) == ({"next": 1}, b"")


async def test_after_a_kill_the_spare_takes_the_next_job_at_once(cage: Cage) -> None:
    await until(lambda: cage._idle.qsize() == 3)
    with pytest.raises(OverBudget):
        await cage.run(JOBS + "crash", {})
    began = time.perf_counter()
    await cage.run(JOBS + "who", {})
    assert time.perf_counter() - began < 0.05
    await until(lambda: cage._idle.qsize() == 3)


@pytest.mark.parametrize(
    ("job", "kind", "text"),
    [
        ("fail", "ValueError", "the mail makes no sense"),
        ("panic", "PanicException", "index out of bounds"),
        ("leave", "SystemExit", "3"),
        ("not_json", "TypeError", "Object of type set is not JSON serializable"),
        ("missing", "AttributeError", "module 'cage_jobs' has no attribute 'missing'"),
    ],
)
async def test_a_raise_is_told_with_its_kind_and_text(cage: Cage, job: str, kind: str, text: str) -> None:
    with pytest.raises(JobFailed) as caught:
        await cage.run(JOBS + job, {})
    assert (type(caught.value), caught.value.kind, caught.value.text) == (JobFailed, kind, text)
    assert await cage.run(JOBS + "echo", {}) == ({}, b"")


async def test_what_a_job_prints_does_not_touch_the_protocol(cage: Cage) -> None:
    assert await cage.run(JOBS + "chat", {}) == ({"said": True}, b"")


async def test_jobs_outside_the_allowed_modules_are_refused(cage: Cage) -> None:
    with pytest.raises(ValueError, match="not a job"):
        await cage.run("os:system", {})


async def test_a_killer_breaks_no_job_beside_it(cage: Cage) -> None:
    async def work(number: int) -> int:
        return int((await cage.run(JOBS + "echo", {"number": number}))[0]["number"])

    killers = [asyncio.create_task(cage.run(JOBS + "crash", {})) for _ in range(5)]
    assert await asyncio.gather(*map(work, range(100))) == list(range(100))
    results = await asyncio.gather(*killers, return_exceptions=True)
    assert [getattr(result, "kind", result) for result in results] == ["crashed"] * 5


async def test_a_child_killed_while_idle_is_noticed_before_a_job_gets_it(cage: Cage) -> None:
    await until(lambda: cage._idle.qsize() == 3)
    victims = children_of(os.getpid())
    for child in victims:
        os.kill(child, signal.SIGKILL)
    await until(lambda: not any(is_alive(child) for child in victims))
    assert await cage.run(JOBS + "echo", {"a": 1}) == ({"a": 1}, b"")


async def test_cancelling_a_run_kills_its_child_and_replaces_it(cage: Cage, tmp_path: Path) -> None:
    note = tmp_path / "note"
    running = asyncio.create_task(cage.run(JOBS + "doze", {"note": str(note)}))
    await until(note.exists)
    pid = int(note.read_text())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not is_alive(pid))
    for number in range(10):
        assert await cage.run(JOBS + "echo", {"number": number}) == ({"number": number}, b"")
    await until(lambda: cage._idle.qsize() == 3)


async def test_a_child_that_keeps_memory_is_replaced_before_it_fails_somebody_else(cage: Cage) -> None:
    leaking, _ = await cage.run(JOBS + "keep", {"mebibytes": 40})
    await until(lambda: not is_alive(leaking["pid"]))
    for _ in range(10):
        await cage.run(JOBS + "keep", {"mebibytes": 40})


async def test_a_ctrl_c_to_the_whole_group_leaves_the_children_to_their_parent(cage: Cage) -> None:
    pid = await pids(cage)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert await pids(cage) == pid


async def test_leaving_ends_every_child() -> None:
    async with Cage(children=3, allow=(JOBS,)) as cage:
        await until(lambda: cage._idle.qsize() == 4)
        assert len(children_of(os.getpid())) == 4
    assert children_of(os.getpid()) == []


async def test_a_cage_whose_children_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cage._START_SECONDS", 2.0)
    async with Cage(children=1, allow=(JOBS,), preload=("no.such.module",)) as cage:
        with pytest.raises(TransientFailure, match="No module named 'no'"):
            await cage.run(JOBS + "echo", {})


PARENT = """
import asyncio, sys
from gateway.cage import Cage

async def main(note):
    async with Cage(children=2, cpu_seconds=3600, wall_seconds=3600, allow=("cage_jobs:",)) as cage:
        while cage._idle.qsize() < 3:
            await asyncio.sleep(0.01)
        await asyncio.gather(
            cage.run("cage_jobs:doze", {"note": note}), cage.run("cage_jobs:burn", {}, wall_seconds=3600)
        )

asyncio.run(main(sys.argv[1]))
"""


async def test_kill_9_of_the_parent_leaves_no_child_behind(tmp_path: Path) -> None:
    note = tmp_path / "note"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(note)], env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    )
    try:
        await until(note.exists)
        children = children_of(parent.pid)
        assert len(children) == 3
        assert all(map(is_alive, children))
    finally:
        parent.kill()
        parent.wait()
    await until(lambda: not any(map(is_alive, children)))
