"""What reading a mail costs: the fast path, the caged fallback and the stdlib's policy.default, at 5 KB and 1 MB.

The stdlib side does the same work: every header decoded, every leaf decoded.  Ratios are what counts.
"""

from __future__ import annotations

import asyncio
import base64
import email
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from email import policy

from gateway.cage import Cage
from gateway.mail.parse import fast
from gateway.mail.parse.tree import from_transport

_HEAD = (
    b"Received: from a.example (a.example [192.0.2.1]) by b.example; Thu, 1 Jan 2026 12:00:00 +0000\r\n" * 4
    + b"From: =?utf-8?Q?J=C3=BCrgen?= <j@example.org>\r\nTo: Ann <ann@example.org>, posts@localhost\r\n"
    + b"Subject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?=\r\nDate: Thu, 1 Jan 2026 12:00:00 +0000\r\nMessage-ID: <a@example.org>\r\n"
    + b"MIME-Version: 1.0\r\n"
)


def mail(size: int) -> bytes:
    """A mail with text, html and a photo, of about `size` octets."""
    words = b"Some words of an ordinary letter, line after line.\r\n"
    text = b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + words * 15
    page = b"Content-Type: text/html; charset=utf-8\r\n\r\n" + b"<p>" + words + b"</p>" * 1
    inner = b"--in\r\n" + text + b"\r\n--in\r\n" + page * 1 + b"\r\n--in--\r\n"
    photo = base64.encodebytes(random.Random(1).randbytes(max(1_000, (size - 3_000) * 3 // 4))).replace(b"\n", b"\r\n")
    head = b'Content-Type: image/jpeg; name="a.jpg"\r\nContent-Transfer-Encoding: base64\r\n'
    head += b'Content-Disposition: attachment; filename="a.jpg"\r\n\r\n'
    body = (
        b"--out\r\nContent-Type: multipart/alternative; boundary=in\r\n\r\n"
        + inner
        + b"\r\n--out\r\n"
        + head
        + photo
        + b"--out--\r\n"
    )
    return _HEAD + b"Content-Type: multipart/mixed; boundary=out\r\n\r\n" + body


async def _milliseconds(work: Callable[[], Awaitable[object]], rounds: int) -> tuple[float, float]:
    """The best and the median, in milliseconds: on a busy machine only the best is about the work."""
    await work()
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        await work()
        spent.append((time.perf_counter() - began) * 1_000)
    return min(spent), statistics.median(spent)


def _stdlib(octets: bytes) -> None:
    message = email.message_from_bytes(octets, policy=policy.default)
    for part in message.walk():
        [str(value) for value in part.values()]
        if not part.is_multipart():
            part.get_payload(decode=True)


async def _measure() -> None:
    async with Cage(children=1, preload=("gateway.mail.parse.fallback",)) as cage:
        for size, rounds in ((5_000, 200), (1_000_000, 20)):
            octets = mail(size)

            async def quick(octets: bytes = octets) -> None:
                assert fast.read(octets)

            async def caged(octets: bytes = octets) -> None:
                from_transport(*await cage.run("gateway.mail.parse.fallback:parse_job", {}, octets))

            async def stdlib(octets: bytes = octets) -> None:
                _stdlib(octets)

            taken = [await _milliseconds(work, rounds) for work in (quick, caged, stdlib)]
            names = ("fast path", "caged fallback", "policy.default")
            for name, (best, median) in zip(names, taken, strict=True):
                ratio = best / taken[0][0]
                print(
                    f"parse {len(octets):>9,} bytes  {name:15} best {best:7.2f} ms  median {median:7.2f} ms  {ratio:5.1f}x"
                )


def main() -> None:
    """Prints a table."""
    asyncio.run(_measure())
