"""The relay `capture`: writes each email to a file instead of sending it, for development and the demo.

`<time>-<id>.eml` holds the exact octets, `<same>.json` beside it the envelope, written first.  Both are fsynced before the
rename, the folder after it; the rename is the final dot.  Limit: a crash between dot and record leaves a second file later,
as a real relay would be handed a second copy.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from gateway.errors import StorageFault
from gateway.mail.ids import new_id
from gateway.outbound.letter import BeforeDot, Letter
from gateway.reply import Reply
from gateway.runtime import Clock, failpoint


class Capture:
    """A folder that plays relay."""

    def __init__(self, folder: Path, *, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock

    async def transact(self, letter: Letter, before_dot: BeforeDot) -> Reply:
        """Keeps one email; raises StorageFault when the folder does not take it."""
        name = f"{self._clock():%Y%m%dT%H%M%S%f}-{new_id()}"
        try:
            await asyncio.to_thread(self._write_body, name, letter)
            failpoint("relay.body_sent")
            await before_dot()
            await asyncio.to_thread(self._rename, name)
        except OSError as error:
            raise StorageFault(f"cannot capture to {self._folder}: {error}") from error
        finally:
            self._drop_rest(name)
        failpoint("relay.dot_sent")
        reply = Reply(code=250, enhanced_status="2.0.0", text=f"captured as {name}.eml")
        failpoint("relay.replied")
        return reply

    async def close(self) -> None:
        """Nothing is kept open."""

    def _write_body(self, name: str, letter: Letter) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        envelope = {
            "mail_from": letter.mail_from,
            "recipient": letter.recipient,
            "stream": letter.stream,
            "captured_at": self._clock().isoformat(),
            "size": len(letter.octets),
            "sha256": hashlib.sha256(letter.octets).hexdigest(),
        }
        _write_synced(
            self._folder / f".{name}.json", json.dumps(envelope, ensure_ascii=False, indent=1).encode() + b"\n"
        )
        _write_synced(self._folder / f".{name}.eml", letter.octets)

    def _drop_rest(self, name: str) -> None:
        for ending in ("json", "eml"):
            with suppress(OSError):
                os.unlink(self._folder / f".{name}.{ending}")

    def _rename(self, name: str) -> None:
        for ending in ("json", "eml"):
            os.rename(self._folder / f".{name}.{ending}", self._folder / f"{name}.{ending}")
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_synced(path: Path, octets: bytes) -> None:
    with path.open("wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
