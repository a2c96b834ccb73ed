"""The captured mail as a folder to read: what the relay `capture` wrote, newest first.  Nothing here writes.

A list reads each mail's envelope (the `.json` beside it) and the beginning of its header; the mail itself is read when it is
asked for.  Names come from requests, so only names that `capture` makes are looked for, and no symlink is followed.
Promises: a file that is broken, half there or huge is listed with what is known of it and troubles no other.
A search looks at so many and stops: its page may have few mails, even none, and still say where to go on.
Limit: what is larger than `MAX_READ_BYTES` is listed and not read.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gateway.mail.parse.headers import decode_text
from gateway.mail.parse.structure import split_header

MAX_READ_BYTES = 64 * 1024 * 1024
SEARCHED_AT_ONCE = 2_000
_NAME = re.compile(r"(\d{8}T\d{6}\d{6})-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ENVELOPE_BYTES = 64 * 1024
_HEAD_BYTES = 32 * 1024
_HEADER_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedMail:
    """One file: its envelope where that could be read, and what its header says (hearsay)."""

    name: str
    captured_at: datetime
    size: int
    mail_from: str = ""
    recipient: str = ""
    stream: str = ""
    subject: str = ""
    from_: str = ""
    fault: str = ""


class CapturedFolder:
    """Reads one folder; a folder that is not there has nothing in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def page(
        self, *, limit: int, before: str = "", matching: str = ""
    ) -> tuple[Sequence[CapturedMail], str | None]:
        """The newest mails older than the name `before` whose envelope or subject has `matching`; and where to go on."""
        return await asyncio.to_thread(self._page, limit, before, matching.casefold().strip())

    async def find(self, name: str) -> CapturedMail | None:
        return await asyncio.to_thread(self._look, name) if _NAME.fullmatch(name) else None

    async def read(self, name: str) -> bytes | None:
        """The octets, None for a name that is not there or a file that is too large."""
        return await asyncio.to_thread(self._read, name) if _NAME.fullmatch(name) else None

    def _names(self) -> list[str]:
        try:
            found = os.listdir(self.folder)
        except OSError:
            return []
        stems = (name.removesuffix(".eml") for name in found if name.endswith(".eml"))
        return sorted((stem for stem in stems if _NAME.fullmatch(stem)), reverse=True)

    def _page(self, limit: int, before: str, matching: str) -> tuple[list[CapturedMail], str | None]:
        found: list[CapturedMail] = []
        last = ""
        for looked, name in enumerate(name for name in self._names() if not before or name < before):
            if len(found) == limit or looked == SEARCHED_AT_ONCE:
                return found, last
            mail, last = self._look(name), name
            if mail is not None and matching in f"{mail.subject} {mail.recipient} {mail.mail_from}".casefold():
                found.append(mail)
        return found, None

    def _look(self, name: str) -> CapturedMail | None:
        try:
            head, size = _head(self.folder / f"{name}.eml", _HEAD_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            fault = f"cannot be read: {error.strerror or error}"
            return CapturedMail(name=name, captured_at=_moment(name), size=0, fault=fault)
        values, fault = _envelope(self.folder / f"{name}.json")
        end = _HEADER_END.search(head)
        header: dict[str, str] = {}
        for field, value in split_header(head[: end.start()] if end else head):
            header.setdefault(field.lower(), value)
        return CapturedMail(
            name=name,
            captured_at=_moment(name),
            size=size,
            subject=decode_text(header.get("subject", ""))[0],
            from_=decode_text(header.get("from", ""))[0],
            fault=fault,
            **values,
        )

    def _read(self, name: str) -> bytes | None:
        try:
            octets, size = _head(self.folder / f"{name}.eml", MAX_READ_BYTES)
        except OSError:
            return None
        return octets if size <= MAX_READ_BYTES else None


def _head(path: Path, limit: int) -> tuple[bytes, int]:
    """The first octets of a plain file and its whole size; OSError for a link, a folder or a pipe."""
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(number, "rb") as file:
        facts = os.fstat(number)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(f"{path.name} is no plain file")
        return file.read(limit), facts.st_size


def _envelope(path: Path) -> tuple[dict[str, str], str]:
    """What the envelope beside a mail says, and what is wrong with it."""
    try:
        octets, size = _head(path, _ENVELOPE_BYTES)
        told = json.loads(octets) if size <= _ENVELOPE_BYTES else None
    except (OSError, ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        return {}, "its envelope is missing or broken"
    return {key: str(told.get(key, "")) for key in ("mail_from", "recipient", "stream")}, ""


def _moment(name: str) -> datetime:
    """The time in a name; a time that is none is the beginning of ours."""
    try:
        return datetime.strptime(name.partition("-")[0], "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
