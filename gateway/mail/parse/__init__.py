"""Parsing: `parse` turns a mail's octets into a ParsedMail, hostile ones only in a room where they can be stopped.

Flow: guards (searches only) → the fast path, in this process, for benign mail → all else into the cage, where
`fallback.parse_job` gives the same tree.  Raises TooComplex, or what the cage raises: JobFailed for a mail that cannot be
parsed, OverBudget for one that costs too much; the caller holds such a mail.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from gateway.mail.parse import fast
from gateway.mail.parse.guards import DEFAULT_LIMITS, Limits, TooComplex, check
from gateway.mail.parse.tree import ParsedAttachment, ParsedMail, Person, from_transport

__all__ = ["Cage", "ParsedAttachment", "ParsedMail", "Person", "TooComplex", "parse", "parse_styled"]

_CPU_SECONDS = 2.0
_CPU_SECONDS_PER_MEGABYTE = 0.1
_IN_THREAD_BYTES = 64 * 1024
_WALL_SECONDS = 60.0  # generous: on a busy machine an honest mail waits for its turn, a bomb burns CPU


class Cage(Protocol):
    """Killable work in a warm child process."""

    async def run(
        self,
        job: str,
        request: dict[str, Any],
        octets: bytes = b"",
        *,
        cpu_seconds: float | None = None,
        wall_seconds: float | None = None,
    ) -> tuple[dict[str, Any], bytes]: ...


async def parse(octets: bytes, cage: Cage, *, limits: Limits | None = None) -> ParsedMail:
    """Parses one mail; in the cage a large honest mail gets more time than a small bomb."""
    if not fast.is_warm():
        await asyncio.to_thread(fast.warm)
    small = len(octets) <= _IN_THREAD_BYTES
    if limits is not None:
        await asyncio.to_thread(check, octets, limits)
    mail = fast.read(octets) if small else await asyncio.to_thread(fast.read, octets)
    return mail if mail is not None else await _parse_caged(octets, cage, {})


async def parse_styled(octets: bytes, cage: Cage) -> ParsedMail:
    """The same mail with the looks of its html (`html.sanitise`), for a view in a frame; always in the cage."""
    return await _parse_caged(octets, cage, {"styled": True})


async def _parse_caged(octets: bytes, cage: Cage, request: dict[str, Any]) -> ParsedMail:
    await asyncio.to_thread(check, octets, DEFAULT_LIMITS)
    cpu_seconds = _CPU_SECONDS + _CPU_SECONDS_PER_MEGABYTE * len(octets) / 2**20
    job = "gateway.mail.parse.fallback:parse_job"
    values, contents = await cage.run(job, request, octets, cpu_seconds=cpu_seconds, wall_seconds=_WALL_SECONDS)
    return from_transport(values, contents)
