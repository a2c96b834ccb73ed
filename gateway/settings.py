"""The settings: one table (the models below) is the source of defaults, validation, `gateway settings` and the docs.

Order: command line > environment > secret files > gateway.toml > defaults.  Tables merge, lists replace.
Environment: GATEWAY_<KEY>, GATEWAY_<SECTION>__<KEY>; lists as JSON or separated by white space.  Relative paths in the
file start at the file's folder, elsewhere at the working folder.  `load` reports every mistake at once as SettingsError,
each with its key and the place it came from.  Only `app`, `cli` and `doctor` know settings; all others are handed values.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import socket
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gateway.errors import Problem, SettingsError

ENV_PREFIX = "GATEWAY_"
_NOT_SETTINGS = frozenset({"GATEWAY_CONFIG", "GATEWAY_SECRETS_DIR", "GATEWAY_FAILPOINT", "GATEWAY_LOG_FORMAT"})
_KUBERNETES = re.compile(r"^GATEWAY_(.*_)?(SERVICE_.*|PORT|PORT_.*)$")
_SPELLINGS = {"relay_urls": "relays", "relays": "relay_urls", "admin_urls": "admins", "admins": "admin_urls"}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_URL_PASSWORD = re.compile(r"(://[^/@:]*):.*@", re.DOTALL)


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", value)
        if not match:
            raise ValueError(f"{value!r} is not a duration such as 30s, 15m, 4h or 7d")
        return float(match[1]) * _UNITS[match[2] or "s"]
    return value


def _bytes(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+)\s*([kmg]?)b?\s*", value.lower())
        if not match:
            raise ValueError(f"{value!r} is not a size such as 512k, 35m or 1g")
        return int(match[1]) * _BYTES[match[2]]
    return value


def _listen(value: Any) -> Any:
    if isinstance(value, str):
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{value!r} is not HOST:PORT")
    return value


def _listen_with_options(value: Any) -> Any:
    """The options themselves are the door's to judge."""
    _listen(value.partition("?")[0] if isinstance(value, str) else value)
    return value


def _path_of_pem(value: Any) -> Any:
    """A key given itself would be shown wherever its path is."""
    if isinstance(value, str) and ("\n" in value.strip() or "-----" in value):
        raise ValueError("takes the path of a file, not what is in it")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
Listen = Annotated[str, BeforeValidator(_listen)]
MaybeListen = Annotated[str, BeforeValidator(lambda value: _listen(value) if value else value)]
PemFile = Annotated[Path | None, BeforeValidator(_path_of_pem)]
DoorListen = Annotated[str, BeforeValidator(_listen_with_options)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RelayTable(_Table):
    """One relay: `relay_urls` is shorthand for a list of these."""

    url: str
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    streams: tuple[Literal["urgent", "normal", "bulk"], ...] = ()
    sender_domains: tuple[str, ...] = ()


class AdminTable(_Table):
    """Somebody whom alarms reach: `admin_urls` is shorthand for a list of these."""

    url: str
    from_severity: Literal["info", "warning", "critical"] = "warning"
    topics: tuple[str, ...] = ()


class MailboxTable(_Table):
    """An address pattern and what becomes of the mail it gets."""

    address: str
    kind: str
    who: Literal["anyone", "members", "secret"] = "anyone"


class LimitsTable(_Table):
    mail_bytes: Bytes = 35 * 1024 * 1024
    room: Bytes = 256 * 1024 * 1024
    recipients: Annotated[int, Field(ge=1, le=10_000)] = 1000
    connections_per_client: Annotated[int, Field(ge=1)] = 50
    idle: Seconds = 300.0
    rate_window: Seconds = 600.0
    mails_per_client: Annotated[int, Field(ge=0)] = 1_000
    recipients_per_client: Annotated[int, Field(ge=0)] = 5_000
    errors_per_client: Annotated[int, Field(ge=0)] = 200
    mails_per_sender: Annotated[int, Field(ge=0)] = 300
    recipients_per_sender: Annotated[int, Field(ge=0)] = 3_000
    send_concurrency: Annotated[int, Field(ge=1, le=1000)] = 20
    ingest_concurrency: Annotated[int, Field(ge=1, le=1000)] = 8
    cage_children: Annotated[int, Field(ge=1, le=64)] = 2
    claim: Seconds = 60.0
    grace: Seconds = 20.0
    reply_wait: Seconds = 600.0
    handler: Seconds = 900.0
    oldest_ticket: Seconds = 900.0


def _public_url(value: Any) -> Any:
    if isinstance(value, str) and value and not re.fullmatch(r"https?://[^/?#@\s]+/?", value):
        raise ValueError(f"{value!r} is not http://HOST[:PORT] or https://HOST[:PORT]")
    return value.rstrip("/") if isinstance(value, str) else value


class NoticesTable(_Table):
    delays: str = "15m 4h"
    day: Seconds = 86400.0
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"


_TABLES: dict[str, type[_Table]] = {"limits": LimitsTable, "notices": NoticesTable}


def _one_line(value: Any) -> Any:
    """A list of URLs, also one written as JSON, as one text with blanks between them."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    is_list = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    return " ".join(value) if is_list else value


Urls = Annotated[str, BeforeValidator(_one_line)]


class Settings(_Table):
    """Every key, its default and its meaning."""

    data_dir: Path = Field(Path("var"), description="where queue.db, store.db, blobs/ and captured/ live")
    queue_url: Urls = Field(
        "sqlite:///{data_dir}/queue.db", description="the queue; amqp(s)://… or a list tried in turn"
    )
    database_url: str = Field("sqlite:///{data_dir}/store.db", description="the store")
    blobs_url: str = Field("file://{data_dir}/blobs", description="attachments and large mails")
    cache_url: str = Field("", description="redis://…: where processes share posts on their way; empty = each its own")
    relay_urls: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("capture:",), description="where email goes; capture: = files, never sent"
    )
    relays: tuple[RelayTable, ...] = Field((), description="relays with weight, streams, sender_domains")
    smtp_listen: DoorListen = Field("127.0.0.1:2525", description="the SMTP door; ?proxy=yes behind a load balancer")
    lmtp_listen: str = Field(
        "unix:{data_dir}/lmtp.sock", description="the LMTP door: HOST:PORT or unix:PATH?mode=&group="
    )
    smtps_listen: MaybeListen = Field("", description="the SMTP door with TLS from the first octet on; empty = none")
    web_listen: Listen = Field("127.0.0.1:8025", description="the API")
    tls_certificate: PemFile = Field(None, description="the SMTP door's certificate and chain (PEM); none = no TLS")
    tls_key: PemFile = Field(None, description="its key (PEM); default: in the file of the certificate")
    hostname: str = Field("", description="our name in EHLO, events and Message-IDs; default: the host's, or localhost")
    public_url: Annotated[str, BeforeValidator(_public_url)] = Field(
        "", description="where people reach our pages, for links in mail and behind a proxy; default: web_listen"
    )
    trusted_hosts: tuple[str, ...] = Field(
        (), description="proxies and mail servers whose word about their clients we believe"
    )
    mail_from: str = Field("", description="envelope sender and From: of emails that name none")
    domains: tuple[str, ...] = Field((), description="the domains we take mail for; default: localhost")
    retry_ladder: str = Field("1m 5m 15m 1h*2 4h*3 12h*9", description="what waits after each unsuccessful attempt")
    unknown_wait: Seconds = Field(
        900.0, description="how long an unknown email waits for late news before it is resent"
    )
    min_free_bytes: Bytes = Field(256 * 1024 * 1024, description="below this much free disk the doors answer 452")
    admin_urls: tuple[str, ...] = Field((), description="whom alarms reach: apprise URLs; none = logged and shown")
    admins: tuple[AdminTable, ...] = Field((), description="admins with from_severity and topics")
    templates_dir: Path | None = Field(None, description="your own templates, beside the shipped ones")
    mailboxes: tuple[MailboxTable, ...] = Field((), description="who takes mail for which address")
    dns_servers: tuple[str, ...] = Field((), description="who answers about senders; default: the system's servers")
    trusted_authserv_id: str = Field("", description="our mail server's name in its Authentication-Results")
    junk_headers: tuple[str, ...] = Field(
        ("X-Spam-Flag", "X-Spam-Status", "X-Spam"), description="fields whose yes says a mail is junk"
    )
    confirm_within: Seconds = Field(7 * 86400.0, description="how long a person has to confirm held mails")
    notices: NoticesTable = NoticesTable()
    limits: LimitsTable = LimitsTable()

    def filled(self) -> Settings:
        """The settings with every derived default in place; paths absolute."""
        data_dir = self.data_dir.absolute()
        hostname = self.hostname or _own_name()
        changes: dict[str, Any] = {"data_dir": data_dir, "hostname": hostname}
        changes["public_url"] = self.public_url or f"http://{self.web_listen}"
        changes["mail_from"] = self.mail_from or f"gateway@{hostname}"
        for key in ("queue_url", "database_url", "blobs_url"):
            changes[key] = getattr(self, key).replace("{data_dir}", quote(str(data_dir)))
        changes["lmtp_listen"] = self.lmtp_listen.replace("{data_dir}", str(data_dir))
        changes["lmtp_listen"] = _socket_in(Path.cwd(), changes["lmtp_listen"])
        for key in ("tls_certificate", "tls_key"):
            if (path := getattr(self, key)) is not None:
                changes[key] = path.absolute()
        if not self.relays:
            changes["relays"] = tuple(RelayTable(url=url) for url in self.relay_urls)
        if not self.admins:
            changes["admins"] = tuple(AdminTable(url=url) for url in self.admin_urls)
        if not self.domains:
            changes["domains"] = ("localhost",)
            if not self.mailboxes:
                kinds = ("posts", "photos", "support")
                changes["mailboxes"] = tuple(MailboxTable(address=f"{kind}@localhost", kind=kind) for kind in kinds)
        return self.model_copy(update=changes)

    @property
    def smtp_place(self) -> str:
        """HOST:PORT of the SMTP door, without its options."""
        return self.smtp_listen.partition("?")[0]

    def masked(self) -> dict[str, Any]:
        """What `gateway settings` prints: passwords in URLs replaced by ***, of admins' URLs all but the scheme."""
        masked: dict[str, Any] = _masked(self.model_dump(mode="json"))
        masked["admin_urls"] = [shown_service(url) for url in self.admin_urls]
        masked["admins"] = [item | {"url": shown_service(item["url"])} for item in masked["admins"]]
        return masked


def load(
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Reads all places in order; `overrides` are `key=value` words of the command line."""
    env = os.environ if environment is None else environment
    problems: list[Problem] = []
    places: dict[str, str] = {}
    values: dict[str, Any] = {}
    for source in (
        _from_file(config, env, problems),
        _from_secrets(env, problems),
        _from_environment(env, problems),
        _from_overrides(overrides, problems),
    ):
        _keep_one_spelling(values, source, problems)
        for place, table in source:
            _merge(values, table, place, places)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += [_problem(item, places) for item in error.errors(include_url=False)]
        raise SettingsError(problems) from None
    if problems:
        raise SettingsError(problems)
    return settings.filled()


def _socket_in(folder: Path, listen: str) -> str:
    """The same address with a relative path of a socket begun at `folder`."""
    path = listen.removeprefix("unix:")
    return listen if path == listen or path.startswith(("/", "{")) else f"unix:{folder / path}"


def _keep_one_spelling(values: dict[str, Any], source: Sequence[Any], problems: list[Problem]) -> None:
    """`relay_urls` and `relays` (`admin_urls` and `admins`) are two spellings of one value.

    Who sets one drops the other from lower places.
    """
    given = {key: place for place, table in source for key in table if key in _SPELLINGS}
    for short, long in (("relay_urls", "relays"), ("admin_urls", "admins")):
        if short in given and long in given:
            problems.append(Problem(f"{short} ({given[short]})", f"is short for {long}; give one of the two"))
    for key in given:
        values.pop(_SPELLINGS[key], None)


def _masked(value: Any) -> Any:
    """The same value with the password of every URL in it hidden, up to the last @: a password may hold one."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    return [_masked(item) for item in value] if isinstance(value, list) else value


def without_secrets(text: str) -> str:
    """The text with the passwords of the URLs in it hidden."""
    return _URL_PASSWORD.sub(r"\1:***@", text)


def shown_service(url: str) -> str:
    """An apprise URL as it may be shown: any part of it may be a token."""
    scheme, separator, _ = url.partition("://")
    return f"{scheme}://***" if separator and scheme.isalnum() else "***"


def _own_name() -> str:
    name = socket.gethostname()
    return name if "." in name else "localhost"


def _from_file(
    config: Path | None, env: Mapping[str, str], problems: list[Problem]
) -> list[tuple[str, dict[str, Any]]]:
    named = config or (Path(env["GATEWAY_CONFIG"]) if env.get("GATEWAY_CONFIG") else None)
    path = named or Path("gateway.toml")
    if not path.exists():
        if named:
            problems.append(Problem(str(path), "this settings file does not exist"))
        return []
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(Problem(str(path), f"cannot be read: {error}"))
        return []
    for key in list(table):
        if key not in Settings.model_fields:
            problems.append(Problem(f"{key} ({path})", f"unknown key{_nearest(key)}"))
            del table[key]
    folder = path.absolute().parent
    for key in ("data_dir", "templates_dir", "tls_certificate", "tls_key"):
        if isinstance(table.get(key), str):
            table[key] = str(folder / table[key])
    for key in ("queue_url", "database_url"):
        if isinstance(table.get(key), str):
            table[key] = _sqlite_in(folder, table[key])
    if isinstance(table.get("lmtp_listen"), str):
        table["lmtp_listen"] = _socket_in(path.absolute().parent, table["lmtp_listen"])
    return [(str(path), table)]


def _sqlite_in(folder: Path, url: str) -> str:
    """A relative `sqlite:///path` of the file starts at the file's folder."""
    path = url.removeprefix("sqlite:///")
    if path == url or path.startswith(("/", "{data_dir}")):
        return url
    return f"sqlite:///{quote(str(folder))}/{path}"


def _from_secrets(env: Mapping[str, str], problems: list[Problem]) -> list[tuple[str, dict[str, Any]]]:
    named = env.get("GATEWAY_SECRETS_DIR")
    folder = Path(named or "/run/secrets")
    if not folder.is_dir():
        if named:
            problems.append(Problem("GATEWAY_SECRETS_DIR", f"{folder} is not a folder"))
        return []
    found: list[tuple[str, dict[str, Any]]] = []
    for path in sorted(folder.glob("gateway_*")):
        try:
            found += _assign(path.name.removeprefix("gateway_"), path.read_text().strip(), str(path), problems)
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(str(path), f"cannot be read: {error}"))
    return found


def _from_environment(env: Mapping[str, str], problems: list[Problem]) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for name in sorted(env):
        if name.startswith(ENV_PREFIX) and name not in _NOT_SETTINGS and not _KUBERNETES.match(name):
            found += _assign(name.removeprefix(ENV_PREFIX).lower(), env[name], f"environment {name}", problems)
    return found


def _from_overrides(words: Sequence[str], problems: list[Problem]) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            problems.append(Problem(f"--set {word}", "is not KEY=VALUE"))
            continue
        found += _assign(key.replace(".", "__"), text, f"--set {key}", problems)
    return found


def _assign(key: str, text: str, place: str, problems: list[Problem]) -> list[tuple[str, dict[str, Any]]]:
    """One value given as text: `section__key` reaches into a table."""
    section, _, inner = key.partition("__")
    field = Settings.model_fields.get(section)
    if field is None:
        problems.append(Problem(f"{key} ({place})", f"unknown key{_nearest(key, environment=place.startswith('env'))}"))
        return []
    if inner:
        if section not in _TABLES or inner not in _TABLES[section].model_fields:
            problems.append(Problem(f"{key} ({place})", f"unknown key{_nearest(key, _keys_of_tables())}"))
            return []
        return [(place, {section: {inner: text}})]
    try:
        return [(place, {section: _structured(section, text)})]
    except ValueError as error:
        problems.append(Problem(f"{section} ({place})", f"is not JSON: {error}"))
        return []


def _structured(key: str, text: str) -> Any:
    """A list or table from text: JSON, or for plain lists words."""
    annotation = str(Settings.model_fields[key].annotation)
    if "tuple" not in annotation and key not in _TABLES:
        return text
    if text.lstrip().startswith(("[", "{")) or "Table" in annotation:
        return json.loads(text)
    return text.split()


def _keys_of_tables() -> list[str]:
    return [f"{table}__{name}" for table, model in _TABLES.items() for name in model.model_fields]


def _nearest(key: str, known: Sequence[str] = (), *, environment: bool = False) -> str:
    names = list(known) or [*Settings.model_fields, *_keys_of_tables()]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if not near:
        return "; `gateway settings` lists them"
    return f"; did you mean {ENV_PREFIX + near[0].upper() if environment else near[0]}?"


def _merge(
    values: dict[str, Any], table: Mapping[str, Any], place: str, places: dict[str, str], prefix: str = ""
) -> None:
    for key, value in table.items():
        if isinstance(value, Mapping) and isinstance(values.get(key, {}), dict):
            _merge(values.setdefault(key, {}), value, place, places, f"{prefix}{key}.")
        else:
            values[key] = value
        places[prefix + key] = place


def _problem(item: Any, places: Mapping[str, str]) -> Problem:
    path = ""
    place = ""
    for part in item["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        place = places.get(path, place)
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = "unknown key"
    return Problem(f"{path} ({place})" if place else path, message)
