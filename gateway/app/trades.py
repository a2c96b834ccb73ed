"""The trades: which handlers work which queues.  Each worker service is one trade; the suspects' process knows them all."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gateway.app.making import ladder, loop_guard, mailboxes, open_authenticator, open_support, open_who, router
from gateway.app.parts import Parts
from gateway.runtime import Service, Stop, utc_now

if TYPE_CHECKING:
    from gateway.queue.broker import Broker
    from gateway.queue.worker import Bury, Gate, Handler

_SUSPECTS_CHILD = (
    "import sys; from gateway import app; sys.exit(app.work_suspects(int(sys.argv[1]), sys.stdin.buffer.read()))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """What works some queues together: weight and handler by the name of the fresh queue."""

    weights: Mapping[str, int]
    handlers: Mapping[str, Handler]
    buries: Mapping[str, Bury]
    concurrency: int
    gate: Gate | None = None


async def ingest_trade(parts: Parts, stack: AsyncExitStack) -> Trade:
    from gateway.inbound.ingest import Ingest
    from gateway.queue.ticket import MAIL_INBOUND

    broker, store, cage = await parts.queue(stack), await parts.store(stack), await parts.cage(stack)
    settings = parts.settings
    ingest = Ingest(
        mails=store.mails,
        blobs=store.blobs,
        cage=cage,
        router=router(settings),
        mailboxes=mailboxes(settings, open_support(settings)),
        publish=broker.publish,
        ladder=ladder(settings),
        log=parts.log,
        clock=store.database.clock,
        judge=loop_guard(parts.settings).judge,
        note_waiting=(await parts.outage(stack)).note_waiting,
        authenticate=open_authenticator(settings, cage).authenticate,
        who=open_who(settings),
        confirm=(await parts.confirm_desk(stack)).confirm,
    )
    return Trade(
        weights={MAIL_INBOUND: 3},
        handlers={MAIL_INBOUND: ingest.handle},
        buries={MAIL_INBOUND: ingest.bury},
        concurrency=parts.settings.limits.ingest_concurrency,
    )


async def post_trade(parts: Parts, stack: AsyncExitStack) -> Trade:
    from gateway.inbound.post_create import PostDesk
    from gateway.queue.ticket import POST_CREATE

    broker, store = await parts.queue(stack), await parts.store(stack)
    desk = PostDesk(
        mails=store.mails,
        blobs=store.blobs,
        cage=await parts.cage(stack),
        answer=broker.answer,
        log=parts.log,
        clock=store.database.clock,
    )
    return Trade(weights={POST_CREATE: 3}, handlers={POST_CREATE: desk.handle}, buries={}, concurrency=1)


async def photo_trade(parts: Parts, stack: AsyncExitStack) -> Trade:
    from gateway.inbound.photos import RenderPhoto
    from gateway.queue.ticket import PHOTO_RENDER
    from gateway.store.photos import Photos

    settings, store = parts.settings, await parts.store(stack)
    render = RenderPhoto(
        photos=Photos(store.database, clock=store.database.clock, hostname=settings.hostname),
        blobs=store.blobs,
        cage=await parts.photo_cage(stack),
        log=parts.log,
    )
    return Trade(
        weights={PHOTO_RENDER: 1},
        handlers={PHOTO_RENDER: render.handle},
        buries={},
        concurrency=settings.limits.cage_children,
    )


async def send_trade(parts: Parts, stack: AsyncExitStack) -> Trade:
    """Email waits in its queue while the ledger is away or no relay is usable.

    Ingest has no such gate: a mail that cannot be recorded must be noted, or nobody could tell its sender.
    """
    from gateway.errors import StoreUnavailable
    from gateway.outbound.deliver import Deliver
    from gateway.queue.gate import FaultGate
    from gateway.queue.ticket import EMAIL_SEND, EMAIL_SEND_BULK, EMAIL_SEND_SERIAL, EMAIL_SEND_URGENT
    from gateway.store.migrations import current_version

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
        clock=store.database.clock,
        log=parts.log,
        mail_from=settings.mail_from,
        claim_seconds=settings.limits.claim,
        handler_seconds=settings.limits.handler,
    )
    ledger_gate = FaultGate(StoreUnavailable, lambda: current_version(store.database))

    async def gate() -> None:
        await ledger_gate.wait_open()
        await pool.wait_usable()

    weights = {EMAIL_SEND_URGENT: 8, EMAIL_SEND: 4, EMAIL_SEND_SERIAL: 4, EMAIL_SEND_BULK: 2}
    return Trade(
        weights=weights,
        handlers=dict.fromkeys(weights, ledger_gate.minded(deliver.handle)),
        buries=dict.fromkeys(weights, deliver.bury),
        concurrency=settings.limits.send_concurrency,
        gate=gate,
    )


async def command_trade(parts: Parts, stack: AsyncExitStack) -> Trade:
    """What apps publish beside requests: control, and what leads nowhere; without the relays' gate, for it sends nothing."""
    from gateway.client import queue_file
    from gateway.outbound.control import ControlDesk
    from gateway.outbound.refusal import RefusalDesk
    from gateway.queue.ticket import EMAIL_BROADCAST, EMAIL_CONTROL, UNROUTABLE

    broker, store = await parts.queue(stack), await parts.store(stack)
    is_file = queue_file(parts.settings.queue_url) is not None
    control = ControlDesk(store.ledger, answer=broker.answer, log=parts.log, is_app_proven=not is_file)
    refusal = RefusalDesk(store.ledger, answer=broker.answer, log=parts.log)
    return Trade(
        weights={EMAIL_CONTROL: 4, EMAIL_BROADCAST: 1, UNROUTABLE: 1},
        handlers={
            EMAIL_CONTROL: control.handle,
            EMAIL_BROADCAST: refusal.broadcast,
            UNROUTABLE: refusal.unroutable,
        },
        buries={},
        concurrency=4,
    )


async def build_ingest(parts: Parts, stack: AsyncExitStack) -> Service:
    mails, posts = await ingest_trade(parts, stack), await post_trade(parts, stack)
    trade = replace(mails, weights={**mails.weights, **posts.weights}, handlers={**mails.handlers, **posts.handlers})
    return worker_of(parts, await parts.queue(stack), trade)


async def build_photos(parts: Parts, stack: AsyncExitStack) -> Service:
    return worker_of(parts, await parts.queue(stack), await photo_trade(parts, stack))


async def build_send(parts: Parts, stack: AsyncExitStack) -> Service:
    broker = await parts.queue(stack)
    workers = [worker_of(parts, broker, await trade(parts, stack)) for trade in (send_trade, command_trade)]

    async def service(stop: Stop) -> None:
        await asyncio.gather(*(worker(stop) for worker in workers))

    return service


async def build_suspects(parts: Parts, stack: AsyncExitStack) -> Service:
    """Every trade's handlers, one ticket at a time, in a process where nothing else runs."""
    from gateway.queue.ticket import SUSPECT

    trades = [await trade(parts, stack) for trade in (ingest_trade, post_trade, photo_trade, send_trade, command_trade)]
    handlers = {name: handle for trade in trades for name, handle in trade.handlers.items()}
    buries = {name: bury for trade in trades for name, bury in trade.buries.items()}
    trade = Trade(weights={}, handlers=handlers, buries=buries, concurrency=1)
    return worker_of(parts, await parts.queue(stack), trade, queues={SUSPECT: 1})


async def build_keeper(parts: Parts, stack: AsyncExitStack) -> Service:
    from gateway.watch.suspects import keep

    broker = await parts.queue(stack)
    command = [sys.executable, "-c", _SUSPECTS_CHILD]
    values = parts.settings.model_dump_json().encode()

    async def service(stop: Stop) -> None:
        await keep(command, values, broker, stop=stop, log=parts.log, grace_seconds=parts.settings.limits.grace)

    return service


def worker_of(parts: Parts, broker: Broker, trade: Trade, *, queues: Mapping[str, int] | None = None) -> Service:
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
