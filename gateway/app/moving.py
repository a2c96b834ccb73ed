"""What new URLs in the settings leave behind in `data_dir`, and `gateway move`, which carries it to where they point.

A move is of one kind, told by the schemes of its URLs: `amqp(s)` is a queue, `postgresql` a ledger, `file`, `s3` and
`database:` (the one of `database_url`) are blobs; what a file of SQLite holds is looked up in it.
Blobs that are not mounted (`data_dir/blobs.mark` knows of them) are neither left behind nor taken for none.
Limits: two files of SQLite, or two servers of one kind, are no case for a move: a file is renamed, a server has tools of its
own; the way back from RabbitMQ is to let its tickets finish.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, unquote

from gateway.app.in_use import emptied
from gateway.app.making import blob_mark
from gateway.errors import PermanentFailure, Problem, SettingsError, StoreUnavailable
from gateway.queue.amqp_url import SCHEMES as AMQP_SCHEMES
from gateway.queue.amqp_url import amqp_urls
from gateway.runtime import utc_now
from gateway.settings import Settings, without_secrets
from gateway.sqlite_file import table_names
from gateway.whole_file import write_whole

if TYPE_CHECKING:
    from gateway.store.blobs import BlobStore
    from gateway.watch.move import Part

Kind = Literal["ledger", "blobs", "queue"]
Tell = Callable[[str, int, int], None]
_ORDER = ("database_url", "blobs_url", "queue_url")  # a ticket may be worked as soon as it is there
_SQLITE = "sqlite:///"
_IN_DATABASE = "database:"
_MOVED = "moved"  # the file that says so of a folder of blobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One thing to carry."""

    kind: Kind
    source: str
    target: str

    async def look(self, settings: Settings) -> None:
        """Raises for a gateway at work and a target that lets nobody in: the old place of another part is not closed yet."""
        look = {"queue": _look_at_queue, "ledger": _look_at_ledger, "blobs": _look_at_blobs}[self.kind]
        with emptied(settings.data_dir):
            await look(self, settings)

    async def run(self, settings: Settings, tell: Tell) -> list[Part]:
        """Carries it, or goes on with it; no lines where it had moved before. Raises for what it must not touch."""
        work = {"queue": _move_queue, "ledger": _move_ledger, "blobs": _move_blobs}[self.kind]
        with emptied(settings.data_dir):
            return await work(self, settings, tell)


async def refuse_to_strand(settings: Settings) -> None:
    """Raises SettingsError where data_dir holds what these settings would leave behind unfinished."""
    problems = await stranded(settings)
    if problems:
        raise SettingsError(problems)


async def stranded(settings: Settings) -> list[Problem]:
    """What these settings would leave behind in data_dir: counts, and the cure, by the keys that lead elsewhere."""
    left = await _left(settings)
    return [Problem(key, f"{text}; {await _cure(settings, key)}") for key, text in left.items()]


async def what_is_left(settings: Settings) -> list[Move]:
    """What `gateway move` without further words carries."""
    left = await _left(settings)
    return [await what_moves(_own(settings)[key], getattr(settings, key)) for key in _ORDER if key in left]


async def what_moves(source: str, target: str) -> Move:
    """The move between two URLs; raises SettingsError for two that do not go together."""
    kinds = {kind for url in (source, target) if (kind := await _kind_of(url))}
    if not kinds:
        raise _refusal("one of the two must tell what moves: amqp(s)://, postgresql://, or a file that is there")
    if len(kinds) > 1:
        shown = f"{without_secrets(source)} and {without_secrets(target)}"
        raise _refusal(f"{shown} are places of different things: {' and '.join(sorted(kinds))}")
    kind = kinds.pop()
    if source.startswith(_SQLITE) and target.startswith(_SQLITE):
        here, there = _path_of(source), _path_of(target)
        raise _refusal(f"a file needs no carrying, while nothing runs `mv {here} {there}` does it")
    if kind == "queue" and not source.startswith(_SQLITE):
        raise _refusal("tickets leave RabbitMQ by being worked: let them finish there")
    if kind == "ledger" and not (source.startswith(_SQLITE) or target.startswith(_SQLITE)):
        raise _refusal("from server to server a ledger goes by pg_dump and pg_restore")
    return Move(kind=kind, source=source, target=target)


def _refusal(text: str) -> SettingsError:
    return SettingsError([Problem("move", text)])


async def _kind_of(url: str) -> Kind | None:
    """What a URL is the place of; None for a file of SQLite that is not there, or holds neither queue nor ledger."""
    if url.startswith(AMQP_SCHEMES):
        amqp_urls(url, "move")
        return "queue"
    if url.startswith(("postgresql://", "postgres://")):
        return "ledger"
    if url.startswith(("file:///", "s3://")) or url == _IN_DATABASE:
        return "blobs"
    if url.startswith(_SQLITE):
        names = await table_names(_path_of(url))
        return "queue" if "tickets" in names else "ledger" if "alembic_version" in names else None
    raise _refusal(f"{without_secrets(url)!r} is no place that something moves from or to")


def _path_of(url: str) -> Path:
    return Path(unquote(url.removeprefix(_SQLITE)))


def _own(settings: Settings) -> dict[str, str]:
    """The places a house begins with, by the keys that say so."""
    folder = quote(str(settings.data_dir))
    return {
        "database_url": f"{_SQLITE}{folder}/store.db",
        "blobs_url": f"file://{folder}/blobs",
        "queue_url": f"{_SQLITE}{folder}/queue.db",
    }


async def _left(settings: Settings) -> dict[str, str]:
    """What `data_dir` still holds that the settings have elsewhere, in words, by their keys."""
    from gateway.client import queue_file
    from gateway.store.database import file_of

    ledger, blobs, queue = (settings.data_dir / name for name in ("store.db", "blobs", "queue.db"))
    left = {}
    if ledger.exists() and not _is_same(ledger, file_of(settings.database_url)):
        left["database_url"] = await _ledger_left(ledger)
    if (_has_blobs(blobs) or _is_away(blobs, settings)) and not _is_same(blobs, _folder_of(settings.blobs_url)):
        away = (
            "" if _has_blobs(blobs) else " (it is not mounted; are they lost for good, delete blobs.mark in data_dir)"
        )
        left["blobs_url"] = f"{blobs} holds blobs that the ledger names{away}"
    if queue.exists() and not _is_same(queue, queue_file(settings.queue_url)):
        left["queue_url"] = await _tickets_left(queue)
    return {key: text for key, text in left.items() if text}


def _is_same(path: Path, other: Path | None) -> bool:
    return other is not None and path.absolute() == other.absolute()


async def _ledger_left(path: Path) -> str:
    from gateway.store.database import open_as_it_is
    from gateway.store.migrations import current_version
    from gateway.store.moving import count_rows, has_moved

    database = await open_as_it_is(f"{_SQLITE}{quote(str(path))}")
    try:
        if await current_version(database) is None or await has_moved(database):
            return ""
        rows = await count_rows(database)
    finally:
        await database.close()
    return f"{path} holds a ledger ({', '.join(f'{count} {name}' for name, count in rows.items())})"


async def _tickets_left(path: Path) -> str:
    from gateway.queue.moving import what_is_left

    left = await what_is_left(path)
    if not left:
        return ""
    told = ", ".join(f"{count} {queue}" for queue, count in sorted(left.tickets.items()))
    aside = "a move of it was not ended" if left.is_under_way else ""
    return f"{path} still holds {sum(left.tickets.values())} tickets ({', '.join(filter(None, (told, aside)))})"


def _folder_of(blobs_url: str) -> Path | None:
    return Path(unquote(blobs_url.removeprefix("file://"))) if blobs_url.startswith("file:///") else None


def _is_away(folder: Path, settings: Settings) -> bool:
    """Whether blobs were kept there that are not mounted now; what was begun and is empty is there."""
    was_begun = blob_mark(settings).knows(_own(settings)["blobs_url"])
    return was_begun and (not folder.is_dir() or next(folder.iterdir(), None) is None)


def _has_blobs(folder: Path) -> bool:
    """Whether blobs came after the last move of them, if there was one: settings may have been set back for a while."""
    moved = folder / _MOVED
    return _last_put(folder) > (moved.stat().st_mtime_ns if moved.exists() else 0)


def _last_put(folder: Path) -> int:
    """When a blob last came into a folder of them; 0 where there is none."""
    parts = [part for part in folder.glob("[0-9a-f][0-9a-f]") if any(part.iterdir())]
    return max((part.stat().st_mtime_ns for part in parts), default=0)


async def _cure(settings: Settings, key: str) -> str:
    """What to do about what is left: carry it, or what `move` itself says instead."""
    try:
        await what_moves(_own(settings)[key], getattr(settings, key))
    except SettingsError as refused:
        return f"set it back, or: {refused.problems[0].message}"
    return "stop the gateway everywhere and run `gateway move`, or set it back"


async def _look_at_queue(move: Move, settings: Settings) -> None:
    from gateway.queue.amqp_migrate import connect

    await (await connect(amqp_urls(move.target))).close()


async def _look_at_ledger(move: Move, settings: Settings) -> None:
    from gateway.store.database import open_as_it_is
    from gateway.store.migrations import current_version

    if move.target.startswith(_SQLITE):
        return
    database = await open_as_it_is(move.target)
    try:
        await current_version(database)
    finally:
        await database.close()


async def _look_at_blobs(move: Move, settings: Settings) -> None:
    from gateway.store.blobs import open_own_blob_store

    if move.target.startswith("s3://") and not await open_own_blob_store(move.target).is_there():
        raise StoreUnavailable(f"blobs: there is no bucket at {without_secrets(move.target)}")


async def _move_queue(move: Move, settings: Settings, tell: Tell) -> list[Part]:
    from gateway.queue.amqp_moving import Staging
    from gateway.queue.moving import MovingQueue
    from gateway.queue.receipts import ReceiptFile
    from gateway.watch.move import move_queue

    async with AsyncExitStack() as stack:
        receipts = await stack.enter_async_context(ReceiptFile(settings.data_dir / "receipts.db"))
        to = without_secrets(move.target)
        source = await stack.enter_async_context(MovingQueue(_path_of(move.source), to=to))
        staging = await stack.enter_async_context(Staging(amqp_urls(move.target), source.name))
        return await move_queue(source, staging, receipts, tell=tell)


async def _move_ledger(move: Move, settings: Settings, tell: Tell) -> list[Part]:
    from gateway.store.database import open_as_it_is
    from gateway.watch.move import move_ledger

    async with AsyncExitStack() as stack:
        if move.source.startswith(_SQLITE):
            stack.enter_context(_empty_beside(_path_of(move.source), settings))
        source = await open_as_it_is(move.source, patiently=True)
        stack.push_async_callback(source.close)
        target = await open_as_it_is(move.target, patiently=True)
        stack.push_async_callback(target.close)
        return await move_ledger(source, target, to=without_secrets(move.target), tell=tell)


async def _move_blobs(move: Move, settings: Settings, tell: Tell) -> list[Part]:
    from gateway.watch.move import move_blobs

    emptied_folder = _folder_of(move.source)
    last_put = _last_put(emptied_folder) if emptied_folder else 0
    async with AsyncExitStack() as stack:
        source, target = [await _open_blobs(url, settings, stack) for url in (move.source, move.target)]
        if blob_mark(settings).knows(move.source) and not await source.is_there():
            raise PermanentFailure(f"the blobs of {without_secrets(move.source)} are not there: is it mounted?")
        if (filled := _folder_of(move.target)) is not None:
            (filled / _MOVED).unlink(missing_ok=True)
        part = await move_blobs(source, target, now=utc_now(), tell=tell)
        if part.is_whole:
            await target.begin()
            blob_mark(settings).note(move.target)
    if emptied_folder is not None and emptied_folder.is_dir() and part.is_whole:
        _note_moved(emptied_folder, to=without_secrets(move.target), last_put=last_put)
    return [part]


def _note_moved(folder: Path, *, to: str, last_put: int) -> None:
    """The note is as old as the youngest blob it is about."""
    write_whole(folder / _MOVED, f"its blobs are at {to}\n".encode())
    os.utime(folder / _MOVED, ns=(last_put, last_put))


async def _open_blobs(url: str, settings: Settings, stack: AsyncExitStack) -> BlobStore:
    from gateway.store.blobs import open_blob_store, open_own_blob_store
    from gateway.store.database import open_database

    if url != _IN_DATABASE:
        return open_own_blob_store(url)
    database = await open_database(settings.database_url)
    stack.push_async_callback(database.close)
    return open_blob_store(url, database)


@contextmanager
def _empty_beside(path: Path, settings: Settings) -> Iterator[None]:
    """No gateway runs in the folder of a file, if that is another one than this house's."""
    if not path.exists():
        raise PermanentFailure(f"{path} is not there")
    if path.parent.absolute() == settings.data_dir.absolute():
        yield
    else:
        with emptied(path.parent):
            yield
