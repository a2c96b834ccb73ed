"""Killable work in warm child processes: hostile input may burn, bloat or crash a child, never us.

A job is a plain function `job(request: dict, octets: bytes) -> (dict, bytes)` named "package.module:function"; it must be
idempotent.  Each child (`python -m gateway.cage`) has a memory limit of its own size after imports + `memory_bytes`, each
job a CPU limit (ITIMER_PROF with SIGPROF's default action, which stops even C code that holds the GIL) and a wall deadline
kept here.  One warm spare stands by, so that a kill costs the next job a millisecond.
Promises: a raise is `JobFailed`; a kill is `OverBudget` (`cpu`, `wall`, `memory`, `crashed`, `died`) and touches no other job; a
cancelled `run` leaves no half-used child; when this process dies, however it dies, its children die with it.
Limits: Linux; not a security sandbox (a child may open files and sockets); JSON and bytes only, never pickle.  As many bombs
at once as there are children hold up all other jobs until their CPU limit: the spare is for after a kill, no further turn.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from gateway.errors import JobFailed, OverBudget, TransientFailure
from gateway.runtime import die_with

Job = Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]

MEMORY_BYTES = 256 * 1024 * 1024
_FRAME = struct.Struct(
    "!IId"
)  # length of the JSON, length of the octets; CPU seconds, or 1 in an answer of a spent child
_MAX_ANSWER_BYTES = 128 * 1024 * 1024
_PIECE_BYTES = 1024 * 1024
_MAX_TEXT_CHARACTERS = 500
_OUT_OF_MEMORY_EXIT = 77
_START_SECONDS = 30.0
_RESTART_PAUSE_SECONDS = 1.0
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP})


class Cage:
    """A few warm children and a spare; an async context manager that returns at once and starts them behind the scenes."""

    def __init__(
        self,
        *,
        children: int = 2,
        memory_bytes: int = MEMORY_BYTES,
        cpu_seconds: float = 2.0,
        wall_seconds: float = 10.0,
        preload: Sequence[str] = (),
        allow: Sequence[str] = ("gateway.",),
    ) -> None:
        self._wanted = children + 1
        self._cpu_seconds = cpu_seconds
        self._wall_seconds = wall_seconds
        self._orders = {"memory_bytes": memory_bytes, "preload": list(preload)}
        self._allow = tuple(allow)
        self._turns = asyncio.Semaphore(children)
        self._idle: asyncio.LifoQueue[_Child] = asyncio.LifoQueue()
        self._alive: set[_Child] = set()
        self._dying: list[_Child] = []
        self._missing = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._start_problem = ""

    async def __aenter__(self) -> Cage:
        self._missing.set()
        self._keeper = asyncio.create_task(self._keep_children(), name="cage")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for child in list(self._alive):
            self._discard(child)
        await self._reap()

    async def run(
        self,
        job: str,
        request: dict[str, Any],
        octets: bytes = b"",
        *,
        cpu_seconds: float | None = None,
        wall_seconds: float | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        """Runs one job in a child.

        Raises JobFailed when it raised, OverBudget when it was ended at a limit, TransientFailure when no child starts.
        """
        if not job.startswith(self._allow):
            raise ValueError(f"{job} is not a job of the cage")
        order = json.dumps({"job": job, "request": request}).encode()
        frame = (order, octets, cpu_seconds or self._cpu_seconds)
        async with self._turns:
            child = await self._take()
            fit = False
            try:
                answer, octets, fit = await self._converse(child, frame, wall_seconds or self._wall_seconds)
            finally:
                if fit:
                    self._idle.put_nowait(child)
                else:
                    self._discard(child)
        return _result(answer), octets

    async def _converse(
        self, child: _Child, frame: tuple[bytes, bytes, float], wall_seconds: float
    ) -> tuple[dict[str, Any], bytes, bool]:
        try:
            async with asyncio.timeout(wall_seconds):
                return await child.ask(*frame)
        except TimeoutError:
            raise OverBudget("wall", f"more than {wall_seconds:g} s") from None
        except (OSError, EOFError, ValueError):  # closed, or garbage in place of an answer
            child.kill()
            raise _death(await child.exit_code(), cpu_seconds=frame[2]) from None

    async def _take(self) -> _Child:
        while True:
            try:
                async with asyncio.timeout(_START_SECONDS):
                    child = await self._idle.get()
            except TimeoutError:
                raise TransientFailure(f"no child of the cage starts: {self._start_problem or 'too slow'}") from None
            if not child.is_dead:
                return child
            self._discard(child)

    def _discard(self, child: _Child) -> None:
        child.kill()
        self._alive.discard(child)
        self._dying.append(child)
        self._missing.set()

    async def _keep_children(self) -> None:
        """Starts whatever is missing, one after the other, so that a start never takes both cores from the mail."""
        while True:
            await self._missing.wait()
            self._missing.clear()
            while len(self._alive) < self._wanted:
                await self._add_child()
            await self._reap()

    async def _reap(self) -> None:
        while self._dying:
            child = self._dying[0]
            await child.exit_code()
            self._dying.remove(child)

    async def _add_child(self) -> None:
        child: _Child | None = None
        try:
            child = await _Child.start(self._orders)
            self._alive.add(child)
            async with asyncio.timeout(_START_SECONDS):
                await child.warm()
        except Exception as error:  # noqa: BLE001 - this loop must survive; whoever waits for a child is told the reason
            self._start_problem = f"{type(error).__name__}: {error}".rstrip(": ")
            if child is not None:
                self._discard(child)
            await asyncio.sleep(_RESTART_PAUSE_SECONDS)
        else:
            self._idle.put_nowait(child)


class _Child:
    """One child process and our end of its socket."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        orders: bytes,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._orders = orders

    @classmethod
    async def start(cls, orders: dict[str, Any]) -> _Child:
        """Starts it from this thread: PR_SET_PDEATHSIG follows the thread that forked, not the process."""
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            process = subprocess.Popen(  # noqa: ASYNC220 - 2 ms, and it must be this thread
                [sys.executable, "-P", "-m", "gateway.cage", str(number), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(number,),
                env=_environment(),
                cwd="/",
            )
        ours.setblocking(False)
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            process.kill()
            process.wait()
            ours.close()
            raise
        return cls(process, reader, writer, json.dumps(orders).encode())

    @property
    def is_dead(self) -> bool:
        return self._reader.at_eof() or self._process.poll() is not None

    async def warm(self) -> None:
        """Returns when the child has imported what it preloads; raises JobFailed when it could not."""
        answer, _, _ = await self.ask(self._orders, b"", 0)
        _result(answer)

    async def ask(self, order: bytes, octets: bytes, cpu_seconds: float) -> tuple[dict[str, Any], bytes, bool]:
        """Returns the answer, its octets and whether the child is fit for another job."""
        self._writer.writelines((_FRAME.pack(len(order), len(octets), cpu_seconds), order))
        # In pieces: joined with the rest, and buffered, a large mail would be copied twice without a pause.
        view = memoryview(octets)
        for at in range(0, len(octets), _PIECE_BYTES):
            self._writer.write(view[at : at + _PIECE_BYTES])
            await self._writer.drain()
        size, octet_count, spent = _FRAME.unpack(await self._reader.readexactly(_FRAME.size))
        if size + octet_count > _MAX_ANSWER_BYTES:
            raise EOFError("an answer beyond all measure")
        answer: dict[str, Any] = json.loads(await self._reader.readexactly(size))
        return answer, await self._reader.readexactly(octet_count), not spent

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self._writer.transport.abort()

    async def exit_code(self) -> int:
        """Reaps it (in a thread: the socket closes a moment before the process can be waited for)."""
        return await asyncio.to_thread(self._process.wait)


def _environment() -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}
    paths = [os.path.abspath(path) for path in sys.path if path]
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8", "PATH": os.defpath}


def _result(answer: dict[str, Any]) -> dict[str, Any]:
    if "failure" in answer:
        kind, text = answer["failure"]
        raise OverBudget("memory", text) if kind == "MemoryError" else JobFailed(kind, text)
    result: dict[str, Any] = answer["result"]
    return result


def _death(exit_code: int, *, cpu_seconds: float) -> OverBudget:
    if exit_code == -signal.SIGPROF:
        return OverBudget("cpu", f"more than {cpu_seconds:g} s")
    if exit_code == _OUT_OF_MEMORY_EXIT:
        return OverBudget("memory", "")
    if -exit_code in _CRASHES:  # nobody sends these from outside: the job brought the child to it
        return OverBudget("crashed", signal.Signals(-exit_code).name)
    return OverBudget("died", f"exit code {exit_code}")


class _Cell:
    """The other side: what runs inside a child."""

    def __init__(self, door: socket.socket) -> None:
        self._door = door
        self._jobs: dict[str, Job] = {}
        self._base_bytes = 0
        self._memory_bytes = 0

    def serve(self) -> None:
        """Answers the first frame (the orders: imports and limits), then job after job until the parent closes."""
        orders, _ = self._receive()
        try:
            for name in orders["preload"]:
                importlib.import_module(name)
            self._limit_memory(orders["memory_bytes"])
            gc.freeze()
            self._send(b'{"result": {}}')
        except Exception as error:  # noqa: BLE001 - the parent must hear why, whatever the module raised
            self._send(_failure(error))
        while True:
            order, octets = self._receive()
            answer, result, spent = self._work(order["job"], order["request"], octets)
            signal.setitimer(signal.ITIMER_PROF, 0)
            spent = spent or _data_bytes() > self._base_bytes + self._memory_bytes // 2
            self._send(answer, result, spent=spent)

    def _limit_memory(self, memory_bytes: int) -> None:
        self._base_bytes, self._memory_bytes = _data_bytes(), memory_bytes
        limit = self._base_bytes + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def _work(self, name: str, request: dict[str, Any], octets: bytes) -> tuple[bytes, bytes, bool]:
        try:
            result, produced = self._find(name)(request, octets)
            return json.dumps({"result": result}).encode(), bytes(produced), False
        except Exception as error:  # noqa: BLE001 - a raise of the job is an answer
            return _failure(error), b"", isinstance(error, MemoryError)
        except BaseException as error:  # noqa: BLE001 - a Rust panic (PyO3) is a BaseException; trust this child no more
            return _failure(error), b"", True

    def _find(self, name: str) -> Job:
        if name not in self._jobs:
            module, _, function = name.partition(":")
            self._jobs[name] = getattr(importlib.import_module(module), function)
        return self._jobs[name]

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        size, octet_count, cpu_seconds = _FRAME.unpack(self._read(_FRAME.size))
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        order: dict[str, Any] = json.loads(self._read(size))
        return order, bytes(self._read(octet_count))

    def _read(self, count: int) -> bytearray:
        octets = bytearray(count)
        view, filled = memoryview(octets), 0
        while filled < count:
            received = self._door.recv_into(view[filled:])
            if not received:
                os._exit(0)
            filled += received
        return octets

    def _send(self, answer: bytes, octets: bytes = b"", *, spent: bool = False) -> None:
        self._door.sendall(b"".join((_FRAME.pack(len(answer), len(octets), spent), answer, octets)))


def _failure(error: BaseException) -> bytes:
    return json.dumps({"failure": [type(error).__name__, str(error)[:_MAX_TEXT_CHARACTERS]]}).encode()


def _data_bytes() -> int:
    """The size that RLIMIT_DATA is about (VmData of proc(5)), within a few pages."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[5]) * resource.getpagesize()


def _harden(parent: int) -> None:
    die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # a Ctrl-C reaches us too; how long to go on is the parent's word
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("500")


def _main() -> None:
    number, parent = map(int, sys.argv[1:3])
    _harden(parent)
    try:
        _Cell(socket.socket(fileno=number)).serve()
    except MemoryError:
        os._exit(_OUT_OF_MEMORY_EXIT)


if __name__ == "__main__":
    _main()
