"""The PROXY protocol, versions 1 and 2 (HAProxy's proxy-protocol.txt): a load balancer says whose connection it hands on.

Expected where the listening address says `?proxy=yes`, from `trusted_hosts` only, before anything else is said; any other host
speaks for itself there, and a header of its own is a command that there is none of.
Promise: a header that is not exactly one is no header; whom it names is never taken for this host or for the proxy: what it
does not know (UNKNOWN, LOCAL, UNIX sockets, loopback) leaves the client `unknown`.
Limits: TLVs are passed over, and with them the checksum; over UDP is malformed here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import struct

from gateway.inbound.xforward import UNKNOWN_CLIENT, named_client

_WORD = b"PROXY "
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_LINE_OCTETS = 107
_MORE_OCTETS = 4_096
_PORT = r"(?:0|[1-9][0-9]{0,4})"
_LINE = re.compile(rf"PROXY (?:UNKNOWN(?: .*)?|TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ({_PORT}) ({_PORT}))\r\n")
_LOCAL, _PROXIED = 0x20, 0x21
# Address family and transport to the octets of an address; None: no address that a door could use.
_FAMILIES = {0x00: None, 0x11: 4, 0x21: 16, 0x31: None}
_OCTETS = {0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}


async def read_client(reader: asyncio.StreamReader) -> str:
    """Reads the header, not an octet more, and returns the client's IP address or `unknown`.

    Raises ValueError saying what is wrong with it, also when the connection ends within it.
    """
    try:
        start = await reader.readexactly(len(_WORD))
        if start == _WORD:
            return _of_line(start + await reader.readuntil(b"\n"))
        if start == _SIGNATURE[: len(_WORD)]:
            return await _read_binary(reader)
        raise ValueError("no PROXY header came first")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise ValueError("the PROXY header has no end") from None


def _of_line(line: bytes) -> str:
    match = _LINE.fullmatch(line.decode("ascii", "replace")) if len(line) <= _LINE_OCTETS else None
    if match is None:
        raise ValueError("the PROXY line cannot be read")
    version, source, destination, *ports = match.groups()
    if version is None:
        return UNKNOWN_CLIENT
    kind = ipaddress.IPv4Address if version == "4" else ipaddress.IPv6Address
    if any(int(port) > 65535 for port in ports):
        raise ValueError("the PROXY line has no such port")
    try:
        kind(destination)
        return named_client(str(kind(source)))
    except ValueError:
        raise ValueError("the PROXY line has no such address") from None


async def _read_binary(reader: asyncio.StreamReader) -> str:
    if await reader.readexactly(len(_SIGNATURE) - len(_WORD)) != _SIGNATURE[len(_WORD) :]:
        raise ValueError("no PROXY header came first")
    command, family, length = struct.unpack("!BBH", await reader.readexactly(4))
    if command not in (_LOCAL, _PROXIED) or length > _MORE_OCTETS:
        raise ValueError("the PROXY header has no such command, or is too long")
    rest = await reader.readexactly(length)
    if command == _LOCAL:
        return UNKNOWN_CLIENT
    if family not in _FAMILIES or length < _OCTETS[family]:
        raise ValueError("the PROXY header has no such address")
    size = _FAMILIES[family]
    return named_client(str(ipaddress.ip_address(rest[:size]))) if size else UNKNOWN_CLIENT
