"""The life of a process: stop in order, die loudly, die where told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gateway.runtime import SAME_SIGNAL_SECONDS, Stop, in_thread, serve

PROGRAM = """
import asyncio, sys
from gateway.runtime import Stop, serve, stop_on_signals, failpoint
async def loop(stop):
    print("up", flush=True)
    {body}
async def main():
    stop = Stop()
    with stop_on_signals(stop):
        return await serve({{"loop": loop}}, grace_seconds={grace}, stop=stop)
sys.exit(asyncio.run(main()))
"""


def program(body: str, grace: float = 5, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body, grace=grace)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_a_signal_stops_services_in_order_and_exits_0() -> None:
    process = program("await stop.wait(); print('done', flush=True)")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert (out, process.returncode) == ("done\n", 0)


def test_a_second_signal_kills_at_once() -> None:
    process = program("await stop.wait(); print('stopping', flush=True); await asyncio.sleep(3600)", grace=3600)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopping\n"
    time.sleep(SAME_SIGNAL_SECONDS)  # until then it counts as the same one
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 1


def test_one_wish_heard_twice_is_one_wish() -> None:
    process = program("await stop.wait(); print('stopping', flush=True); await asyncio.sleep(0.3); print('done')")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert (out, process.returncode) == ("done\n", 0)


def test_a_service_that_dies_stops_the_process_with_exit_1_and_says_why() -> None:
    process = program("raise RuntimeError('out of ink')")
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert errors == "gateway: service loop died: RuntimeError: out of ink\n"


def test_a_service_that_just_ends_stops_the_process_with_exit_1() -> None:
    process = program("return")
    process.communicate(timeout=10)
    assert process.returncode == 1


def test_a_failpoint_kills_at_its_nth_pass_only_where_armed() -> None:
    body = "[failpoint('here') or print(i, flush=True) for i in range(5)]; await stop.wait()"
    process = program(body, GATEWAY_FAILPOINT="here:3")
    assert process.stdout is not None
    assert (process.stdout.read(), process.wait(timeout=10)) == ("0\n1\n", -signal.SIGKILL)


async def test_a_service_that_does_not_end_in_its_grace_time_is_cancelled() -> None:
    stop = Stop()
    cancelled = asyncio.Event()

    async def deaf(stop: Stop) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    stop.set()
    assert await serve({"deaf": deaf}, grace_seconds=0.01, cleanup_seconds=0.01, stop=stop) == 0
    assert cancelled.is_set()


async def test_a_service_that_needs_its_whole_grace_has_time_to_clean_up() -> None:
    stop = Stop()
    cleaned = asyncio.Event()

    async def tidy(stop: Stop) -> None:
        await asyncio.sleep(0.1)  # its own work's grace
        await asyncio.sleep(0.1)
        cleaned.set()

    stop.set()
    assert await serve({"tidy": tidy}, grace_seconds=0.1, stop=stop) == 0
    assert cleaned.is_set()


async def test_blocking_work_gives_its_result_or_its_error_from_a_thread_no_exit_waits_for() -> None:
    thread = await in_thread(threading.current_thread, seconds=20)
    assert thread.daemon
    assert thread is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0, seconds=20)


async def test_blocking_work_that_takes_too_long_is_left_to_itself() -> None:
    released = threading.Event()
    with pytest.raises(TimeoutError):
        await in_thread(released.wait, seconds=0.01)
    released.set()
    assert await in_thread(lambda: "the loop is well", seconds=20) == "the loop is well"


def test_a_process_takes_the_open_files_it_may_have_and_the_doors_leave_some_to_others() -> None:
    program = """
import resource
from gateway.app.services import places
from gateway.runtime import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 1024))
print(allow_open_files(), resource.getrlimit(resource.RLIMIT_NOFILE), places(allow_open_files()), places(65536), places(100))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "1024 (1024, 1024) 412 1000 20"
