"""The lists: every line once whatever page it stands on, filters, search and counts."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.contract.email_send import parse_send_email
from gateway.errors import Problem
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.store.database import open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.lists import Listing, Lists, Page, filters_of
from gateway.store.mails import Mails
from gateway.store.posts import NewPost


async def receive(mails: Mails, clock, *rcpt_to: str, subject: str = "", mail_from: str = "ann@example.org") -> str:
    mail_id = new_id()
    envelope = Envelope(mail_id=mail_id, mail_from=mail_from, rcpt_to=rcpt_to, received_at=clock(), door="smtp")
    await mails.record_received(envelope, b"x", 1, "0" * 64, subject=subject)
    return mail_id


async def accept(ledger: DatabaseLedger, *to: str, app: str = "", **fields: object) -> str:
    request = parse_send_email(json.dumps({"id": new_id(), "to": list(to), "subject": "s", "text": "t"} | fields))
    await ledger.record_accepted(
        request, app=app, content_hash="h", ticket_id=request.id, stream="normal", message_id=f"<{request.id}@mx.test>"
    )
    return request.id


async def all_pages(lists: Lists, kind, *, limit: int, oldest_first: bool = False) -> list[Listing]:
    found = [await lists.page(kind, page=Page(limit=limit, oldest_first=oldest_first))]
    while found[-1].next:
        found.append(await lists.page(kind, page=Page(limit=limit, after=found[-1].next, oldest_first=oldest_first)))
    return found


@pytest.mark.parametrize("oldest_first", [False, True])
async def test_pages_hold_every_line_once_in_the_order_of_the_whole_list(mails, lists, clock, oldest_first) -> None:
    for number in range(7):
        await receive(mails, clock, "a@localhost", "b@localhost", "c@localhost", subject=str(number))
        if number % 2:
            clock.advance(1)
    [whole] = await all_pages(lists, "mails", limit=100, oldest_first=oldest_first)
    assert len(whole.rows) == 21
    for limit in (1, 2, 4, 21):
        pages = await all_pages(lists, "mails", limit=limit, oldest_first=oldest_first)
        assert [row for page in pages for row in page.rows] == whole.rows
        assert all(len(page.rows) == limit for page in pages[:-1])
    assert (await lists.newest("mails"))[:: 1 if oldest_first else -1] == whole.rows


async def test_what_comes_meanwhile_shifts_no_page(mails, lists, clock) -> None:
    ids = []
    for _ in range(4):
        ids.append(await receive(mails, clock, "a@localhost"))
        clock.advance(1)
    first = await lists.page("mails", page=Page(limit=2))
    await receive(mails, clock, "a@localhost")
    second = await lists.page("mails", page=Page(limit=2, after=first.next))
    assert [row["id"] for row in (*first.rows, *second.rows)] == ids[::-1]
    assert second.next == ""


async def test_rejected_requests_stand_among_the_emails_on_every_page(ledger, lists, clock) -> None:
    ids = []
    for number in range(6):
        if number % 2:
            ids.append(new_id())
            await ledger.record_rejected(ids[-1], app="shop", problems=[Problem("to", "is needed")])
        else:
            ids.append(await accept(ledger, "ann@example.org", app="shop"))
        clock.advance(1)
    pages = await all_pages(lists, "emails", limit=1)
    assert [row["id"] for page in pages for row in page.rows] == ids[::-1]
    assert [len(page.rows) for page in pages] == [1] * 6
    assert len((await lists.page("emails", {"app": "shop"})).rows) == 6
    assert (await lists.page("emails", {"app": "other"})).rows == []
    assert len((await lists.page("emails", {"disposition": "rejected"})).rows) == 3
    assert len((await lists.page("emails", {"disposition": "pending"})).rows) == 3
    assert len((await lists.page("emails", {"recipient": "ann@example.org"})).rows) == 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("harbour", ["At the HARBOUR"]),
        ("ben@example.org", ["100%"]),
        ("harbour ann@", ["At the HARBOUR"]),
        ("harbour ben@", []),
        ("photos@", ["At the HARBOUR", "100%", "under_score"]),
        ("%", ["100%"]),
        ("_", ["under_score"]),
        ("'; DROP TABLE mails --", []),
        ("\\", []),
    ],
)
async def test_every_word_of_a_search_must_stand_in_the_line(mails, lists, clock, text, found) -> None:
    await receive(mails, clock, "photos@localhost", subject="At the HARBOUR")
    await receive(mails, clock, "photos@localhost", subject="100%", mail_from="ben@example.org")
    await receive(mails, clock, "photos@localhost", subject="under_score")
    rows = await lists.newest("mails", text=text)
    assert [row["subject"] for row in rows] == found


async def test_an_email_is_found_by_subject_recipient_template_and_the_beginning_of_its_id(ledger, lists) -> None:
    email_id = await accept(ledger, "carla@example.org", subject="Your invoice 4711")
    for wanted in ({"text": "invoice"}, {"text": "CARLA"}, {"text": email_id[:20]}, {"id": email_id[:20].upper()}):
        assert [row["id"] for row in (await lists.page("emails", wanted)).rows] == [email_id], wanted
    assert (await lists.page("emails", {"id": "zz"})).rows == []


async def test_posts_are_listed_with_their_kind_and_found_by_their_text(mails, lists, clock) -> None:
    mail_id = await receive(mails, clock, "posts@localhost")
    post = NewPost(
        mailbox="posts",
        kind="post",
        author="Ann",
        author_address="ann@example.org",
        title="Hello",
        text="from the sea",
        html=None,
        created_at=clock(),
    )
    await mails.record_delivered(mail_id, "posts@localhost", "posts", post)
    for wanted in ({"text": "sea ann"}, {"kind": "post"}, {"mail_id": mail_id}, {"mailbox": "posts"}):
        [row] = (await lists.page("posts", wanted)).rows
        assert (row["title"], row["attachments"], row["mail_id"]) == ("Hello", 0, mail_id)


async def test_dispositions_are_counted(mails, ledger, lists, clock) -> None:
    mail_id = await receive(mails, clock, "a@localhost", "b@localhost")
    await mails.record_held(mail_id, "a@localhost", "posts", "why")
    await accept(ledger, "ann@example.org", "ben@example.org")
    assert await lists.counts("mails") == {"held": 1, "pending": 1}
    assert await lists.counts("emails") == {"pending": 2}


@pytest.mark.parametrize("oldest_first", [False, True])
async def test_a_search_goes_slice_by_slice_and_can_be_gone_on_with(
    mails, ledger, lists, clock, monkeypatch, oldest_first
) -> None:
    monkeypatch.setattr("gateway.store.lists.SLICE", 3)
    monkeypatch.setattr("gateway.store.lists.SEARCHED_AT_ONCE", 6)
    emails = []
    for number in range(20):
        await receive(mails, clock, "a@localhost", "b@localhost", subject="needle" if number % 7 == 0 else "hay")
        if number % 5 == 0:
            await ledger.record_rejected(new_id(), app="shop", problems=[Problem("to", "is needed")])
        emails.append(await accept(ledger, "ann@example.org", subject=f"s{number % 4}"))
        clock.advance(number % 2)
    for kind, wanted, number in (
        ("mails", "needle", 6),
        ("emails", "s3", 5),
        ("emails", "is needed", 4),
        ("mails", "nowhere", 0),
    ):
        pages, after = [], ""
        while not pages or after:
            found = await lists.page(kind, {"text": wanted}, Page(limit=2, after=after, oldest_first=oldest_first))
            pages.append(found.rows)
            after = found.next
        rows = [row for page in pages for row in page]
        whole = await lists.newest(kind, text=wanted)
        assert rows == (whole if oldest_first else whole[::-1])
        assert len(rows) == number
        assert all(len(page) <= 2 for page in pages)
        assert number or len(pages) > 1, "a search that finds nothing stops and says from where to go on"


async def test_a_filter_that_nothing_fits_reads_slices_not_the_whole(mails, lists, clock, monkeypatch) -> None:
    monkeypatch.setattr("gateway.store.lists.SLICE", 2)
    monkeypatch.setattr("gateway.store.lists.SEARCHED_AT_ONCE", 4)
    for _ in range(9):
        await receive(mails, clock, "a@localhost")
    found = await lists.page("mails", {"rcpt_to": "nobody@localhost"})
    assert (found.rows, found.next != "") == ([], True)
    assert await lists.newest("mails", rcpt_to="nobody@localhost") == []


def _cursor(*values: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "%%%",
        "ü",
        "A" * 100_000,
        _cursor(),
        _cursor("2026-01-01T00:00:00", "x", 1),
        _cursor("2026-01-01T00:00:00+00:00", 5),
        _cursor("2026-01-01T00:00:00+00:00"),
        _cursor("2026-01-01T00:00:00+00:00", "x", True, "y"),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    ],
)
async def test_what_is_no_cursor_is_refused(lists, cursor) -> None:
    with pytest.raises(ValueError, match="no cursor"):
        await lists.page("mails", page=Page(after=cursor))


async def test_an_unknown_filter_is_refused_by_name(lists) -> None:
    with pytest.raises(ValueError, match="no filter 'colour'"):
        await lists.page("mails", {"colour": "red"})
    assert "disposition" in filters_of("mails")


async def test_sqlite_reads_the_newest_page_along_an_index(tmp_path: Path) -> None:
    """What SQLite plans for the first page and for one far behind: no whole table is sorted."""
    database = await open_database(f"sqlite:///{tmp_path}/store.db")
    from gateway.store.lists import _SOURCES, _query

    after = (datetime(2026, 1, 1, tzinfo=UTC), "x", 0)
    for kind, moment in (("mails", "received_at"), ("emails", "accepted_at"), ("posts", "created_at")):
        for behind in (None, after):
            query = _query(_SOURCES[kind][0], {}, Page(), behind).limit(51)

            def plan(connection: sa.Connection, query: sa.Select = query) -> str:
                told = query.compile(connection)
                values = tuple(str(told.params[name]) for name in told.positiontup or ())
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {told}", values)
                return "\n".join(row[3] for row in rows)

            told = await database.read(plan)
            assert f"ix_{kind}_{moment}_id" in told, told
            assert "TEMP B-TREE FOR ORDER BY" not in told, told
    await database.close()


@settings(suppress_health_check=[*HealthCheck], max_examples=30)
@given(text=st.text(max_size=300))
async def test_any_text_may_be_searched_for(lists: Lists, text: str) -> None:
    for kind in ("mails", "emails", "posts"):
        assert (await lists.page(kind, {"text": text, "id": text})).rows == []


async def test_an_endless_word_is_searched_for_by_its_beginning(mails, lists, clock) -> None:
    await receive(mails, clock, "a@localhost", subject="ä" * 1_200)
    assert len((await lists.page("mails", {"text": "ä" * 60_000})).rows) == 1
    assert (await lists.page("mails", {"text": "ö" * 60_000})).rows == []
