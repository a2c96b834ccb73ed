"""XFORWARD: a mail server we trust says on whose behalf it hands a mail over (Postfix's XFORWARD_README).

The verb of both doors, before MAIL; its facts hold for one mail.  We read ADDR and HELO, and pass over the others.
Trusted are the hosts of `trusted_hosts`, and whoever may open the UNIX socket: for these facts and for what it writes about a
mail (`Envelope.by_trusted_host`), never as loopback.
Promise: once a mail server spoke of its client, that client is never taken for the mail server itself, nor for this host:
what is unavailable or cannot be read, and a loopback address, leaves the client unknown.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gateway.reply import Reply

OFFER = "XFORWARD ADDR HELO"
UNKNOWN_CLIENT = "unknown"
_PASSED_OVER = frozenset({"NAME", "PORT", "PROTO", "IDENT", "SOURCE"})
_UNAVAILABLE = frozenset({"[UNAVAILABLE]", "[TEMPUNAVAIL]"})
_ATTRIBUTE = re.compile(r"([A-Za-z]+)=([!-*,-<>-~]|\+[0-9A-Fa-f]{2})+")
_ENCODED = re.compile(rb"\+([0-9A-Fa-f]{2})")
_MAX_HELO_CHARACTERS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarded:
    """Who handed the mail to the mail server: an IP address or `unknown`, and the name it gave, '' when it is unknown."""

    client: str = UNKNOWN_CLIENT
    helo: str = ""


class TrustedHosts:
    """Networks of hosts whose word about their clients counts."""

    def __init__(self, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network] = ()) -> None:
        self._networks = tuple(networks)

    def __contains__(self, client: str) -> bool:
        try:
            address = ipaddress.ip_address(client.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)


def read_xforward(arg: str, known: Forwarded | None) -> tuple[Forwarded, Reply]:
    """Returns what is known after the command, and the answer to it."""
    facts = known or Forwarded()
    attributes = arg.split()
    try:
        for attribute in attributes:
            facts = _with_attribute(facts, attribute)
    except ValueError as error:
        return Forwarded(), Reply(code=501, enhanced_status="5.5.4", text=f"XFORWARD: {error}")
    if not attributes:
        return facts, Reply(code=501, enhanced_status="5.5.4", text="Syntax: XFORWARD attribute=value…")
    return facts, Reply(code=250, enhanced_status="2.0.0", text="Ok")


def _with_attribute(facts: Forwarded, attribute: str) -> Forwarded:
    if not _ATTRIBUTE.fullmatch(attribute):
        raise ValueError("an attribute is not NAME=xtext")
    name, _, encoded = attribute.partition("=")
    value = "" if encoded.upper() in _UNAVAILABLE else _decoded(encoded)
    if name.upper() == "ADDR":
        return replace(facts, client=_address(value) if value else UNKNOWN_CLIENT)
    if name.upper() == "HELO":
        if len(value) > _MAX_HELO_CHARACTERS or not value.isprintable():
            raise ValueError("HELO is not printable text of at most 255 characters")
        return replace(facts, helo=value)
    if name.upper() not in _PASSED_OVER:
        raise ValueError("unknown attribute")
    return facts


def _decoded(encoded: str) -> str:
    """Reads xtext (RFC 3461, section 4); raises ValueError when it is no UTF-8."""
    return _ENCODED.sub(lambda match: bytes.fromhex(match[1].decode()), encoded.encode("ascii")).decode("utf-8")


def _address(value: str) -> str:
    tagged = value[:5].upper() == "IPV6:"
    try:
        return named_client(value[5:] if tagged else value)
    except ValueError:
        raise ValueError("ADDR is no IP address") from None


def named_client(address: str) -> str:
    """A client as somebody else names it; raises ValueError for no IP address.

    Loopback is somebody else's loopback: only who connects to us directly is ever taken for a program of this host.
    """
    client = ipaddress.ip_address(address)
    mapped = getattr(client, "ipv4_mapped", None) or client
    return UNKNOWN_CLIENT if mapped.is_loopback or mapped.is_unspecified else str(mapped)
