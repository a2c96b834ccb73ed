"""From where a request comes and whom it asks for: the client behind trusted proxies, the Host, the Origin.

X-Forwarded-For and X-Forwarded-Proto count only from a peer in `trusted_hosts`, read from the right up to the first address
that is not trusted; from anybody else they are hearsay and change nothing.  A Host is ours when it is local, an IP address
(no name that could be rebound leads to it), or the host of `public_url`, or our `hostname`.
Limit: a proxy of this machine that adds none of the known headers looks like a person of this machine.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_FORWARDED = (b"forwarded", b"x-forwarded-", b"x-original-forwarded-", b"x-real-ip", b"via")
_HOST = re.compile(r"(?:[a-z0-9._-]{1,255}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class OurNames:
    """What is ours in the world: names that lead to us, proxies we believe, the URL people use."""

    names: frozenset[str] = frozenset()
    public_url: str = ""
    trusted: tuple[Network, ...] = ()

    @property
    def public_origin(self) -> str:
        parts = urlsplit(self.public_url)
        return f"{parts.scheme}://{parts.netloc}".lower() if self.public_url else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What is known of a request before anybody asks who it is; `is_anothers`: a page of another site loads it as a part of
    its own (browsers tell so in Sec-Fetch-Site, also where they send no Origin)."""

    client: str
    is_loopback: bool
    is_forwarded: bool
    is_https: bool
    host: str
    host_name: str
    origin: str | None
    is_anothers: bool


def read_provenance(scope: Scope, ours: OurNames) -> Provenance:
    """Reads the scope's headers; a Host given twice, not at all, or with more than name and port is ''."""
    headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
    peer = (scope.get("client") or ("", 0))[0]
    believed = _is_in(peer, ours.trusted)
    hosts = _all(headers, b"host")
    host = hosts[0].lower() if len(hosts) == 1 and _HOST.fullmatch(hosts[0].lower()) else ""
    proto = _all(headers, b"x-forwarded-proto")[-1:] if believed else []
    origins = _all(headers, b"origin")
    return Provenance(
        client=_client_behind(peer, headers, ours.trusted) if believed else peer,
        is_loopback=_is_loopback(peer),
        is_forwarded=any(name.startswith(_FORWARDED) for name, _ in headers),
        is_https=scope.get("scheme") == "https" or proto == ["https"],
        host=host,
        host_name=name_in(f"//{host}"),
        origin=", ".join(origins).lower() if origins else None,
        is_anothers=_all(headers, b"sec-fetch-site") == ["cross-site"]
        and _all(headers, b"sec-fetch-mode") != ["navigate"],
    )


def is_local_name(name: str) -> bool:
    return name in _LOCAL_NAMES


def is_ours(provenance: Provenance, ours: OurNames) -> bool:
    """Whether the Host leads to us and to nobody else."""
    name = provenance.host_name
    return is_local_name(name) or name in ours.names or name == name_in(ours.public_url) != "" or _is_address(name)


def is_same_origin(provenance: Provenance, ours: OurNames) -> bool:
    """Whether the Origin, which must be there, is the page of ours that this request would come from."""
    schemes = ("https",) if provenance.is_https else ("http", "https")
    own = {f"{scheme}://{provenance.host}" for scheme in schemes} | {ours.public_origin}
    return bool(provenance.origin) and provenance.origin in own


def name_in(url: str) -> str:
    """The host's name in a URL, '' where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and networks such as `10.0.0.0/8`; raises ValueError naming the first that is none."""
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise ValueError(f"{text!r} is not an IP address or network such as 10.0.0.0/8") from None
    return tuple(found)


def _client_behind(peer: str, headers: Sequence[tuple[bytes, bytes]], trusted: Sequence[Network]) -> str:
    hops = [hop.strip() for value in _all(headers, b"x-forwarded-for") for hop in value.split(",")]
    for hop in reversed(hops):
        if not _is_address(hop):
            return peer
        if not _is_in(hop, trusted):
            return hop
        peer = hop
    return peer


def _all(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key == name]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(text: str) -> bool:
    return _is_address(text) and ipaddress.ip_address(text).is_loopback


def _is_in(text: str, networks: Sequence[Network]) -> bool:
    return _is_address(text) and any(ipaddress.ip_address(text) in network for network in networks)
