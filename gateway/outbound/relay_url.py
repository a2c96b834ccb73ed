"""The URL of a relay: where it is, how it is secured, who we are there.

`capture:` · `smtp://[user:password@]host[:25]` STARTTLS if offered · `smtp+starttls://…[:587]` required · `smtps://…[:465]`;
`?verify=no` accepts any certificate.  User and password are percent-encoded and never shown: `repr` and `name` leave them out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

CAPTURE = "capture"
_STREAMS = frozenset({"urgent", "normal", "bulk"})


class Security(StrEnum):
    """How the connection is secured."""

    OFFERED = "starttls if offered"
    STARTTLS = "starttls"
    TLS = "tls"


_SCHEMES = {"smtp": (Security.OFFERED, 25), "smtp+starttls": (Security.STARTTLS, 587), "smtps": (Security.TLS, 465)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySpec:
    """One relay as the settings describe it; empty `streams` or `sender_domains` means all."""

    name: str
    host: str = ""
    port: int = 0
    security: Security = Security.OFFERED
    user: str = ""
    password: str = field(default="", repr=False)
    verify: bool = True
    weight: int = 1
    streams: frozenset[str] = frozenset()
    sender_domains: frozenset[str] = frozenset()

    @property
    def is_capture(self) -> bool:
        return self.name == CAPTURE

    def serves(self, stream: str, mail_from: str) -> bool:
        """Whether mail of this stream and envelope sender may go this way."""
        domain = mail_from.rpartition("@")[2].lower()
        return (not self.streams or stream in self.streams) and (
            not self.sender_domains or domain in self.sender_domains
        )


def parse_relay_url(
    url: str, *, weight: int = 1, streams: Iterable[str] = (), sender_domains: Iterable[str] = ()
) -> RelaySpec:
    """Reads a relay URL; raises ValueError saying what is wrong, never quoting the password."""
    if weight < 1:
        raise ValueError("the weight of a relay is at least 1")
    wanted = frozenset(streams)
    if unknown := wanted - _STREAMS:
        raise ValueError(f"no stream {sorted(unknown)[0]!r}; there are urgent, normal and bulk")
    domains = frozenset(domain.lower() for domain in sender_domains)
    if url == "capture:":
        return RelaySpec(name=CAPTURE, weight=weight, streams=wanted, sender_domains=domains)
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"no relay scheme {parts.scheme!r}; use smtp://, smtp+starttls://, smtps:// or capture:")
    security, default_port = _SCHEMES[parts.scheme]
    host, port = _host_and_port(parts, default_port)
    user, password = _credentials(parts)
    return RelaySpec(
        name=f"{host}:{port}",
        host=host,
        port=port,
        security=security,
        user=user,
        password=password,
        verify=_verify(parts.query),
        weight=weight,
        streams=wanted,
        sender_domains=domains,
    )


def _host_and_port(parts: SplitResult, default_port: int) -> tuple[str, int]:
    try:
        port = parts.port
    except ValueError:
        raise ValueError("the port of a relay is a number from 1 to 65535") from None
    if not parts.hostname or any(c.isspace() for c in parts.hostname):
        raise ValueError("a relay needs a host: smtp://host:25")
    if parts.path not in ("", "/") or parts.fragment:
        raise ValueError("a relay URL ends after the port; percent-encode / ? # @ : in user and password")
    if port == 0:
        raise ValueError("the port of a relay is a number from 1 to 65535")
    return parts.hostname, port or default_port


def _credentials(parts: SplitResult) -> tuple[str, str]:
    if parts.username is None:
        return "", ""
    if not parts.username or not parts.password:
        raise ValueError("a relay takes user and password together: smtp://user:password@host")
    return unquote(parts.username), unquote(parts.password)


def _verify(query: str) -> bool:
    options = dict(parse_qsl(query, keep_blank_values=True))
    answer = options.pop("verify", "yes")
    if options:
        raise ValueError(f"no relay option {sorted(options)[0]!r}; there is verify=yes|no")
    if answer not in ("yes", "no"):
        raise ValueError("verify is yes or no")
    return answer == "yes"
