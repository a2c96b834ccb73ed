"""Listening sockets that systemd opened for us (sd_listen_fds(3)): the port stays open while we restart, and 25 needs no root.

A door takes the sockets of its name (`FileDescriptorName=smtp` in the socket unit), the web service one named `web`; sockets
without a name go by their kind: TCP to the SMTP door, UNIX to the LMTP door.
`handing_over` is the other side: how `run --processes N` hands its sockets to the processes it starts.
Promise: what was handed to another process is not touched, and a socket is taken once.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import MutableMapping, Sequence

from gateway.runtime import die_with

_FIRST = 3
_OUT_OF_THE_WAY = (
    64  # numbers to which a socket goes before it takes its place: places may overlap with where they were
)
_BECOME = "import sys; from gateway.inbound.activation import become; become(*sys.argv[1:])"
_KINDS = {socket.AF_INET: "smtp", socket.AF_INET6: "smtp", socket.AF_UNIX: "lmtp"}
_NO_NAME = frozenset({"", "unknown", "stored"})


class Activation:
    """The sockets handed to this process; the environment that speaks of them is cleared for its children."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "0")
        names = environment.pop("LISTEN_FDNAMES", "").split(":")
        is_ours = pid == str(os.getpid()) and count.isdigit()
        numbers = range(_FIRST, _FIRST + int(count)) if is_ours else ()
        self._sockets: dict[str, list[socket.socket]] = {}
        for index, number in enumerate(numbers):
            listener = socket.socket(fileno=number)
            listener.setblocking(False)
            os.set_inheritable(number, False)
            name = names[index] if index < len(names) else ""
            kind = _KINDS.get(listener.family, "") if name in _NO_NAME else name
            self._sockets.setdefault(kind, []).append(listener)

    def take(self, name: str) -> list[socket.socket]:
        """The sockets of that name, which are the caller's from now on."""
        return self._sockets.pop(name, [])

    def take_all(self) -> list[tuple[str, socket.socket]]:
        """Every socket with its name, for whoever hands them on."""
        return [(name, listener) for name in list(self._sockets) for listener in self.take(name)]


def handing_over(listeners: Sequence[tuple[str, socket.socket]], command: Sequence[str]) -> list[str]:
    """The command line that starts `command` with these sockets, which the new process must inherit by number.

    It dies with this process, whatever this one dies of.
    """
    names = ":".join(name for name, _ in listeners)
    numbers = ",".join(str(listener.fileno()) for _, listener in listeners)
    return [sys.executable, "-c", _BECOME, str(os.getpid()), names, numbers, *command]


def become(parent: str, names: str, numbers: str, *command: str) -> None:
    """In the new process: puts the sockets where they belong, says so, and becomes the command."""
    die_with(int(parent))
    came = [int(number) for number in numbers.split(",") if number]
    aside = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY) for number in came]
    for number in came:
        os.close(number)
    for place, number in enumerate(aside, _FIRST):
        os.dup2(number, place)
    says = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(aside)), "LISTEN_FDNAMES": names}
    os.execve(command[0], command, {**os.environ, **says})
