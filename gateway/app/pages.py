"""The pages' desk: the parts of this process, put where `web.pages` finds them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.app.making import open_support, operator, relay_spec, status_links
from gateway.app.parts import Parts
from gateway.runtime import utc_now
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.web.pages import Desk
    from gateway.web.pages.desk import KnownRelay, Places
    from gateway.web.pages.live import Alarms


async def build_desk(parts: Parts, stack: AsyncExitStack) -> Desk:
    """Everything a page may need; relays are known to be paused only where this process sends."""
    from gateway.outbound.captured import CapturedFolder
    from gateway.web.pages import Desk
    from gateway.web.pages.live import Live
    from gateway.web.pages.reading import Reader
    from gateway.web.pages.view import View

    settings = parts.settings
    broker, store, pool = await parts.queue(stack), await parts.store(stack), parts.opened("pool")
    return Desk(
        view=View(clock=utc_now),
        live=Live(store.database, broker, clock=utc_now, alarms=_alarms(settings)),
        database=store.database,
        mails=store.mails,
        ledger=store.ledger,
        lists=store.lists,
        blobs=store.blobs,
        broker=broker,
        reader=Reader(await parts.cage(stack)),
        captured=CapturedFolder(settings.data_dir / "captured"),
        links=status_links(settings),
        places=_places(settings),
        relays=_relays(settings),
        paused=(lambda: pool.paused) if pool is not None else None,
        operator=lambda by: operator(store, broker, by=by),
        reply_address=open_support(settings).reply_address,
        confirming=await parts.confirm_desk(stack),
    )


def _alarms(settings: Settings) -> Alarms:
    """What the host's alarm book says is wrong now."""
    from gateway.watch.alarms.book import read_alarms
    from gateway.web.pages.live import Alarm

    async def look() -> list[Alarm]:
        found = await asyncio.to_thread(read_alarms, settings.data_dir)
        return [
            Alarm(
                topic=item.topic,
                what=item.what,
                next_step=item.next_step,
                since=datetime.fromtimestamp(item.since, UTC),
            )
            for item in found
        ]

    return look


def _places(settings: Settings) -> Places:
    from gateway.web.pages.desk import Places

    addresses = [item.address for item in settings.mailboxes]
    photos = [item.address for item in settings.mailboxes if item.kind == "photos"]
    nobody = f"postmaster@{settings.hostname}"
    return Places(
        smtp=settings.smtp_place,
        mailbox=(addresses or [nobody])[0],
        photos=(photos or addresses or [nobody])[0],
        mailboxes=sorted({item.kind for item in settings.mailboxes} | {"postmaster"}),
        captures=any(relay.url.startswith("capture:") for relay in settings.relays),
    )


def _relays(settings: Settings) -> list[KnownRelay]:
    from gateway.web.pages.desk import KnownRelay

    found = []
    for item in settings.relays:
        spec = relay_spec(item)
        streams = ", ".join(item.streams) or "all"
        found.append(KnownRelay(name=spec.name, about=f"weight {item.weight}, streams: {streams}"))
    return found
