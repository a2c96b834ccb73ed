"""Posts on their way: what an app just made can be read at once, before it is recorded (read your own write).

`client.create_post` remembers here what it queued; `client.post` and `GET /v1/posts/{id}` look here for a post that the
store does not know yet.  Without a cache only the process that made the post knows it; with `cache_url = "redis://…"` every
process with the same cache does.  Home of redis.
Promises: remembering never fails and never delays a post that is queued by more than a second; what is told is the app's
own words, attachments by name, never html that nobody has sanitised.
Limits: remembered for ten minutes; in memory at most 1,000 posts; a cache that is away is told to `on_fault`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from gateway.contract.post_create import CreatePost
from gateway.errors import Problem, SettingsError

if TYPE_CHECKING:
    from redis.asyncio import Redis

REMEMBERED_SECONDS = 600
REMEMBERED_POSTS = 1000
ANSWER_SECONDS = 1.0
_KEY = "gateway:post:"
_SCHEMES = ("redis://", "rediss://", "unix://")

OnFault = Callable[[Exception], None]


class PendingPosts(Protocol):
    """What remembers posts until they are recorded."""

    async def remember(self, post: CreatePost) -> None:
        """Remembers a post that was queued; never raises."""
        ...

    async def recall(self, post_id: str) -> dict[str, Any] | None:
        """What was remembered, with `status: pending`; None for what nobody made lately; never raises."""
        ...

    async def close(self) -> None: ...


def open_pending(cache_url: str = "", *, on_fault: OnFault = lambda fault: None) -> PendingPosts:
    """The memory of this process, or the cache a URL names; raises SettingsError for a URL that names none."""
    if not cache_url:
        return PendingInMemory()
    if not cache_url.startswith(_SCHEMES):
        text = f"{cache_url.partition(':')[0]!r} is no cache: redis://, rediss:// or unix://, or nothing"
        raise SettingsError([Problem("cache_url", text)])
    try:
        return PendingInRedis(cache_url, on_fault=on_fault)
    except ValueError as error:
        raise SettingsError([Problem("cache_url", str(error))]) from None


class PendingInMemory:
    """Posts in this process's memory, the oldest forgotten first."""

    def __init__(self) -> None:
        self._posts: dict[str, tuple[float, dict[str, Any]]] = {}

    async def remember(self, post: CreatePost) -> None:
        self._posts.pop(post.id, None)  # so that the oldest always stands first
        self._posts[post.id] = (time.monotonic() + REMEMBERED_SECONDS, _told(post))
        while len(self._posts) > REMEMBERED_POSTS:
            del self._posts[next(iter(self._posts))]

    async def recall(self, post_id: str) -> dict[str, Any] | None:
        until, told = self._posts.get(post_id, (0.0, None))
        return told if until > time.monotonic() else None

    async def close(self) -> None:
        self._posts.clear()


class PendingInRedis:
    """Posts in a cache that processes share; this process's memory stands behind it while the cache is away."""

    def __init__(self, url: str, *, on_fault: OnFault) -> None:
        from redis.asyncio import Redis

        self._redis: Redis = Redis.from_url(
            url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS, decode_responses=True
        )
        self._memory = PendingInMemory()
        self._on_fault = on_fault

    async def remember(self, post: CreatePost) -> None:
        await self._memory.remember(post)
        try:
            await self._redis.set(_KEY + post.id, json.dumps(_told(post)), ex=REMEMBERED_SECONDS)
        except _faults() as fault:
            self._on_fault(fault)

    async def recall(self, post_id: str) -> dict[str, Any] | None:
        told = await self._memory.recall(post_id)
        if told is not None:
            return told
        try:
            found = await self._redis.get(_KEY + post_id)
            return dict(json.loads(found)) if found else None
        except _faults() as fault:
            self._on_fault(fault)
            return None

    async def close(self) -> None:
        await self._redis.aclose()


def _faults() -> tuple[type[Exception], ...]:
    from redis.exceptions import RedisError

    return (RedisError, OSError, TimeoutError, ValueError, TypeError)  # the last two: a value that is none of ours


def _told(post: CreatePost) -> dict[str, Any]:
    attachments = [
        {"filename": item.filename, "content_type": item.content_type, "inline": item.inline}
        for item in post.attachments
    ]
    return {
        "id": post.id,
        "status": "pending",
        "mailbox": post.mailbox,
        "author": post.author,
        "title": post.title,
        "text": post.text,
        "created_at": post.created_at.isoformat() if post.created_at else None,
        "attachments": attachments,
    }
