"""A name server on loopback, UDP and TCP, that says what a test gave it: zones of any size, faults and silence included.

Records: name → list of (kind, value); MX as (preference, name), TXT as text or octets.  A name with the record kind `FAULT` is
answered SERVFAIL, with `SILENCE` not at all, with `GARBAGE` by octets that are no message.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

MAX_UDP = 1200
MAX_CHAIN = 12
Records = Mapping[str, Sequence[tuple[str, Any]]]


class FakeDns(asyncio.DatagramProtocol):
    """Start it with `async with`; `server` is what goes into the settings, `asked` counts the questions."""

    def __init__(self, records: Records | None = None) -> None:
        self.records = {_key(name): list(found) for name, found in (records or {}).items()}
        self.asked: Counter[tuple[str, str]] = Counter()
        self.server = ""

    def put(self, name: str, kind: str, *values: Any) -> None:
        self.records[_key(name)] = [*self.records.get(_key(name), []), *((kind, value) for value in values)]

    async def __aenter__(self) -> FakeDns:
        loop = asyncio.get_running_loop()
        for _ in range(20):  # the port must be free for both
            transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
            port = transport.get_extra_info("sockname")[1]
            try:
                self._tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", port)
            except OSError:
                transport.close()
                continue
            self._udp = transport
            self.server = f"127.0.0.1:{port}"
            return self
        raise RuntimeError("no port is free for UDP and TCP")

    async def __aexit__(self, *_: object) -> None:
        self._udp.close()
        self._tcp.close()
        await self._tcp.wait_closed()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        answer = self._answer(data)
        if answer is not None:
            self._transport.sendto(answer if len(answer) <= MAX_UDP else self._truncated(data), addr)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            size = int.from_bytes(await reader.readexactly(2), "big")
            answer = self._answer(await reader.readexactly(size), counts=False)
            if answer is not None:
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await writer.drain()
        finally:
            writer.close()

    def _truncated(self, data: bytes) -> bytes:
        response = dns.message.make_response(dns.message.from_wire(data))
        response.flags |= dns.flags.TC
        return response.to_wire()

    def _answer(self, data: bytes, *, counts: bool = True) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = _key(question.name), dns.rdatatype.to_text(question.rdtype)
        self.asked[name, kind] += counts
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if fault := self._fault(name, kind):
            if fault == "FAULT":
                response.set_rcode(dns.rcode.SERVFAIL)
                return response.to_wire()
            return None if fault == "SILENCE" else b"\x00\x01garbage"
        if name not in self.records:
            response.set_rcode(dns.rcode.NXDOMAIN)
        self._fill(response, question.name, name, kind)
        return response.to_wire(max_size=65535)

    def _fault(self, name: str, kind: str) -> str:
        for found, value in self.records.get(name, []):
            if found in ("FAULT", "SILENCE", "GARBAGE") and value in ("", kind):
                return found
        return ""

    def _fill(self, response: dns.message.Message, owner: dns.name.Name, name: str, kind: str) -> None:
        seen: set[str] = set()
        for _ in range(MAX_CHAIN):
            records = self.records.get(name, [])
            if values := [value for found, value in records if found == kind]:
                response.answer.append(_rrset(owner, kind, values))
                return
            if name in seen:
                return
            seen.add(name)
            target = next((value for found, value in records if found == "CNAME"), None)
            if target is None:
                return
            response.answer.append(_rrset(owner, "CNAME", [target]))
            owner, name = _name(target), _key(target)


def _rrset(owner: dns.name.Name, kind: str, values: Sequence[Any]) -> dns.rrset.RRset:
    rrset = dns.rrset.RRset(owner, dns.rdataclass.IN, dns.rdatatype.from_text(kind))
    rrset.update_ttl(300)
    for value in values:
        rrset.add(dns.rdata.from_wire(rrset.rdclass, rrset.rdtype, _wire(kind, value), 0, len(_wire(kind, value))), 300)
    return rrset


def _wire(kind: str, value: Any) -> bytes:
    if kind == "TXT":
        strings = [value] if isinstance(value, str | bytes) else value
        octets = [item.encode() if isinstance(item, str) else item for item in strings]
        pieces = [item[at : at + 255] for item in octets for at in range(0, max(1, len(item)), 255)]
        return b"".join(bytes([len(piece)]) + piece for piece in pieces) or b"\0"
    if kind == "MX":
        return int(value[0]).to_bytes(2, "big") + _name(value[1]).to_wire()
    if kind in ("CNAME", "PTR"):
        return _name(value).to_wire()
    text = str(value)
    return dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.from_text(kind), text).to_wire()


def _name(text: str) -> dns.name.Name:
    return dns.name.Name([label.encode() for label in text.rstrip(".").split(".") if label] + [b""])


def _key(name: Any) -> str:
    if isinstance(name, dns.name.Name):
        return ".".join(label.decode("utf-8", "replace") for label in name.labels[:-1]).lower()
    return str(name).rstrip(".").lower()
