"""A restored backup sends nothing again unasked: the mark outside the database tells that the ledger went back."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.contract.email_send import SendEmail
from gateway.errors import StoreUnavailable
from gateway.mail.ids import new_id
from gateway.reply import Reply
from gateway.store.database import Database, open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.ledger import Claim
from gateway.store.ledger_mark import (
    WENT_BACK,
    LedgerMark,
    Position,
    begin_anew,
    held_back,
    hold_what_is_open,
    note_last_dot,
    older_position,
    position_of,
)

ANN = "ann@example.org"
OK = Reply(code=250, enhanced_status="2.0.0", text="ok")
LATER = Reply(code=451, enhanced_status="4.3.0", text="later")


@pytest.fixture
def mark(tmp_path: Path) -> LedgerMark:
    return LedgerMark(tmp_path / "ledger.mark")


@pytest.fixture
def ledger_on(blobs, clock, mark: LedgerMark) -> Callable[[Database], DatabaseLedger]:
    return lambda database: DatabaseLedger(database, blobs, clock=clock, hostname="mx.test", mark=mark)


@pytest.fixture
def restored(database_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Awaitable[str]]:
    """Backs the store up, lets something happen, and names the store as it is after the restore."""

    async def restore(database: Database, meanwhile: Callable[[], Awaitable[None]]) -> str:
        if database_url.startswith("sqlite"):
            backup = tmp_path / "backup.db"
            with closing(sqlite3.connect(tmp_path / "store.db")) as source, closing(sqlite3.connect(backup)) as target:
                source.backup(target)
            await meanwhile()
            await database.close()
            for path in tmp_path.glob("store.db-*"):
                path.unlink()
            shutil.copy(backup, tmp_path / "store.db")
            return database_url
        server = request.getfixturevalue("postgres_server")
        name = urlsplit(database_url).path[1:]
        await database.close()
        server.run(f"CREATE DATABASE {name}_backup TEMPLATE {name}")
        await database.open()
        await meanwhile()
        await database.close()
        request.addfinalizer(lambda: server.run(f"DROP DATABASE {name}_backup WITH (FORCE)"))
        return database_url.replace(name, f"{name}_backup")

    return restore


async def accept(ledger: DatabaseLedger, *, on_unknown: str = "resend") -> str:
    email = SendEmail(id=new_id(), to=(ANN,), subject="s", text="t", on_unknown=on_unknown)
    await ledger.record_accepted(
        email, app="", content_hash="h", ticket_id="t", stream="normal", message_id=f"<{email.id}@mx.test>"
    )
    return email.id


async def claim(ledger: DatabaseLedger, email_id: str) -> Claim:
    found = await ledger.claim(email_id, ANN, ticket_id="t", lifetime_seconds=60)
    assert isinstance(found, Claim), found
    return found


async def send(ledger: DatabaseLedger, email_id: str) -> None:
    claimed = await claim(ledger, email_id)
    await ledger.record_dot_sent(claimed)
    await ledger.record_relayed(claimed, relay="r", reply=OK)


async def test_what_was_open_in_the_backup_is_held_and_nothing_is_sent_again_unasked(
    database: Database, restored, ledger_on, mark: LedgerMark, clock
) -> None:
    ledger = ledger_on(database)
    assert await older_position(database, mark) is None
    done, pending, delayed, on_its_way, after_dot = [await accept(ledger) for _ in range(5)]
    await send(ledger, done)
    failed = await claim(ledger, delayed)
    await ledger.record_delayed(failed, relay="r", reply=LATER, reason="x", next_attempt_at=clock(), ticket_id="t")
    await claim(ledger, on_its_way)
    await ledger.record_dot_sent(await claim(ledger, after_dot))

    async def a_day() -> None:
        for email_id in (pending, delayed, await accept(ledger)):
            await send(ledger, email_id)

    url = await restored(database, a_day)
    again = await open_database(url)
    ledger = ledger_on(again)
    older = await older_position(again, mark)
    assert older == await position_of(again)
    assert await hold_what_is_open(again, ledger, now=clock()) == 4
    await begin_anew(again, mark, older.epoch)
    assert await older_position(again, mark) is None

    clock.advance(3600)
    await ledger.sweep_expired()
    assert await ledger.overdue(older_than_seconds=0) == []
    states = {}
    for email_id in (done, pending, delayed, on_its_way, after_dot):
        [row] = await ledger.recipients(email_id)
        states[email_id] = (str(row.disposition), row.reason)
        assert not isinstance(await ledger.claim(email_id, ANN, ticket_id="t", lifetime_seconds=60), Claim)
    assert states == {
        done: ("relayed", ""),
        pending: ("held", WENT_BACK),
        delayed: ("held", WENT_BACK),
        on_its_way: ("held", WENT_BACK),
        after_dot: ("unknown", WENT_BACK),
    }
    assert set(await held_back(again)) == {pending, delayed, on_its_way, after_dot}
    assert await ledger.cancel(after_dot) == 1
    assert await ledger.release(pending) == 1
    await claim(ledger, pending)
    await again.close()


async def test_a_ledger_that_went_on_and_another_ledger_are_not_taken_for_an_old_one(
    database: Database, ledger_on, mark: LedgerMark
) -> None:
    ledger = ledger_on(database)
    assert await older_position(database, mark) is None
    for _ in range(3):
        await send(ledger, await accept(ledger))
    assert await older_position(database, mark) is None
    mark.follow(Position(epoch="another", number=10**9), went_back=False)
    assert await older_position(database, mark) is None


async def test_the_host_that_starts_first_finds_out_and_the_others_leave_alone_what_came_since(
    database: Database, restored, blobs, clock, tmp_path: Path
) -> None:
    marks = [LedgerMark(tmp_path / name) for name in ("here.mark", "there.mark")]
    ledgers = [DatabaseLedger(database, blobs, clock=clock, hostname="mx.test", mark=mark) for mark in marks]
    for mark in marks:
        assert await older_position(database, mark) is None
    sent_elsewhere = await accept(ledgers[0])

    async def the_other_host_sends() -> None:
        await send(ledgers[1], sent_elsewhere)
        await note_last_dot(database, marks[0])
        await send(ledgers[1], await accept(ledgers[1]))  # and a moment later another one

    again = await open_database(await restored(database, the_other_host_sends))
    ledger = DatabaseLedger(again, blobs, clock=clock, hostname="mx.test", mark=marks[0])
    here, there = LedgerMark(tmp_path / "here.mark"), LedgerMark(tmp_path / "there.mark")
    older = await older_position(again, here)
    assert older is not None
    assert await hold_what_is_open(again, ledger, now=clock()) == 1
    await begin_anew(again, here, older.epoch)
    accepted_since = await accept(ledger)
    await begin_anew(again, LedgerMark(tmp_path / "here.mark"), older.epoch)  # a second process that came later to it
    assert await older_position(again, here) is None
    assert await older_position(again, there) is None
    assert (here.read() or older).epoch == (await position_of(again)).epoch == (there.read() or older).epoch
    await note_last_dot(again, marks[0])  # of a process that was at the old epoch still
    assert marks[0].epoch == (await position_of(again)).epoch
    [row] = await ledger.recipients(accepted_since)
    assert row.disposition == "pending"
    await again.close()


async def test_a_mark_is_never_lowered_by_a_process_that_is_behind(mark: LedgerMark) -> None:
    mark.follow(Position(epoch="e", number=5), went_back=False)
    for number in (9, 7):
        mark.note(number)
    mark.follow(Position(epoch="e", number=6), went_back=False)
    assert mark.read() == Position(epoch="e", number=9)


async def test_no_dot_goes_out_that_cannot_be_marked(database: Database, blobs, clock, tmp_path: Path) -> None:
    mark = LedgerMark(tmp_path / "missing" / "ledger.mark")
    ledger = DatabaseLedger(database, blobs, clock=clock, hostname="mx.test", mark=mark)
    claimed = await claim(ledger, await accept(ledger))
    with pytest.raises(StoreUnavailable, match="mark"):
        await ledger.record_dot_sent(claimed)
