"""Where a door listens: `host:port[?proxy=yes]`, or `unix:PATH?mode=0660&group=postfix`; and the opening of sockets.

Promises: nobody can connect before mode and group are set; the socket file of a dead process is replaced, a live one is
"address in use", anything that is no socket is left alone; two gateways starting at once cannot take it from each other.
Limits: a path has at most 107 octets (`sun_path`); without mode and group only our own user may connect.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

MAX_PATH_OCTETS = 107
BACKLOG = 512
_MODE = re.compile(r"0?[0-7]{3}")
_PROBE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpAddress:
    """`expects_proxy`: trusted hosts begin with a PROXY header there (`proxy_protocol`)."""

    host: str
    port: int
    expects_proxy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixAddress:
    """`gid` None leaves the socket to our own group."""

    path: Path
    mode: int = 0o600
    gid: int | None = None


def parse_listen(text: str) -> TcpAddress | UnixAddress:
    """Reads a listening address; raises ValueError saying what is wrong with it."""
    if text.startswith("unix:"):
        return _parse_unix(text)
    place, _, query = text.partition("?")
    host, _, port = place.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is neither HOST:PORT nor unix:PATH")
    proxy = _options(text, query, "proxy").get("proxy", "no")
    if proxy not in ("yes", "no"):
        raise ValueError(f"{text!r}: proxy is yes or no")
    return TcpAddress(host=host.strip("[]"), port=int(port), expects_proxy=proxy == "yes")


def _options(text: str, query: str, *known: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(options) - set(known)):
        there = "there is" if len(known) == 1 else "there are"
        raise ValueError(f"{text!r}: no option {unknown[0]!r}; {there} {' and '.join(known)}")
    return options


def _parse_unix(text: str) -> UnixAddress:
    path, _, query = text.removeprefix("unix:").partition("?")
    if not path.startswith("/"):
        raise ValueError(f"{text!r}: the path of a socket starts with /")
    octets = len(os.fsencode(path))
    if octets > MAX_PATH_OCTETS:
        raise ValueError(f"{path}: a socket's path has at most {MAX_PATH_OCTETS} bytes, this one has {octets}")
    if "\0" in path:
        raise ValueError(f"{text!r}: a path has no NUL")
    options = _options(text, query, "mode", "group")
    gid = _gid(options["group"]) if "group" in options else None
    mode = options.get("mode", "0600" if gid is None else "0660")
    if not _MODE.fullmatch(mode):
        raise ValueError(f"mode={mode} is not octal like 0660")
    return UnixAddress(path=Path(path), mode=int(mode, 8), gid=gid)


def _gid(group: str) -> int:
    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(f"group={group}: this machine has no such group") from None


def open_tcp(address: TcpAddress) -> list[socket.socket]:
    """Returns a listening socket for each address that the host has; raises OSError."""
    with ExitStack() as opened:
        sockets: list[socket.socket] = []
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, place in dict.fromkeys(found):
            listener = socket.create_server(place, family=family, backlog=BACKLOG)
            listener.setblocking(False)
            sockets.append(opened.enter_context(listener))
        opened.pop_all()
        return sockets


def open_unix(address: UnixAddress) -> socket.socket:
    """Returns the listening socket; raises OSError (EADDRINUSE when somebody listens there)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _folder_locked(address.path.parent):
            _remove_stale(address.path)
            listener.bind(str(address.path))
            if address.gid is not None:
                os.chown(address.path, -1, address.gid)
            os.chmod(address.path, address.mode)
            listener.listen(BACKLOG)  # only now does a connect succeed
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def remove_unix(path: Path, inode: int) -> None:
    """Removes our socket file, never one that a successor has put in its place."""
    with suppress(FileNotFoundError), _folder_locked(path.parent):
        if path.lstat().st_ino == inode:
            path.unlink()


def _remove_stale(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(errno.EEXIST, "there is a file of that name which is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except (BlockingIOError, TimeoutError):
            pass  # alive, and too busy to take one more
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


@contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    """One at a time: between looking and binding, another starting gateway's socket would look dead."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
