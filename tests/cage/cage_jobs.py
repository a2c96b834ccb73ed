"""Jobs that behave, and jobs that do everything a job must not do."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

Answer = tuple[dict[str, Any], bytes]


class PanicException(BaseException):
    """What PyO3 raises for a Rust panic: not an Exception."""


def echo(request: dict[str, Any], octets: bytes) -> Answer:
    return request, octets


def who(request: dict[str, Any], octets: bytes) -> Answer:
    return {
        "pid": os.getpid(),
        "environment": dict(os.environ),
        "descriptors": sorted(os.readlink(f"/proc/self/fd/{number}") for number in _open_descriptors()),
        "preloaded": "gateway.mail.addresses" in sys.modules,
    }, b""


def _open_descriptors() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue
        found.append(int(name))
    return found


def burn(request: dict[str, Any], octets: bytes) -> Answer:
    """One C call that holds the GIL for hours: no signal handler written in Python would ever run."""
    return {"sum": sum(range(10**13))}, b""


def bloat(request: dict[str, Any], octets: bytes) -> Answer:
    return {"size": len("a" * 10**9)}, b""


def bloat_slowly(request: dict[str, Any], octets: bytes) -> Answer:
    kept = []
    while True:
        kept.append(b"a" * 1024 * 1024)


def keep(request: dict[str, Any], octets: bytes) -> Answer:
    """Leaks: what it keeps stays in the child after the answer."""
    _KEPT.append(bytearray(os.urandom(1024)) * 1024 * request["mebibytes"])
    return {"pid": os.getpid()}, b""


_KEPT: list[bytearray] = []


def crash(request: dict[str, Any], octets: bytes) -> Answer:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}, b""


def killed(request: dict[str, Any], octets: bytes) -> Answer:
    """As the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}, b""


def fail(request: dict[str, Any], octets: bytes) -> Answer:
    raise ValueError("the mail makes no sense")


def panic(request: dict[str, Any], octets: bytes) -> Answer:
    raise PanicException("index out of bounds")


def leave(request: dict[str, Any], octets: bytes) -> Answer:
    sys.exit(3)


def chat(request: dict[str, Any], octets: bytes) -> Answer:
    sys.stdout.write("into the protocol?")
    sys.stdout.flush()
    os.write(1, b"\0\0\0\5\0\0\0\0")
    return {"said": True}, b""


def not_json(request: dict[str, Any], octets: bytes) -> Answer:
    return {"value": {1, 2}}, b""


def doze(request: dict[str, Any], octets: bytes) -> Answer:
    """Says its pid in a file, then uses no CPU and never ends."""
    with open(request["note"] + ".new", "w") as note:
        note.write(str(os.getpid()))
    os.rename(request["note"] + ".new", request["note"])
    time.sleep(3600)
    return {}, b""
