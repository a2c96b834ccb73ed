"""Listening sockets that systemd opened for us (sd_listen_fds(3)): the port stays open while we restart, and 25 needs no root.

A door takes the sockets of its name (`FileDescriptorName=smtp` in the socket unit); sockets without a name go by their
kind: TCP to the SMTP door, UNIX to the LMTP door.
Promise: what was handed to another process is not touched, and a socket is taken once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

_FIRST = 3
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
