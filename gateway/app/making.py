"""What the parts are made of: each function builds one part from the settings.  Commands use them by themselves.

Promise: an `open_*` closes what it opened, and a value that only the part itself can judge is a SettingsError naming its key.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from gateway.client import open_broker
from gateway.errors import Problem, SettingsError
from gateway.maillog import MailLog
from gateway.runtime import utc_now
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.cage import Cage
    from gateway.inbound.authenticate.authenticator import Authenticator
    from gateway.inbound.authenticate.resolver import Resolver
    from gateway.inbound.intake import Intake
    from gateway.inbound.mailboxes.support import Support
    from gateway.inbound.who import WhoMayWrite
    from gateway.mail.tokens import Tokens
    from gateway.outbound.relay import RelayPool
    from gateway.outbound.templates import TemplateSet
    from gateway.queue.broker import Broker
    from gateway.queue.ladder import Ladder
    from gateway.store.blobs import FileBlobStore
    from gateway.store.confirmations import Confirmations
    from gateway.store.database import Database
    from gateway.store.emails import DatabaseLedger
    from gateway.store.mails import Mails
    from gateway.store.people import PeopleStore
    from gateway.store.people_file import PeopleFile

_PACKAGE = Path(__file__).parent.parent
_READ_PRELOAD = ("gateway.mail.parse.fallback", "gateway.inbound.authenticate.signature_job")
SHIPPED_TEMPLATES = (_PACKAGE / "shipped_templates", _PACKAGE.parent / "templates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The open store: the database with the verbs that speak to it, and the blobs."""

    database: Database
    blobs: FileBlobStore
    ledger: DatabaseLedger
    mails: Mails
    people: PeopleStore
    confirmations: Confirmations


def relay_spec(table: Any) -> Any:
    from gateway.outbound.relay_url import parse_relay_url

    return parse_relay_url(
        table.url, weight=table.weight, streams=tuple(table.streams), sender_domains=tuple(table.sender_domains)
    )


def ladder(settings: Settings) -> Ladder:
    from gateway.queue.ladder import Ladder

    return Ladder.parse(settings.retry_ladder)


def router(settings: Settings, support: Support | None = None, who: WhoMayWrite | None = None) -> Any:
    """The routes of the settings; postmaster@ and abuse@ are the router's own.

    With `support` and `who` it knows forged addresses, and who may use secret ones.
    """
    from gateway.inbound.router import MailboxRoute, Router

    routes = [MailboxRoute(address=item.address, kind=item.kind, who=item.who) for item in settings.mailboxes]
    refusals = {"support": support.refusal} if support else None
    return Router(routes, domains=settings.domains, refusals=refusals, guard=who)


def open_tokens(settings: Settings, *, is_look: bool = False) -> Tokens:
    """The keys of signed addresses and links, made at the first start; a look keeps what it makes."""
    from gateway.mail.tokens import Tokens
    from gateway.store.key_file import new_key, read_keys

    path = settings.data_dir / "tokens.key"
    try:
        return Tokens([new_key()] if is_look and not path.exists() else read_keys(path))
    except ValueError as error:
        raise SettingsError([Problem("data_dir", str(error))]) from None


def open_support(settings: Settings, *, is_look: bool = False) -> Support:
    """The mailbox `support` with the keys of its reply addresses."""
    from gateway.inbound.mailboxes.support import Support

    return Support(open_tokens(settings, is_look=is_look))


def people_file(settings: Settings) -> PeopleFile:
    from gateway.store.people_file import PeopleFile

    return PeopleFile(settings.data_dir / "people.json")


def open_who(settings: Settings, *, is_look: bool = False) -> WhoMayWrite:
    """Who may write to which mailbox, by the snapshot of people; needs no database."""
    from gateway.inbound.who import WhoMayWrite

    return WhoMayWrite(open_tokens(settings, is_look=is_look), people_file(settings).people, clock=utc_now)


def resolver(settings: Settings) -> Resolver:
    """Raises ValueError for what is no DNS server."""
    from gateway.inbound.authenticate.resolver import Resolver

    return Resolver(settings.dns_servers)


def open_authenticator(settings: Settings, cage: Cage) -> Authenticator:
    from gateway.inbound.authenticate.authenticator import Authenticator, TrustedMta

    junk_fields = tuple(name.lower() for name in settings.junk_headers)
    trusted = TrustedMta(authserv_id=settings.trusted_authserv_id, junk_fields=junk_fields)
    return Authenticator(resolver(settings), cage, trusted=trusted)


def mailboxes(settings: Settings, support: Support | None = None) -> dict[str, Any]:
    """The mailbox behind each kind: shipped ones, or a plug-in named `package.module:Class`."""
    from importlib import import_module

    from gateway.inbound.mailboxes.photos import PhotoAlbum
    from gateway.inbound.mailboxes.postmaster import Postmaster
    from gateway.inbound.mailboxes.posts import Posts

    found: dict[str, Any] = {"posts": Posts(), "photos": PhotoAlbum(), "support": support, "postmaster": Postmaster()}
    for item in settings.mailboxes:
        if item.kind in found:
            continue
        module, colon, name = item.kind.partition(":")
        if not colon:
            known = ", ".join(sorted(found))
            raise ValueError(f"{item.address}: no kind {item.kind!r}; there are {known}, or package.module:Class")
        try:
            found[item.kind] = getattr(import_module(module), name)()
        except Exception as error:
            # a plug-in's import may raise anything; whatever it is, the settings named something unusable
            raise ValueError(
                f"{item.address}: {item.kind} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
    return found


def open_intake(settings: Settings, broker: Broker, log: MailLog) -> Intake:
    from gateway.inbound.intake import Intake, IntakeLimits

    return Intake(
        router(settings, open_support(settings), open_who(settings)),
        broker,
        open_blobs(settings),
        data_dir=settings.data_dir,
        min_free_bytes=settings.min_free_bytes,
        clock=utc_now,
        log=log,
        limits=IntakeLimits(mail_bytes=settings.limits.mail_bytes, room_bytes=settings.limits.room),
    )


def open_queue(settings: Settings) -> AbstractAsyncContextManager[Broker]:
    """The queue engine of the settings, as an async context manager."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return open_broker(settings.queue_url)


def blobs_folder(settings: Settings) -> Path:
    if not settings.blobs_url.startswith("file:///"):
        raise ValueError(f"{settings.blobs_url.split('://')[0]!r} is not file:///PATH, the store this version has")
    return Path(unquote(settings.blobs_url.removeprefix("file://")))


def open_blobs(settings: Settings) -> FileBlobStore:
    from gateway.store.blobs import FileBlobStore

    return FileBlobStore(blobs_folder(settings))


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The store, migrated to this version's schema."""
    from gateway.store.confirmations import Confirmations
    from gateway.store.database import open_database
    from gateway.store.emails import DatabaseLedger
    from gateway.store.mails import Mails
    from gateway.store.people import PeopleStore

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    blobs = open_blobs(settings)
    database = await open_database(settings.database_url)
    try:
        ledger_ = DatabaseLedger(
            database,
            blobs=blobs,
            clock=utc_now,
            hostname=settings.hostname,
            unknown_wait_seconds=settings.unknown_wait,
            return_path=settings.mail_from,
        )
        mails = Mails(database, blobs, clock=utc_now, hostname=settings.hostname)
        people = PeopleStore(database, people_file(settings), clock=utc_now)
        days = settings.confirm_within / 86400
        confirmations = Confirmations(database, clock=utc_now, hostname=settings.hostname, days=days)
        yield Store(
            database=database, blobs=blobs, ledger=ledger_, mails=mails, people=people, confirmations=confirmations
        )
    finally:
        await database.close()


def open_templates(settings: Settings) -> TemplateSet:
    """The settings' templates first, the shipped ones behind them."""
    from gateway.outbound.templates import TemplateSet

    own = [settings.templates_dir] if settings.templates_dir else []
    return TemplateSet([*own, *(folder for folder in SHIPPED_TEMPLATES if folder.is_dir())])


def open_cage(settings: Settings) -> Cage:
    from gateway.cage import Cage
    from gateway.outbound.render import PRELOAD

    return Cage(children=settings.limits.cage_children, preload=(*PRELOAD, *_READ_PRELOAD))


def open_photo_cage(settings: Settings) -> Cage:
    """A cage of its own: a photo may cost more than a mail, and mail must not wait behind photos."""
    from gateway.cage import Cage
    from gateway.inbound.photos import CPU_SECONDS, MEMORY_BYTES

    return Cage(
        children=settings.limits.cage_children,
        cpu_seconds=CPU_SECONDS,
        memory_bytes=MEMORY_BYTES,
        preload=("gateway.inbound.photo_job",),
    )


def open_pool(settings: Settings, log: MailLog) -> RelayPool:
    from gateway.outbound.relay import RelayPool
    from gateway.outbound.smtp_relay import RelayLimits

    return RelayPool(
        [relay_spec(item) for item in settings.relays],
        hostname=settings.hostname,
        captured_dir=settings.data_dir / "captured",
        log=log,
        clock=utc_now,
        limits=RelayLimits(reply_seconds=settings.limits.reply_wait),
    )


def listen_on(key: str, text: str) -> socket.socket:
    """A listening TCP socket; a busy port is a settings problem, told with its key."""
    host, _, port = text.rpartition(":")
    with naming_the_key(key, text):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=1024)


class naming_the_key:
    """Turns a fault of listening into a settings problem."""

    def __init__(self, key: str, text: str) -> None:
        self._key, self._text = key, text

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            why = error.strerror or str(error)
            text = f"{self._text}: {why}; another gateway? change {self._key} or end the other one"
            raise SettingsError([Problem(self._key, text)]) from None
