"""What a `postgresql://` URL means: libpq's words, handed to asyncpg, which knows most of them.

asyncpg reads users, passwords, hosts (several, tried in turn), sockets, TLS files, `service` and the PG* environment as
libpq does, but sends every word it does not know to the server as a setting.  So the words are checked here first.
Differences from libpq: with several hosts `target_session_attrs` is `read-write` where the URL says nothing, because a
store that may only be read is no store; keep-alives have no words, because our own time-outs find a dead peer sooner;
`channel_binding=require` and `gssencmode=require` are refused, because asyncpg has neither.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from gateway.errors import Problem, SettingsError

CONNECT_SECONDS = 5.0
SCHEMES = ("postgresql", "postgres")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SESSIONS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
_ASYNCPG_READS = frozenset(
    [
        "host",
        "port",
        "user",
        "password",
        "passfile",
        "dbname",
        "database",
        "service",
        "sslmode",
        "sslcert",
        "sslkey",
        "sslpassword",
        "sslrootcert",
        "sslcrl",
        "sslnegotiation",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "target_session_attrs",
        "krbsrvname",
        "gsslib",
    ]
)
_SERVER_READS = frozenset({"application_name", "options"})
_CHOICES = {
    "sslmode": _SSL_MODES,
    "target_session_attrs": _SESSIONS,
    "channel_binding": ("prefer", "disable"),
    "gssencmode": ("prefer", "disable"),
}
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_NOT_PASSED_ON = frozenset({"connect_timeout", "channel_binding", "gssencmode"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresAddress:
    """Where the database is and how to get in; `dsn` holds the password, so it is never shown."""

    dsn: str
    connect_seconds: float

    def __repr__(self) -> str:
        return f"PostgresAddress({urlsplit(self.dsn).netloc.rpartition('@')[2]})"


def parse_postgresql_url(url: str) -> PostgresAddress:
    """The address a URL names; raises SettingsError for what libpq would not accept either, and for what we cannot do."""
    try:
        parts = urlsplit(url)
        words = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise _refusal(f"this is no postgresql:// URL: {error}") from None
    if parts.scheme not in SCHEMES:
        raise _refusal(f"{parts.scheme!r} is not postgresql")
    if parts.fragment:
        raise _refusal("a # in the user or password must be written %23")
    _check(words)
    hosts = words.get("host") or parts.netloc.rpartition("@")[2]
    _check_ports(parts.netloc.rpartition("@")[2], words.get("port", ""))
    passed_on = {name: value for name, value in words.items() if name not in _NOT_PASSED_ON}
    if "," in hosts:
        passed_on.setdefault("target_session_attrs", "read-write")
    dsn = parts._replace(query=urlencode(passed_on, quote_via=quote)).geturl()
    return PostgresAddress(dsn=dsn, connect_seconds=_connect_seconds(words.get("connect_timeout", "")))


def _check(words: dict[str, str]) -> None:
    for name, value in words.items():
        if name not in _ASYNCPG_READS | _SERVER_READS | _NOT_PASSED_ON:
            known = ", ".join(sorted(_ASYNCPG_READS | _SERVER_READS | _NOT_PASSED_ON))
            raise _refusal(f"the word {name!r} is not known here; known are {known}")
        if value not in _CHOICES.get(name, (value,)):
            raise _refusal(f"{name} is one of {', '.join(_CHOICES[name])}, not {value!r}")
        if name in _FILES and not os.access(value, os.R_OK):
            raise _refusal(f"{name}: {value} is not a file we can read")


def _check_ports(hosts: str, ports: str) -> None:
    written = [host.rpartition(":")[2] for host in hosts.split(",") if ":" in host.rpartition("]")[2]]
    for port in [*written, *filter(None, ports.split(","))]:
        if not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65535:
            raise _refusal(f"{port!r} is not a port")


def _connect_seconds(text: str) -> float:
    """libpq: 0 or nothing is no limit, and no limit is what a waiting mail cannot have; less than 2 s is 2 s."""
    if not text.isdigit() and text:
        raise _refusal(f"connect_timeout is a whole number of seconds, not {text!r}")
    return max(2.0, float(text)) if text and int(text) else CONNECT_SECONDS


def _refusal(text: str) -> SettingsError:
    return SettingsError([Problem("database_url", text)])
