"""What the parts are made of: each function builds one part from the settings.  Commands use them by themselves.

Promise: an `open_*` closes what it opened, and a value that only the part itself can judge is a SettingsError naming its key.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.client import open_broker
from gateway.errors import GatewayError, PermanentFailure, Problem, SettingsError, StoreUnavailable
from gateway.mail.addresses import parse_address
from gateway.maillog import MailLog, told
from gateway.runtime import in_thread, utc_now
from gateway.settings import AdminTable, Settings, shown_service

if TYPE_CHECKING:
    from gateway.cage import Cage
    from gateway.inbound.authenticate.authenticator import Authenticator
    from gateway.inbound.authenticate.resolver import Resolver
    from gateway.inbound.certificate import Pair
    from gateway.inbound.intake import Intake
    from gateway.inbound.mailboxes.support import Support
    from gateway.inbound.who import WhoMayWrite
    from gateway.mail.links import StatusLinks
    from gateway.mail.loop_guard import LoopGuard
    from gateway.mail.tokens import Tokens
    from gateway.notices.writer import NoticeWriter
    from gateway.outbound.compose import Rendered
    from gateway.outbound.relay import RelayPool
    from gateway.outbound.templates import TemplateSet
    from gateway.queue.broker import Broker
    from gateway.queue.ladder import Ladder
    from gateway.queue.receipts import Receipted
    from gateway.store.access import Access
    from gateway.store.blob_mark import BlobMark
    from gateway.store.blobs import BlobStore
    from gateway.store.confirmations import Confirmations
    from gateway.store.database import Database
    from gateway.store.decisions import Decisions
    from gateway.store.emails import DatabaseLedger
    from gateway.store.ledger_mark import LedgerMark
    from gateway.store.lists import Lists
    from gateway.store.mails import Mails
    from gateway.store.outage import OutageLedger
    from gateway.store.people import PeopleStore
    from gateway.store.people_file import PeopleFile
    from gateway.watch.alarms.book import Admin, AlarmBook
    from gateway.watch.alarms.sending import Postman
    from gateway.watch.operator import Operator
    from gateway.web.provenance import OurNames

GOODBYE_SECONDS = 5.0
_PACKAGE = Path(__file__).parent.parent
_READ_PRELOAD = ("gateway.mail.parse.fallback", "gateway.inbound.authenticate.signature_job")
SHIPPED_TEMPLATES = (_PACKAGE / "shipped_templates", _PACKAGE.parent / "templates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The open store: the database with the verbs that speak to it, and the blobs."""

    database: Database
    blobs: BlobStore
    ledger: DatabaseLedger
    mails: Mails
    people: PeopleStore
    confirmations: Confirmations
    lists: Lists
    access: Access
    decisions: Decisions
    mark: LedgerMark


def relay_spec(table: Any) -> Any:
    from gateway.outbound.relay_url import parse_relay_url

    return parse_relay_url(
        table.url, weight=table.weight, streams=tuple(table.streams), sender_domains=tuple(table.sender_domains)
    )


def admin_of(number: int, table: AdminTable) -> Admin:
    """One admin of the settings; raises ValueError for a URL or a topic there is not."""
    from gateway.watch.alarms.book import Admin
    from gateway.watch.alarms.conditions import TOPICS
    from gateway.watch.alarms.sending import check_url

    service = shown_service(table.url)
    try:
        check_url(table.url)
    except ValueError as error:
        raise ValueError(f"{service} {error}") from None
    unknown = set(table.topics) - set(TOPICS)
    if unknown:
        raise ValueError(f"{service} has no topic {sorted(unknown)[0]!r}; there are {', '.join(TOPICS)}")
    return Admin(
        place=f"admins[{number}]",
        service=service,
        url=table.url,
        from_severity=table.from_severity,
        topics=frozenset(table.topics),
    )


def admins(settings: Settings) -> list[Admin]:
    """Whom alarms reach."""
    return [admin_of(number, table) for number, table in enumerate(settings.admins)]


def alarm_book(settings: Settings, log: MailLog) -> tuple[AlarmBook, Postman]:
    """The host's alarm book as this process uses it, and who tells what stands in it."""
    from gateway.watch.alarms.book import AlarmBook, process_name
    from gateway.watch.alarms.sending import Postman

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    book = AlarmBook(settings.data_dir, admins(settings), process=process_name())
    return book, Postman(book, settings.data_dir, hostname=settings.hostname, log=log)


async def say_goodbye(settings: Settings) -> None:
    """This process ends because it was asked to: nobody need take it for dead."""
    from gateway.watch.alarms.book import AlarmBook, process_name

    book = AlarmBook(settings.data_dir, (), process=process_name())
    with suppress(TimeoutError):  # the disk hangs: then we are taken for dead
        await in_thread(book.leave, seconds=GOODBYE_SECONDS)


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


def tls_pair(settings: Settings) -> Pair | None:
    """The door's certificate and key, None where there is no TLS; raises ValueError for half of it."""
    from gateway.inbound.certificate import Pair

    if settings.tls_certificate is None:
        if settings.tls_key is not None or settings.smtps_listen:
            raise ValueError("is wanted: tls_key and smtps_listen are nothing without it")
        return None
    return Pair(certificate=settings.tls_certificate, key=settings.tls_key or settings.tls_certificate)


def our_names(settings: Settings) -> OurNames:
    """The names that lead to the web service, and the proxies it believes."""
    from gateway.web.provenance import OurNames, parse_networks

    trusted = parse_networks(settings.trusted_hosts)
    return OurNames(names=frozenset({settings.hostname.lower()}), public_url=settings.public_url, trusted=trusted)


def open_tokens(settings: Settings, *, is_look: bool = False) -> Tokens:
    """What signs our addresses and links, its keys made at the first start; a look keeps what it makes."""
    from gateway.mail.tokens import Tokens
    from gateway.store.key_file import new_key, read_keys

    path = settings.data_dir / "tokens.key"
    try:
        return Tokens([new_key()] if is_look and not path.exists() else read_keys(path))
    except ValueError as error:
        raise SettingsError([Problem("data_dir", str(error))]) from None


def open_support(settings: Settings, *, is_look: bool = False) -> Support:
    """The mailbox `support` with the keys of its reply addresses; a look keeps what it makes."""
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
    from gateway.inbound.xforward import TrustedHosts

    junk_fields = tuple(name.lower() for name in settings.junk_headers)
    hosts = TrustedHosts(our_names(settings).trusted)
    trusted = TrustedMta(authserv_id=settings.trusted_authserv_id, junk_fields=junk_fields, hosts=hosts)
    return Authenticator(resolver(settings), cage, trusted=trusted)


def notice_delays(settings: Settings) -> list[float]:
    """When the sender of a mail that waits is told, in seconds after it came; raises ValueError."""
    from gateway.queue.ladder import duration_seconds

    return sorted(duration_seconds(word) for word in settings.notices.delays.split())


def loop_guard(settings: Settings) -> LoopGuard:
    """Who may be told what became of his mail: nobody, as soon as a door listens beyond this host."""
    from gateway.mail.addresses import Address
    from gateway.mail.loop_guard import LoopGuard

    routes = router(settings)
    ours = Address(mailbox=parse_address(settings.mail_from).mailbox).key

    def is_own_address(mailbox: str) -> bool:
        if Address(mailbox=mailbox).key == ours:
            return True
        try:
            routes.route(mailbox)
        except PermanentFailure:
            return False
        return True

    doors = [settings.smtp_listen, settings.lmtp_listen, *([settings.smtps_listen] if settings.smtps_listen else [])]
    return LoopGuard(
        hostnames=frozenset({settings.hostname.lower(), ours.rpartition("@")[2]}),
        is_own_address=is_own_address,
        doors_are_local=all(door.startswith("unix:") or is_loopback(door) for door in doors),
    )


def open_outage(settings: Settings) -> OutageLedger:
    from gateway.store.outage import OutageLedger

    return OutageLedger(
        settings.data_dir / "outage.db",
        clock=utc_now,
        delays=notice_delays(settings),
        day_seconds=settings.notices.day,
    )


def status_links(settings: Settings) -> StatusLinks:
    from gateway.mail.links import StatusLinks

    return StatusLinks(tokens=open_tokens(settings), public_url=settings.public_url)


def open_notice_writer(settings: Settings, templates: TemplateSet, cage: Cage) -> NoticeWriter:
    from gateway.notices.words import House
    from gateway.notices.writer import NoticeWriter
    from gateway.outbound.render import fill

    house = House(
        hostname=settings.hostname,
        postmaster=f"postmaster@{settings.domains[0]}",
        links=status_links(settings),
        language=settings.notices.language,
    )

    async def filled(template: str, params: dict[str, Any], locale: str) -> Rendered:
        return await fill(template, params, locale, cage=cage, templates=templates)

    return NoticeWriter(house, filled)


def is_loopback(listen: str) -> bool:
    """Whether HOST:PORT can be reached from this host only."""
    host = listen.rpartition(":")[0].strip("[]").lower()
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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


def open_intake(settings: Settings, broker: Broker, blobs: BlobStore, log: MailLog) -> Intake:
    from gateway.inbound.intake import Intake, IntakeLimits

    return Intake(
        router(settings, open_support(settings), open_who(settings)),
        broker,
        blobs,
        data_dir=settings.data_dir,
        min_free_bytes=settings.min_free_bytes,
        clock=utc_now,
        log=log,
        limits=IntakeLimits(mail_bytes=settings.limits.mail_bytes, room_bytes=settings.limits.room),
    )


def open_queue(settings: Settings) -> AbstractAsyncContextManager[Broker]:
    """The queue engine of the settings, as an async context manager."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return open_broker(settings.queue_url, receipts=settings.data_dir / "receipts.db")


def receipted(broker: Broker) -> Receipted:
    """The engine as the one who keeps receipts; raises GatewayError for one that does not."""
    from gateway.queue.receipts import Receipted

    if not isinstance(broker, Receipted):
        raise GatewayError(f"{type(broker).__name__} keeps no receipts")
    return broker


def ledger_mark(settings: Settings) -> LedgerMark:
    """How far the ledger of this data_dir had come, noted outside of it."""
    from gateway.store.ledger_mark import LedgerMark

    return LedgerMark(settings.data_dir / "ledger.mark")


def blob_mark(settings: Settings) -> BlobMark:
    """Which blob store this data_dir has begun."""
    from gateway.store.blob_mark import BlobMark

    return BlobMark(settings.data_dir / "blobs.mark")


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The store, migrated to this version's schema; raises StoreUnavailable."""
    from gateway.store.database import open_database

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    mark = ledger_mark(settings)
    database = await open_database(settings.database_url, known=mark.known)
    try:
        yield _store_in(database, settings, mark)
    finally:
        await database.close()


@asynccontextmanager
async def open_store_patiently(settings: Settings, log: MailLog) -> AsyncIterator[Store]:
    """The store of a gateway at work: one that is away now is there as soon as it can be, never behind what was sent."""
    from gateway.store.database import open_database
    from gateway.store.late import LateDatabase
    from gateway.store.ledger_mark import keep_up

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    mark = ledger_mark(settings)

    async def open_and_follow() -> Database:
        database = await open_database(settings.database_url, known=mark.known)
        try:
            store = _store_in(database, settings, mark)
            await _follow(store, log)
            await _begin_blobs(store, settings, log)
        except BaseException:
            await database.close()
            raise
        return database

    database = LateDatabase(open_and_follow)
    keeping_up = asyncio.create_task(
        keep_up(database, mark, on_fault=lambda fault: log.service_failed("ledger-mark", error=fault))
    )
    try:
        fault = await database.open()
        if fault is not None:
            log.service("store", "away", error=told(fault), next_step="it is opened as soon as it is there")
        yield _store_in(database, settings, mark)
    finally:
        keeping_up.cancel()
        await asyncio.wait([keeping_up])
        await database.close()


async def _begin_blobs(store: Store, settings: Settings, log: MailLog) -> None:
    """Begins a new blob store; what is away now is begun by the first put."""
    from gateway.store.blob_mark import begin_blobs

    try:
        await begin_blobs(store.blobs, blob_mark(settings), url=settings.blobs_url, database=store.database)
    except (StoreUnavailable, OSError) as fault:
        log.service("blobs", "not-begun", error=told(fault), next_step="the first put or the next start begins them")


async def _follow(store: Store, log: MailLog) -> None:
    """Goes on from where the ledger is; one that has gone back keeps what it calls open for a person to decide."""
    from gateway.store.ledger_mark import begin_anew, hold_what_is_open, older_position

    older = await older_position(store.database, store.mark)
    if older is not None:
        held = await hold_what_is_open(store.database, store.ledger, now=store.database.clock())
        step = "a backup was restored: `gateway recover` lists what it held and lets it go on or cancels it"
        log.service("ledger", "went-back", held=held, next_step=step)
        # Only now: who dies before this line holds the rest at the next start.
        await begin_anew(store.database, store.mark, older.epoch)


def _store_in(database: Database, settings: Settings, mark: LedgerMark) -> Store:
    """The verbs of a database."""
    from gateway.store.access import Access
    from gateway.store.blobs import open_blob_store
    from gateway.store.confirmations import Confirmations
    from gateway.store.decisions import Decisions
    from gateway.store.emails import DatabaseLedger
    from gateway.store.lists import Lists
    from gateway.store.mails import Mails
    from gateway.store.people import PeopleStore

    was_begun = functools.partial(blob_mark(settings).knows, settings.blobs_url)
    blobs = open_blob_store(settings.blobs_url, database, was_begun=was_begun)
    common: dict[str, Any] = {"clock": database.clock, "hostname": settings.hostname}
    return Store(
        database=database,
        blobs=blobs,
        ledger=DatabaseLedger(
            database,
            blobs=blobs,
            unknown_wait_seconds=settings.unknown_wait,
            return_path=settings.mail_from,
            mark=mark,
            **common,
        ),
        mails=Mails(database, blobs, notice_delays=notice_delays(settings), **common),
        lists=Lists(database),
        access=Access(database, clock=database.clock),
        decisions=Decisions(database, **common),
        mark=mark,
        people=PeopleStore(database, people_file(settings), clock=database.clock),
        confirmations=Confirmations(database, days=settings.confirm_within / 86400, **common),
    )


def operator(store: Store, broker: Broker, *, by: str) -> Operator:
    """The desk at which one person acts on mails, emails and dead letters."""
    from gateway.watch.operator import Operator

    return Operator(mails=store.mails, ledger=store.ledger, decisions=store.decisions, broker=broker, by=by)


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
