"""The web service put together: guard, API, login, and what they speak to."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gateway.app.making import Store, open_tokens, operator, our_names
from gateway.app.pages import build_desk
from gateway.app.parts import Parts
from gateway.client import Client
from gateway.contract.email_send import SendEmail
from gateway.errors import Problem
from gateway.maillog import MailLog, told
from gateway.pending import PendingPosts, open_pending

if TYPE_CHECKING:
    from gateway.outbound.templates import TemplateSet
    from gateway.queue.broker import Broker
    from gateway.web.api import ApiParts, EventStreams
    from gateway.web.guard import Guard
    from gateway.web.login import Login


@dataclass(frozen=True, slots=True, kw_only=True)
class Web:
    """The application behind its guard, and what ends the streams of API and pages when it stops."""

    app: Guard
    close: Callable[[], None]


async def open_web(parts: Parts, stack: AsyncExitStack) -> Web:
    """Builds the web service of these parts."""
    from gateway.web.api import EventStreams, create_api
    from gateway.web.credentials import Credentials
    from gateway.web.guard import BodyLimits, Guard
    from gateway.web.login import login_routes
    from gateway.web.pages import answer_people, create_pages, show_form, show_refusal

    settings, store, broker = parts.settings, await parts.store(stack), await parts.queue(stack)
    streams, desk = EventStreams(store.database), await build_desk(parts, stack)
    login = login_routes(_login(parts, store), show_form(desk.view))
    pending = open_pending(settings.cache_url, on_fault=partial(_say_cache_failed, parts.log))
    stack.push_async_callback(pending.close)
    api = create_api(api_parts(parts, store, broker, streams, pending), login, create_pages(desk))
    answer_people(api, desk.view)
    limits = BodyLimits(by_path={"/v1/blobs": settings.limits.mail_bytes})
    show = show_refusal(desk.view)
    guard = Guard(api, Credentials(store.access), ours=our_names(settings), limits=limits, show=show)

    def close() -> None:
        streams.close()
        desk.live.close()

    return Web(app=guard, close=close)


def _say_cache_failed(log: MailLog, fault: Exception) -> None:
    log.service("cache", "failed", error=told(fault), next_step="posts on their way are known to this process alone")


def api_parts(parts: Parts, store: Store, broker: Broker, streams: EventStreams, pending: PendingPosts) -> ApiParts:
    """What the API speaks to."""
    from gateway.web.api import ApiParts

    settings = parts.settings
    return ApiParts(
        submit=lambda app: Client(broker=broker, app=app, pending=pending),
        operator=lambda by: operator(store, broker, by=by),
        check=_template_check(parts.templates()),
        ledger=store.ledger,
        mails=store.mails,
        lists=store.lists,
        blobs=store.blobs,
        has_room=lambda size: shutil.disk_usage(settings.data_dir).free - size >= settings.min_free_bytes,
        max_blob_bytes=settings.limits.mail_bytes,
        streams=streams,
        readiness=_readiness(store, broker),
        metrics=parts.metrics(),
        pending=pending,
        log=parts.log,
    )


def _login(parts: Parts, store: Store) -> Login:
    from gateway.web.login import Login

    return Login(
        access=store.access,
        passwords=parts.passwords(),
        throttle=parts.throttle(),
        tokens=open_tokens(parts.settings),
        log=parts.log,
    )


def _template_check(templates: TemplateSet) -> Callable[[SendEmail], list[Problem]]:
    def check(email: SendEmail) -> list[Problem]:
        return list(templates.problems(email.template, email.params)) if email.template else []

    return check


def _readiness(store: Store, broker: Broker) -> Callable[[], Awaitable[list[str]]]:
    from gateway.store.migrations import current_version

    async def look() -> list[str]:
        looks = {"queue": broker.depths(), "store": current_version(store.database)}
        found = await asyncio.gather(*looks.values(), return_exceptions=True)
        return [
            f"{name} does not answer" for name, fault in zip(looks, found, strict=True) if isinstance(fault, Exception)
        ]

    return look
