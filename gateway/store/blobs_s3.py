"""Blobs in an S3 bucket (obstore): `s3://bucket/prefix`, with keys and region from the AWS_* environment.

`?endpoint=http://host:9000&region=…` names a server that is not Amazon's.  `put` returns when the bucket has said yes; what was
put less than a day ago is not sent again, everything older is: that renews its age.
S3 has no way to delete a thing only if it is still old.  So `discard` moves it aside, where it is still found and read, and
only what has lain there as long again and was asked for by nobody's row goes for good: a put beside it loses nothing.
Limits: octets pass through memory whole; one collector at a time; a bucket's own rules (life cycle) are not looked at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl, urlsplit

from obstore.exceptions import BaseError
from obstore.store import S3Store

from gateway.errors import Problem, SettingsError, StoreUnavailable
from gateway.runtime import Clock, utc_now
from gateway.store.blobs import bare_digest, digest_of, gathered, proved

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config

T = TypeVar("T")
_FRESH = timedelta(days=1)
_ASIDE = "aside"
_KEPT = "blobs"
_WORDS = frozenset({"endpoint", "region"})
_CONNECT, _WHOLE = timedelta(seconds=5), timedelta(seconds=60)


class S3BlobStore:
    """Blobs as objects: `<prefix>/blobs/<first two digits>/<64 digits>`."""

    def __init__(self, url: str, *, clock: Clock = utc_now) -> None:
        """Raises SettingsError for a URL that names no bucket."""
        self._store = _open(url)
        self._clock = clock

    async def put(self, octets: bytes) -> str:
        digest = digest_of(octets)
        found = await self._head(_key(_KEPT, digest))
        if found is None or found["size"] != len(octets) or found["last_modified"] < self._clock() - _FRESH:
            try:
                await _answered(self._store.put_async(_key(_KEPT, digest), octets))
            except FileNotFoundError as error:
                raise StoreUnavailable("blobs: the bucket is not there") from error
        return digest

    async def put_stream(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        octets = await gathered(chunks)
        return await self.put(octets), len(octets)

    async def get(self, digest: str) -> bytes:
        for place in (_KEPT, _ASIDE, _KEPT):  # it may be moved while we look
            with suppress(FileNotFoundError):
                answer = await _answered(self._store.get_async(_key(place, digest)))
                return proved(bytes(await _answered(answer.bytes_async())), digest)
        raise StoreUnavailable(f"blobs: {digest} is not in the bucket")

    async def exists(self, digest: str) -> bool:
        return await self.size(digest) is not None

    async def is_there(self) -> bool:
        """Whether the bucket is there."""
        try:
            await _answered(self._store.list_with_delimiter_async(_KEPT))
        except StoreUnavailable as fault:
            if "NoSuchBucket" in str(fault.__cause__):
                return False
            raise
        except FileNotFoundError:
            return False
        return True

    async def begin(self) -> None:
        """A bucket is made by whoever owns it."""

    async def size(self, digest: str) -> int | None:
        for place in (_KEPT, _ASIDE, _KEPT):
            if (found := await self._head(_key(place, digest))) is not None:
                return found["size"]
        return None

    async def old(self, *, before: datetime) -> AsyncIterator[list[str]]:
        """The digests that nobody put since `before`, some at a time."""
        for place in (_KEPT, _ASIDE):
            listing = self._store.list(place)
            while True:
                try:
                    batch = await _answered(anext(listing))
                except StopAsyncIteration:
                    break
                yield [_digest(item["path"]) for item in batch if item["last_modified"] < before]

    async def discard(self, digest: str, *, before: datetime) -> bool:
        """Moves it aside if it is old, or ends it where it lay aside for as long; True when it is gone for good."""
        kept, aside = _key(_KEPT, digest), _key(_ASIDE, digest)
        found = await self._head(kept)
        if found is not None and found["last_modified"] < before:
            with suppress(FileNotFoundError):  # another collector was quicker
                await _answered(self._store.copy_async(kept, aside))
                await _answered(self._store.delete_async(kept))
            return False
        found = await self._head(aside)
        if found is None or found["last_modified"] >= before:
            return False
        await _answered(self._store.delete_async(aside))
        return True

    async def _head(self, key: str) -> ObjectMeta | None:
        try:
            return await _answered(self._store.head_async(key))
        except FileNotFoundError:
            return None


def _open(url: str) -> S3Store:
    parts = urlsplit(url)
    words = dict(parse_qsl(parts.query))
    if parts.scheme != "s3" or not parts.hostname or parts.username or not words.keys() <= _WORDS:
        raise _refusal("an S3 store is s3://bucket/prefix, with ?endpoint= and ?region= where it is not Amazon's")
    endpoint = words.get("endpoint", "")
    retry: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}
    client: ClientConfig = {"connect_timeout": _CONNECT, "timeout": _WHOLE, "allow_http": endpoint.startswith("http:")}
    settings: S3Config = {}
    if endpoint:
        settings["endpoint"] = endpoint
    if "region" in words:
        settings["region"] = words["region"]
    try:
        return S3Store.from_url(
            f"s3://{parts.netloc}{parts.path}", client_options=client, retry_config=retry, **settings
        )
    except (BaseError, ValueError) as error:
        raise _refusal(str(error)) from None


async def _answered(asked: Awaitable[T]) -> T:
    """The bucket's answer; FileNotFoundError where it has no such thing, any other no is StoreUnavailable."""
    try:
        return await asked
    except FileNotFoundError:
        raise
    except (BaseError, OSError) as error:
        raise StoreUnavailable(f"blobs: {' '.join(str(error).split())[:300]}") from error


def _key(place: str, digest: str) -> str:
    bare = bare_digest(digest)
    return f"{place}/{bare[:2]}/{bare}"


def _digest(key: str) -> str:
    return "sha256:" + key.rpartition("/")[2]


def _refusal(text: str) -> SettingsError:
    return SettingsError([Problem("blobs_url", text)])
