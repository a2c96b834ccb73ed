"""The composition root: reads top to bottom, from settings to a running gateway.  The only place that knows everybody.

`start` runs the services named (none: all of them) until a signal; the `open_*` functions are for commands, which need
only some parts.  Promise: nothing listens before the queue is open, nothing is leased before
the store is; stop closes the doors first, then stops leasing, then lets work under way finish.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

from gateway.client import Client, open_broker, sqlite_path
from gateway.errors import Problem, SettingsError
from gateway.maillog import MailLog, told
from gateway.runtime import Service, Stop, die_with, serve, stop_on_signals, utc_now
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.cage import Cage
    from gateway.inbound.door import Door
    from gateway.inbound.intake import Intake
    from gateway.inbound.mailboxes.support import Support
    from gateway.outbound.relay import RelayPool
    from gateway.outbound.templates import TemplateSet
    from gateway.queue.broker import Broker
    from gateway.queue.ladder import Ladder
    from gateway.queue.worker import Bury, Gate, Handler
    from gateway.store.blobs import FileBlobStore
    from gateway.store.database import Database
    from gateway.store.emails import DatabaseLedger
    from gateway.store.mails import Mails

T = TypeVar("T")
SERVICES = ("smtp", "lmtp", "ingest", "photos", "send", "events", "web", "sweep", "suspects")
_MAKE_SUSPECTS = {"ingest", "photos", "send", "suspects"}
_SUSPECTS_CHILD = (
    "import sys; from gateway import app; sys.exit(app.work_suspects(int(sys.argv[1]), sys.stdin.buffer.read()))"
)
SHIPPED_TEMPLATES = (Path(__file__).parent / "shipped_templates", Path(__file__).parent.parent / "templates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The open store: the database with the verbs that speak to it, and the blobs."""

    database: Database
    blobs: FileBlobStore
    ledger: DatabaseLedger
    mails: Mails


def start(settings: Settings, names: Sequence[str] = (), *, extra: Service | None = None) -> int:
    """Runs the gateway; returns the exit code."""
    import uvloop

    unknown = set(names) - set(SERVICES)
    if unknown:
        raise SettingsError([Problem("run", f"no service {sorted(unknown)[0]!r}; there are {', '.join(SERVICES)}")])
    return uvloop.run(_serve(settings, tuple(names) or SERVICES, extra))


def work_suspects(parent: int, settings: bytes) -> int:
    """The process the keeper starts: works the suspects with the parent's settings, and dies with it."""
    die_with(parent)
    return start(Settings.model_validate_json(settings), ["suspects"])


async def _serve(settings: Settings, names: Sequence[str], extra: Service | None) -> int:
    log = MailLog()
    check_values(settings)
    stop = Stop()
    await refuse_to_strand(settings)
    with stop_on_signals(stop):
        async with AsyncExitStack() as stack:
            services = await _build(settings, names, log, stack)
            if extra is not None:
                services["demo"] = extra
            log.service("gateway", "serving", services=" ".join(names), pid=os.getpid())
            code = await serve(services, grace_seconds=settings.limits.grace, stop=stop)
        log.service("gateway", "stopped", code=code)
    return code


async def _build(settings: Settings, names: Sequence[str], log: MailLog, stack: AsyncExitStack) -> dict[str, Service]:
    parts = _Parts(settings, log)
    services = {name: await _BUILDERS[name](parts, stack) for name in names if name != "suspects"}
    if set(names) == {"suspects"}:
        services["suspects"] = await _build_suspects(parts, stack)
    elif _MAKE_SUSPECTS & set(names):
        services["suspects"] = await _build_keeper(parts, stack)
    return services


class _Parts:
    """What services share, each opened at its first use and closed by the stack in the reverse order."""

    def __init__(self, settings: Settings, log: MailLog) -> None:
        self.settings = settings
        self.log = log
        self._open: dict[str, Any] = {}

    async def queue(self, stack: AsyncExitStack) -> Broker:
        return await self._once("queue", stack, lambda: open_queue(self.settings))

    async def store(self, stack: AsyncExitStack) -> Store:
        return await self._once("store", stack, lambda: open_store(self.settings))

    async def intake(self, stack: AsyncExitStack) -> Intake:
        broker = await self.queue(stack)
        if "intake" not in self._open:
            self._open["intake"] = _intake(self.settings, broker, self.log)
        intake: Intake = self._open["intake"]
        return intake

    async def cage(self, stack: AsyncExitStack) -> Cage:
        return await self._once("cage", stack, lambda: open_cage(self.settings))

    async def photo_cage(self, stack: AsyncExitStack) -> Cage:
        return await self._once("photo_cage", stack, lambda: open_photo_cage(self.settings))

    def templates(self) -> TemplateSet:
        if "templates" not in self._open:
            self._open["templates"] = open_templates(self.settings)
        templates: TemplateSet = self._open["templates"]
        return templates

    async def pool(self, stack: AsyncExitStack) -> RelayPool:
        return await self._once("pool", stack, lambda: _pool(self.settings, self.log))

    async def _once(self, name: str, stack: AsyncExitStack, build: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        if name not in self._open:
            self._open[name] = await stack.enter_async_context(build())
        part: T = self._open[name]
        return part


# The services: each builder opens what it needs and returns the loop that `serve` runs.


async def _build_smtp(parts: _Parts, stack: AsyncExitStack) -> Service:
    from gateway.inbound.smtp_door import SmtpDoor

    return await _open_door(SmtpDoor, "smtp_listen", parts, stack)


async def _build_lmtp(parts: _Parts, stack: AsyncExitStack) -> Service:
    from gateway.inbound.lmtp_door import LmtpDoor

    return await _open_door(LmtpDoor, "lmtp_listen", parts, stack)


async def _open_door(kind: type[Door], key: str, parts: _Parts, stack: AsyncExitStack) -> Service:
    from gateway.inbound.door import DoorLimits

    settings = parts.settings
    limits = DoorLimits(
        mail_bytes=settings.limits.mail_bytes,
        recipients=settings.limits.recipients,
        connections_per_client=settings.limits.connections_per_client,
        idle_seconds=settings.limits.idle,
    )
    listen = getattr(settings, key)
    door = kind(await parts.intake(stack), listen=listen, hostname=settings.hostname, limits=limits, log=parts.log)
    with _naming_the_key(key, listen):
        await door.start()
    stack.push_async_callback(door.close)
    return door.serve


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trade:
    """What works some queues together: weight and handler by the name of the fresh queue."""

    weights: Mapping[str, int]
    handlers: Mapping[str, Handler]
    buries: Mapping[str, Bury]
    concurrency: int
    gate: Gate | None = None


async def _ingest_trade(parts: _Parts, stack: AsyncExitStack) -> _Trade:
    from gateway.inbound.ingest import Ingest
    from gateway.queue.ticket import MAIL_INBOUND

    broker, store, cage = await parts.queue(stack), await parts.store(stack), await parts.cage(stack)
    ingest = Ingest(
        mails=store.mails,
        blobs=store.blobs,
        cage=cage,
        router=router(parts.settings),
        mailboxes=mailboxes(parts.settings, open_support(parts.settings)),
        publish=broker.publish,
        ladder=ladder(parts.settings),
        log=parts.log,
        clock=utc_now,
    )
    return _Trade(
        weights={MAIL_INBOUND: 3},
        handlers={MAIL_INBOUND: ingest.handle},
        buries={MAIL_INBOUND: ingest.bury},
        concurrency=parts.settings.limits.ingest_concurrency,
    )


async def _post_trade(parts: _Parts, stack: AsyncExitStack) -> _Trade:
    from gateway.inbound.post_create import PostDesk
    from gateway.queue.ticket import POST_CREATE

    broker, store = await parts.queue(stack), await parts.store(stack)
    desk = PostDesk(
        mails=store.mails,
        blobs=store.blobs,
        cage=await parts.cage(stack),
        answer=broker.answer,
        log=parts.log,
        clock=utc_now,
    )
    return _Trade(weights={POST_CREATE: 3}, handlers={POST_CREATE: desk.handle}, buries={}, concurrency=1)


async def _photo_trade(parts: _Parts, stack: AsyncExitStack) -> _Trade:
    from gateway.inbound.photos import RenderPhoto
    from gateway.queue.ticket import PHOTO_RENDER
    from gateway.store.photos import Photos

    settings, store = parts.settings, await parts.store(stack)
    render = RenderPhoto(
        photos=Photos(store.database, clock=utc_now, hostname=settings.hostname),
        blobs=store.blobs,
        cage=await parts.photo_cage(stack),
        log=parts.log,
    )
    return _Trade(
        weights={PHOTO_RENDER: 1},
        handlers={PHOTO_RENDER: render.handle},
        buries={},
        concurrency=settings.limits.cage_children,
    )


async def _send_trade(parts: _Parts, stack: AsyncExitStack) -> _Trade:
    from gateway.outbound.deliver import Deliver
    from gateway.queue.ticket import EMAIL_SEND, EMAIL_SEND_BULK, EMAIL_SEND_URGENT

    settings = parts.settings
    broker, store, pool = await parts.queue(stack), await parts.store(stack), await parts.pool(stack)
    deliver = Deliver(
        ledger=store.ledger,
        pool=pool,
        cage=await parts.cage(stack),
        templates=parts.templates(),
        blobs=store.blobs,
        publish=broker.publish,
        answer=broker.answer,
        ladder=ladder(settings),
        clock=utc_now,
        log=parts.log,
        mail_from=settings.mail_from,
        claim_seconds=settings.limits.claim,
        handler_seconds=settings.limits.handler,
    )
    weights = {EMAIL_SEND_URGENT: 8, EMAIL_SEND: 4, EMAIL_SEND_BULK: 2}
    return _Trade(
        weights=weights,
        handlers=dict.fromkeys(weights, deliver.handle),
        buries=dict.fromkeys(weights, deliver.bury),
        concurrency=settings.limits.send_concurrency,
        gate=pool.wait_usable,
    )


async def _build_ingest(parts: _Parts, stack: AsyncExitStack) -> Service:
    mails, posts = await _ingest_trade(parts, stack), await _post_trade(parts, stack)
    trade = replace(mails, weights={**mails.weights, **posts.weights}, handlers={**mails.handlers, **posts.handlers})
    return _worker(parts, await parts.queue(stack), trade)


async def _build_photos(parts: _Parts, stack: AsyncExitStack) -> Service:
    return _worker(parts, await parts.queue(stack), await _photo_trade(parts, stack))


async def _build_send(parts: _Parts, stack: AsyncExitStack) -> Service:
    return _worker(parts, await parts.queue(stack), await _send_trade(parts, stack))


async def _build_suspects(parts: _Parts, stack: AsyncExitStack) -> Service:
    """Every trade's handlers, one ticket at a time, in a process where nothing else runs."""
    from gateway.queue.ticket import SUSPECT

    trades = [await trade(parts, stack) for trade in (_ingest_trade, _post_trade, _photo_trade, _send_trade)]
    handlers = {name: handle for trade in trades for name, handle in trade.handlers.items()}
    buries = {name: bury for trade in trades for name, bury in trade.buries.items()}
    trade = _Trade(weights={}, handlers=handlers, buries=buries, concurrency=1)
    return _worker(parts, await parts.queue(stack), trade, queues={SUSPECT: 1})


async def _build_keeper(parts: _Parts, stack: AsyncExitStack) -> Service:
    from gateway.watch.suspects import keep

    broker = await parts.queue(stack)
    command = [sys.executable, "-c", _SUSPECTS_CHILD]
    values = parts.settings.model_dump_json().encode()

    async def service(stop: Stop) -> None:
        await keep(command, values, broker, stop=stop, log=parts.log, grace_seconds=parts.settings.limits.grace)

    return service


def _worker(parts: _Parts, broker: Broker, trade: _Trade, *, queues: Mapping[str, int] | None = None) -> Service:
    """A worker on a trade's queues and their retry queues; a retry queue weighs half of its fresh one."""
    from gateway.queue.ticket import retry_queue
    from gateway.queue.worker import work

    fresh = {name: weight * 2 for name, weight in trade.weights.items()}
    retries = {retry_queue(name): weight for name, weight in trade.weights.items()}
    return functools.partial(
        _with_stop,
        work,
        broker,
        queues=queues or fresh | retries,
        handlers=trade.handlers,
        buries=trade.buries,
        concurrency=trade.concurrency,
        ladder=ladder(parts.settings),
        clock=utc_now,
        observer=parts.log,
        handler_seconds=parts.settings.limits.handler,
        grace_seconds=parts.settings.limits.grace,
        gate=trade.gate,
    )


async def _with_stop(loop: Any, broker: Broker, stop: Stop, **values: Any) -> None:
    await loop(broker, stop=stop, **values)


async def _build_events(parts: _Parts, stack: AsyncExitStack) -> Service:
    from gateway.events import relay_events

    broker, store = await parts.queue(stack), await parts.store(stack)

    def on_fault(fault: Exception) -> None:
        parts.log.service("events", "failed", error=told(fault))

    async def service(stop: Stop) -> None:
        await relay_events(store.database, broker, stop=stop, on_fault=on_fault)

    return service


async def _build_sweep(parts: _Parts, stack: AsyncExitStack) -> Service:
    from gateway.watch.sweeper import sweep

    broker, store = await parts.queue(stack), await parts.store(stack)

    async def service(stop: Stop) -> None:
        await sweep(store.ledger, broker, stop=stop, clock=utc_now, log=parts.log)

    return service


async def _build_web(parts: _Parts, stack: AsyncExitStack) -> Service:
    from gateway.store.migrations import current_version
    from gateway.web.api import create_api, serve_api

    settings = parts.settings
    broker, store = await parts.queue(stack), await parts.store(stack)
    listener = _listen("web_listen", settings.web_listen)
    stack.callback(listener.close)
    client = await stack.enter_async_context(Client(broker=broker))
    templates = parts.templates()

    async def readiness() -> list[str]:
        looks = {"queue": broker.depths(), "store": current_version(store.database)}
        found = await asyncio.gather(*looks.values(), return_exceptions=True)
        return [
            f"{name}: {fault}" for name, fault in zip(looks, found, strict=True) if isinstance(fault, BaseException)
        ]

    api = create_api(
        submit=client,
        check=lambda email: list(templates.problems(email.template, email.params)) if email.template else [],
        story=store.ledger.story,
        readiness=readiness,
    )

    async def service(stop: Stop) -> None:
        await serve_api(api, listener, stop, grace_seconds=settings.limits.grace)

    return service


_BUILDERS = {
    "smtp": _build_smtp,
    "lmtp": _build_lmtp,
    "ingest": _build_ingest,
    "photos": _build_photos,
    "send": _build_send,
    "events": _build_events,
    "web": _build_web,
    "sweep": _build_sweep,
}


# What the parts are made of.


def check_values(settings: Settings) -> None:
    """Finds what only the parts themselves can judge: ladder, relay URLs, mailboxes, engine URLs."""
    problems: list[Problem] = []
    checks: list[tuple[str, Callable[[], Any]]] = [
        ("retry_ladder", lambda: ladder(settings)),
        ("mailboxes", lambda: mailboxes(settings)),
        ("mailboxes", lambda: router(settings)),
        ("mail_from", lambda: _mailbox(settings.mail_from)),
        ("blobs_url", lambda: _blobs_folder(settings)),
        ("queue_url", lambda: sqlite_path(settings.queue_url)),
        ("database_url", lambda: sqlite_path(settings.database_url, "database_url")),
        ("lmtp_listen", lambda: _listen_address(settings.lmtp_listen)),
        ("limits.room", lambda: _check_room(settings)),
    ]
    checks += [(f"relays[{i}].url", functools.partial(relay_spec, item)) for i, item in enumerate(settings.relays)]
    for key, check in checks:
        try:
            check()
        except SettingsError as error:
            problems += error.problems
        except ValueError as error:
            problems.append(Problem(key, str(error)))
    if not _is_loopback(settings.web_listen):
        text = "listening beyond loopback needs a user, which this version does not have yet"
        problems.append(Problem("web_listen", f"{settings.web_listen}: {text}"))
    if settings.templates_dir is not None and not settings.templates_dir.is_dir():
        problems.append(Problem("templates_dir", f"{settings.templates_dir} is not a folder"))
    if problems:
        raise SettingsError(problems)


def _is_loopback(listen: str) -> bool:
    host = listen.rpartition(":")[0].strip("[]").lower()
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _mailbox(text: str) -> str:
    from gateway.mail.addresses import parse_mailbox

    return parse_mailbox(text)


def _listen_address(text: str) -> Any:
    from gateway.inbound.listen import parse_listen

    return parse_listen(text)


def _check_room(settings: Settings) -> None:
    if settings.limits.room < settings.limits.mail_bytes:
        raise ValueError(f"is less than one mail may have (limits.mail_bytes, {settings.limits.mail_bytes})")


def relay_spec(table: Any) -> Any:
    from gateway.outbound.relay_url import parse_relay_url

    return parse_relay_url(
        table.url, weight=table.weight, streams=tuple(table.streams), sender_domains=tuple(table.sender_domains)
    )


def ladder(settings: Settings) -> Ladder:
    from gateway.queue.ladder import Ladder

    return Ladder.parse(settings.retry_ladder)


def router(settings: Settings, support: Support | None = None) -> Any:
    """The routes of the settings; postmaster@ and abuse@ are the router's own.  With `support` it knows forged addresses."""
    from gateway.inbound.router import MailboxRoute, Router

    routes = [MailboxRoute(address=item.address, kind=item.kind) for item in settings.mailboxes]
    return Router(routes, domains=settings.domains, refusals={"support": support.refusal} if support else None)


def open_support(settings: Settings, *, is_look: bool = False) -> Support:
    """The mailbox `support` with the keys of its reply addresses, made at the first start; a look keeps what it makes."""
    from gateway.inbound.mailboxes.support import Support
    from gateway.mail.tokens import Tokens
    from gateway.store.key_file import new_key, read_keys

    path = settings.data_dir / "tokens.key"
    try:
        return Support(Tokens([new_key()] if is_look and not path.exists() else read_keys(path)))
    except ValueError as error:
        raise SettingsError([Problem("data_dir", str(error))]) from None


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


def _intake(settings: Settings, broker: Broker, log: MailLog) -> Intake:
    from gateway.inbound.intake import Intake, IntakeLimits

    return Intake(
        router(settings, open_support(settings)),
        broker,
        open_blobs(settings),
        data_dir=settings.data_dir,
        min_free_bytes=settings.min_free_bytes,
        clock=utc_now,
        log=log,
        limits=IntakeLimits(mail_bytes=settings.limits.mail_bytes, room_bytes=settings.limits.room),
    )


async def refuse_to_strand(settings: Settings) -> None:
    """Raises SettingsError where data_dir holds a queue or a ledger that these settings would leave behind unfinished."""
    problems = []
    old_queue, old_store = settings.data_dir / "queue.db", settings.data_dir / "store.db"
    if old_queue.exists() and sqlite_path(settings.queue_url) != old_queue:
        async with open_broker(f"sqlite:///{quote(str(old_queue))}") as broker:
            left = sum(depth.ready + depth.leased + depth.delayed + depth.dead for depth in await broker.depths())
        if left:
            problems.append(
                Problem("queue_url", f"{old_queue} still holds {left} tickets; set it back and let them finish")
            )
    if old_store.exists() and sqlite_path(settings.database_url, "database_url") != old_store:
        text = f"{old_store} holds a ledger; set it back, or move the file to where database_url points"
        problems.append(Problem("database_url", text))
    if problems:
        raise SettingsError(problems)


def open_queue(settings: Settings) -> AbstractAsyncContextManager[Broker]:
    """The queue engine of the settings, as an async context manager."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return open_broker(settings.queue_url)


def _blobs_folder(settings: Settings) -> Path:
    if not settings.blobs_url.startswith("file:///"):
        raise ValueError(f"{settings.blobs_url.split('://')[0]!r} is not file:///PATH, the store this version has")
    return Path(unquote(settings.blobs_url.removeprefix("file://")))


def open_blobs(settings: Settings) -> FileBlobStore:
    from gateway.store.blobs import FileBlobStore

    return FileBlobStore(_blobs_folder(settings))


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The store, migrated to this version's schema."""
    from gateway.store.database import open_database
    from gateway.store.emails import DatabaseLedger
    from gateway.store.mails import Mails

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
        yield Store(database=database, blobs=blobs, ledger=ledger_, mails=mails)
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

    return Cage(children=settings.limits.cage_children, preload=(*PRELOAD, "gateway.mail.parse.fallback"))


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


def _pool(settings: Settings, log: MailLog) -> RelayPool:
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


def _listen(key: str, text: str) -> socket.socket:
    """A listening TCP socket; a busy port is a settings problem, told with its key."""
    host, _, port = text.rpartition(":")
    with _naming_the_key(key, text):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=1024)


class _naming_the_key:
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
