"""The services: each builder opens what it needs and returns the loop that `serve` runs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.app.checks import refuse_open_house
from gateway.app.making import (
    alarm_book,
    listen_on,
    naming_the_key,
    open_notice_writer,
    open_who,
    our_names,
    receipted,
    router,
)
from gateway.app.parts import Parts
from gateway.app.trades import build_ingest, build_photos, build_send
from gateway.client import Client
from gateway.errors import Problem, SettingsError, StoreUnavailable, TransientFailure
from gateway.maillog import MailLog
from gateway.runtime import Service, Stop

if TYPE_CHECKING:
    from gateway.inbound.door import Door
    from gateway.settings import Settings
    from gateway.store.access import Access
    from gateway.store.people import PeopleStore

PEOPLE_SECONDS = 15.0
D = TypeVar("D", bound="Door")


async def build_smtp(parts: Parts, stack: AsyncExitStack) -> Service:
    """The door with its certificate; without one it needs no store, which only knows who may log in."""
    from gateway.inbound.login import DoorLogins
    from gateway.inbound.smtp_door import SmtpDoor

    certificates, logins, listen = parts.certificates(), None, parts.settings.smtps_listen
    if certificates is not None:
        access = (await parts.store(stack)).access
        logins = DoorLogins(access=access, passwords=parts.passwords(), throttle=parts.throttle(), log=parts.log)
    door = await _open_door(SmtpDoor, "smtp_listen", parts, stack, certificates=certificates, logins=logins)
    inherited = parts.activation.take("smtps")
    if inherited and certificates is None:
        raise SettingsError([Problem("tls_certificate", "is wanted: systemd hands us a socket for TLS")])
    if listen or inherited:
        with naming_the_key("smtps_listen", listen):
            await door.start_tls(listen, inherited)
    return door.serve


async def build_lmtp(parts: Parts, stack: AsyncExitStack) -> Service:
    from gateway.inbound.lmtp_door import LmtpDoor

    return (await _open_door(LmtpDoor, "lmtp_listen", parts, stack)).serve


async def _open_door(kind: type[D], key: str, parts: Parts, stack: AsyncExitStack, **more: Any) -> D:
    from gateway.inbound.door import DoorLimits
    from gateway.inbound.door_limits import Shares
    from gateway.inbound.xforward import TrustedHosts

    settings, wanted = parts.settings, parts.settings.limits
    shares = Shares(
        window_seconds=wanted.rate_window,
        mails_per_client=wanted.mails_per_client,
        recipients_per_client=wanted.recipients_per_client,
        errors_per_client=wanted.errors_per_client,
        mails_per_sender=wanted.mails_per_sender,
        recipients_per_sender=wanted.recipients_per_sender,
    )
    limits = DoorLimits(
        mail_bytes=wanted.mail_bytes,
        recipients=wanted.recipients,
        connections_per_client=wanted.connections_per_client,
        idle_seconds=wanted.idle,
        shares=shares,
    )
    listen = getattr(settings, key)
    door = kind(
        await parts.intake(stack),
        listen=listen,
        hostname=settings.hostname,
        limits=limits,
        trusted_hosts=TrustedHosts(our_names(settings).trusted),
        log=parts.log,
        **more,
    )
    with naming_the_key(key, listen):
        await door.start(parts.activation.take(door.name))
    stack.push_async_callback(door.close)
    return door


async def build_events(parts: Parts, stack: AsyncExitStack) -> Service:
    from gateway.events import relay_events

    broker, store = await parts.queue(stack), await parts.store(stack)

    def on_fault(fault: Exception) -> None:
        parts.log.service_failed("events", error=fault)

    async def service(stop: Stop) -> None:
        await relay_events(store.database, broker, stop=stop, on_fault=on_fault)

    return service


async def build_sweep(parts: Parts, stack: AsyncExitStack) -> Service:
    from gateway.store.blob_collector import Collector
    from gateway.watch.collect import collect
    from gateway.watch.sweeper import sweep

    broker, store = await parts.queue(stack), await parts.store(stack)
    collector = Collector(store.database, store.blobs, clock=store.database.clock)

    async def service(stop: Stop) -> None:
        receipts, clock = receipted(broker).receipts, store.database.clock
        async with asyncio.TaskGroup() as both:
            both.create_task(sweep(store.ledger, broker, stop=stop, clock=clock, log=parts.log, receipts=receipts))
            both.create_task(collect(collector, broker, stop=stop, log=parts.log))

    return service


async def build_people(parts: Parts, stack: AsyncExitStack) -> Service:
    """Keeps the snapshot of people fresh on this host, and asks them about held mails that claim to be theirs."""
    from gateway.inbound.confirm import Asker

    settings, store = parts.settings, await parts.store(stack)
    client = await stack.enter_async_context(Client(broker=await parts.queue(stack)))
    asker = Asker(
        store.confirmations,
        await parts.confirm_desk(stack),
        who=open_who(settings),
        router=router(settings),
        submit=client,
        log=parts.log,
        public_url=settings.public_url,
    )

    async def service(stop: Stop) -> None:
        await asyncio.gather(asker.run(stop), keep_people(store.people, stop, parts.log))

    return service


async def keep_people(people: PeopleStore, stop: Stop, log: MailLog) -> None:
    """Writes the snapshot of people anew where another host changed it; a fault leaves the last good one."""
    while True:
        try:
            await people.refresh_file()
        except (TransientFailure, OSError) as fault:
            log.service_failed("people", error=fault)
        if await stop.wait(PEOPLE_SECONDS):
            return


async def build_notices(parts: Parts, stack: AsyncExitStack) -> Service:
    from gateway.notices.service import Teller
    from gateway.store.notices import Notices
    from gateway.watch.sweeper import reissue

    settings = parts.settings
    broker, store = await parts.queue(stack), await parts.store(stack)
    notices = Notices(
        store.database,
        store.blobs,
        clock=store.database.clock,
        hostname=settings.hostname,
        day_seconds=settings.notices.day,
    )

    async def issue(email_id: str) -> None:
        await reissue(await store.ledger.recipients(email_id), store.ledger, broker)

    teller = Teller(
        database=store.database,
        notices=notices,
        outage=await parts.outage(stack),
        writer=open_notice_writer(settings, parts.templates(), await parts.cage(stack)),
        relay=await parts.pool(stack),
        issue=issue,
        log=parts.log,
        clock=store.database.clock,
    )
    return teller.run


async def build_web(parts: Parts, stack: AsyncExitStack) -> Service:
    from gateway.app.web import open_web
    from gateway.web.serve import serve_http

    settings, access = parts.settings, (await parts.store(stack)).access
    is_judged = await _is_no_open_house(settings, access)
    inherited = parts.activation.take("web")
    listener = inherited[0] if inherited else listen_on("web_listen", settings.web_listen)
    stack.callback(listener.close)
    web = await open_web(parts, stack)

    async def service(stop: Stop) -> None:
        while not (is_judged or await stop.wait(1.0) or await _is_no_open_house(settings, access)):
            pass
        await serve_http(web.app, listener, stop, grace_seconds=settings.limits.grace, on_stop=web.close)

    return service


async def _is_no_open_house(settings: Settings, access: Access) -> bool:
    """Whether others may be let in to this house; False while the store is away, which knows. Raises SettingsError."""
    try:
        await refuse_open_house(settings, access)
    except StoreUnavailable:
        return False
    return True


async def build_alarms(parts: Parts, stack: AsyncExitStack) -> Service:
    """Built last: it asks the queue, and of the rest what this process has opened for others."""
    from gateway.watch.alarms.watch import watch

    log, eyes = parts.log, parts.eyes()
    is_alone = parts.opened("queue") is None
    await parts.queue(stack)
    if is_alone:
        await parts.store(stack)
    book, postman = alarm_book(parts.settings, log)

    async def service(stop: Stop) -> None:
        await watch(eyes.see, book, postman, stop=stop, log=log)

    return service


BUILDERS = {
    "smtp": build_smtp,
    "lmtp": build_lmtp,
    "ingest": build_ingest,
    "photos": build_photos,
    "send": build_send,
    "events": build_events,
    "web": build_web,
    "sweep": build_sweep,
    "people": build_people,
    "notices": build_notices,
    "alarms": build_alarms,
}
