"""The overview, the queues and the relays: what moves, and the streams that move it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from gateway.errors import TransientFailure
from gateway.store.lists import ListKind, Page
from gateway.store.pulse import relays as relay_pulses
from gateway.web.pages.desk import Desk

_LAST = 6


def add_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/")
    async def overview(request: Request) -> Response:
        return await desk.show(request, "overview.html", await _overview(desk), room="/")

    @router.get("/queues")
    async def queues(request: Request) -> Response:
        return await desk.show(request, "queues.html", await _queues(desk), room="/queues")

    @router.get("/relays")
    async def relays(request: Request) -> Response:
        return await desk.show(request, "relays.html", await _relays(desk), room="/relays")

    @router.get("/live/overview")
    async def live_overview() -> Response:
        async def render() -> str:
            return desk.view.render("overview_live.html", places=desk.places, **await _overview(desk))

        return _stream(desk, render)

    @router.get("/live/queues")
    async def live_queues() -> Response:
        async def render() -> str:
            return desk.view.render("queues_live.html", **await _queues(desk))

        return _stream(desk, render)


def _stream(desk: Desk, render: Callable[[], Awaitable[str]]) -> Response:
    if not desk.live.has_room:
        return Response(status_code=503, headers={"Retry-After": "60"})
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(desk.live.stream(render), media_type="text/event-stream", headers=headers)


async def _overview(desk: Desk) -> dict[str, Any]:
    snapshot = await desk.live.snapshot()
    return {
        "alarms": snapshot.alarms,
        "troubles": snapshot.troubles,
        "pulse": snapshot.pulse,
        "mail_queue": snapshot.mail_queue,
        "email_queue": snapshot.email_queue,
        "last_mails": await _last(desk, "mails") if snapshot.pulse else [],
        "last_emails": await _last(desk, "emails") if snapshot.pulse else [],
    }


async def _last(desk: Desk, kind: ListKind) -> list[dict[str, Any]]:
    try:
        return (await desk.lists.page(kind, page=Page(limit=_LAST))).rows
    except TransientFailure:  # it went away since the snapshot; the next one says so
        return []


async def _queues(desk: Desk) -> dict[str, Any]:
    snapshot = await desk.live.snapshot()
    return {"depths": snapshot.depths, "troubles": [snapshot.queue_trouble] if snapshot.queue_trouble else []}


async def _relays(desk: Desk) -> dict[str, Any]:
    now = (await desk.live.snapshot()).at
    pulses = {item.relay: item for item in await desk.database.read(lambda connection: relay_pulses(connection, now))}
    pauses = {item.relay: item for item in desk.paused()} if desk.paused else {}
    rows = []
    for relay in desk.relays:
        pulse = pulses.get(relay.name)
        row = {"name": relay.name, "about": relay.about, "pause": pauses.get(relay.name)}
        seen = {"recent": pulse.recent, "last_reply": pulse.last_reply, "last_at": pulse.last_at} if pulse else {}
        rows.append(row | ({"recent": {}, "last_reply": "", "last_at": None} | seen))
    return {"relays": rows, "knows_pauses": desk.paused is not None}
