"""The lists of mails, emails and posts: filtered, searched, paged and counted.  Commands, API and pages all ask here.

A line stands for one (mail, recipient), one (email, recipient) or one post, ready for JSON; requests that never became an
email stand among the emails.  Pages are cut by key, not by number: a cursor names the last line read by moment, id and
position, so that lines which come meanwhile shift nothing and page 1,000 costs what page 1 does.
A search looks through the lines a slice at a time, so that others are read for between, and stops after so many: a page
may have fewer lines than asked for, even none, and still have a `next`, from where the search goes on.
Limits: a search is blind to case in ASCII letters only; counts read one index whole.
"""

from __future__ import annotations

import base64
import functools
import heapq
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from gateway.mail.disposition import Disposition
from gateway.mail.secret_address import redacted
from gateway.store.database import Database
from gateway.store.email_rows import WAITS_FOR, rejected_line, reply_of, told_reason
from gateway.store.schema import as_json, attachments, deliveries, email_recipients, emails, mails, posts, rejections
from gateway.store.timeline import begins_with

ListKind = Literal["mails", "emails", "posts"]
Row = sa.Row[Any]
Key = tuple[Any, ...]  # moment, id, and what tells the lines of one id apart
MAX_WORDS = 8
SLICE = 5_000
SEARCHED_AT_ONCE = 50_000
_MAX_LETTERS = 1_000  # SQLite refuses patterns of more than 50,000 bytes
_MOST_BEGINNING = 1_000
_MOST_POSITIONS = 2**31
_MANY = (Disposition.RELAYED, Disposition.DELIVERED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list: `limit` lines (None: all) behind the cursor `after`, the newest first unless said otherwise.

    `since` and `until` are the moments between which the lines lie (the first one included, the last one not).
    """

    limit: int | None = 50
    after: str = ""
    oldest_first: bool = False
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One page of lines; `next` is the cursor behind the last one, '' where nothing follows."""

    rows: list[dict[str, Any]]
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """One table's part in a list: how its lines are read, ordered, filtered, searched and told."""

    query: sa.Select[Any]
    order: Sequence[sa.ColumnElement[Any]]
    filters: Mapping[str, sa.ColumnElement[Any]]
    searched: Sequence[sa.ColumnElement[Any]]
    tell: Callable[[Row], dict[str, Any]]
    join: tuple[sa.ColumnElement[Any], sa.ColumnElement[Any]] | None = None
    is_always: Mapping[str, str] = field(default_factory=dict)


class Lists:
    """Reads the lists."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, kind: ListKind, wanted: Mapping[str, str | None] | None = None, page: Page | None = None
    ) -> Listing:
        """One page of a list.

        `wanted` holds filters by column (`filters_of` names them), `id` (the beginning of one) and `text` (words that must
        all stand somewhere in the line); None and '' filter nothing.  Raises ValueError for a filter or cursor that is none.
        """
        chosen = page or Page()
        asked = {name: value for name, value in (wanted or {}).items() if value}
        unknown = set(asked) - set(filters_of(kind))
        if unknown:
            raise ValueError(f"{kind} have no filter {sorted(unknown)[0]!r}; they have {', '.join(filters_of(kind))}")
        after = _read_cursor(kind, chosen.after) if chosen.after else None
        if not asked or "id" in asked or _wants_few(asked):
            return await self._database.read(lambda connection: _listing(connection, kind, asked, chosen, after, None))
        return await self._search(kind, asked, chosen, after)

    async def _search(self, kind: ListKind, wanted: Mapping[str, str], page: Page, after: Key | None) -> Listing:
        rows: list[dict[str, Any]] = []
        looked = 0
        while True:
            rest = page if page.limit is None else replace(page, limit=page.limit - len(rows))
            found, bound = await self._database.read(functools.partial(_slice, kind, wanted, rest, after))
            rows += found.rows
            looked += SLICE
            if found.next or bound is None:
                return Listing(rows=rows, next=found.next)
            if page.limit is not None and (len(rows) >= page.limit or looked >= SEARCHED_AT_ONCE):
                return Listing(rows=rows, next=_write_cursor(bound))
            after = bound

    async def newest(self, kind: ListKind, *, limit: int | None = None, **wanted: str | None) -> list[dict[str, Any]]:
        """The newest `limit` lines (None: all), the oldest of them first: what a terminal shows."""
        found = await self.page(kind, wanted, Page(limit=limit))
        return found.rows[::-1]

    async def counts(self, kind: Literal["mails", "emails"]) -> dict[str, int]:
        """How many recipients there are in each disposition that any is in."""
        column = (deliveries if kind == "mails" else email_recipients).c.disposition
        query = sa.select(column, sa.func.count()).group_by(column).order_by(column)

        def work(connection: sa.Connection) -> dict[str, int]:
            return {str(disposition): number for disposition, number in connection.execute(query)}

        return await self._database.read(work)


def filters_of(kind: ListKind) -> list[str]:
    """The names of a list's filters."""
    return ["id", "text", *_SOURCES[kind][0].filters]


def _slice(
    kind: ListKind, wanted: Mapping[str, str], page: Page, after: Key | None, connection: sa.Connection
) -> tuple[Listing, Key | None]:
    """What is wanted of the next lines behind `after`, and the key of the last line looked at (None: it was the end)."""
    ends = [end for source in _SOURCES[kind] if (end := _end_of_slice(connection, source, page, after)) is not None]
    bound = (min(ends) if page.oldest_first else max(ends)) if ends else None
    return _listing(connection, kind, wanted, page, after, bound), bound


def _end_of_slice(connection: sa.Connection, source: _Source, page: Page, after: Key | None) -> Key | None:
    """Moment and id of the `SLICE`th subject from here; read from one index."""
    columns = source.order[:2]
    query = _ordered(sa.select(*columns), columns, page)
    if after is not None:
        query = query.where(_behind(columns, after[:2], oldest_first=page.oldest_first))
    row = connection.execute(query.limit(1).offset(SLICE - 1)).first()
    return None if row is None else tuple(row)


def _listing(
    connection: sa.Connection,
    kind: ListKind,
    wanted: Mapping[str, str],
    page: Page,
    after: Key | None,
    bound: Key | None,
) -> Listing:
    more = None if page.limit is None else page.limit + 1
    parts = []
    for source in _SOURCES[kind]:
        if _can_have(source, wanted):
            query = _query(source, wanted, page, after)
            if bound is not None:
                query = query.where(_up_to(source.order[:2], bound, oldest_first=page.oldest_first))
            parts.append([(_key(source, row), source, row) for row in connection.execute(query.limit(more))])
    merged = list(heapq.merge(*parts, key=lambda item: item[0], reverse=not page.oldest_first))
    kept = merged[: page.limit]
    rows = [source.tell(row) for _, source, row in kept]
    return Listing(rows=rows, next=_write_cursor(kept[-1][0]) if len(merged) > len(kept) else "")


def _can_have(source: _Source, wanted: Mapping[str, str]) -> bool:
    """Whether any line of this source could be wanted."""
    fits = all(wanted.get(name, value) == value for name, value in source.is_always.items())
    return fits and set(wanted) <= {"id", "text", *source.filters, *source.is_always}


def _query(source: _Source, wanted: Mapping[str, str], page: Page, after: Key | None) -> sa.Select[Any]:
    columns = source.order
    query = source.query.add_columns(*(column.label(f"key_{n}") for n, column in enumerate(columns)))
    if source.join is not None:
        query = query.where(_joined(*source.join, is_few="id" in wanted or _wants_few(wanted)))
    for name, value in wanted.items():
        if name == "id":
            query = query.where(_begins(columns[1], value))
        elif name == "text":
            words = (word[:_MAX_LETTERS] for word in value.split()[:MAX_WORDS])
            query = query.where(*(_stands(source.searched, word) for word in words))
        elif name in source.filters:
            query = query.where(_is(source.filters[name], value))
    if page.since is not None:
        query = query.where(columns[0] >= page.since)
    if page.until is not None:
        query = query.where(columns[0] < page.until)
    if after is not None:
        query = query.where(_behind(columns, after, oldest_first=page.oldest_first))
    return _ordered(query, columns, page)


def _ordered(query: sa.Select[Any], columns: Sequence[sa.ColumnElement[Any]], page: Page) -> sa.Select[Any]:
    return query.order_by(*(column.asc() if page.oldest_first else column.desc() for column in columns))


def _up_to(columns: Sequence[sa.ColumnElement[Any]], bound: Key, *, oldest_first: bool) -> sa.ColumnElement[bool]:
    """Whether a line stands before the bound's subject or is one of its own."""
    reaches = columns[0] <= bound[0] if oldest_first else columns[0] >= bound[0]
    return sa.and_(reaches, sa.not_(_behind(columns, bound, oldest_first=oldest_first)))


def _behind(columns: Sequence[sa.ColumnElement[Any]], after: Key, *, oldest_first: bool) -> sa.ColumnElement[bool]:
    """Whether a line comes after the one that the key names; the first term is what an index can begin at."""
    terms: list[sa.ColumnElement[bool]] = []
    same: list[sa.ColumnElement[bool]] = []
    for column, value in zip(columns, after, strict=False):  # the other source of the list may tell its lines by more
        terms.append(sa.and_(*same, column > value if oldest_first else column < value))
        same.append(column == value)
    begins = columns[0] >= after[0] if oldest_first else columns[0] <= after[0]
    return sa.and_(begins, sa.or_(*terms))


def _wants_few(wanted: Mapping[str, str]) -> bool:
    """Whether a disposition is wanted that few lines have."""
    return wanted.get("disposition", _MANY[0]) not in _MANY


def _begins(column: sa.ColumnElement[Any], prefix: str) -> sa.ColumnElement[bool]:
    # By itself SQLite would rather walk along the moments.
    other = column.table.alias()
    alike = sa.select(other.c[column.name]).where(begins_with(other.c[column.name], prefix))
    return column.in_(alike.limit(_MOST_BEGINNING))


def _joined(child: sa.ColumnElement[Any], parent: sa.ColumnElement[Any], *, is_few: bool) -> sa.ColumnElement[bool]:
    # SQLite's planner knows no numbers here: unless few lines are wanted it must not begin at the child's table, which it
    # would have to read and sort whole for one page.  What is computed cannot be looked up, so it begins at the parent's.
    return child == parent if is_few else child == sa.func.coalesce(parent, "")


def _is(column: sa.ColumnElement[Any], value: str) -> sa.ColumnElement[bool]:
    # For the same reason: nearly every line has one of these.
    return sa.func.coalesce(column, "") == value if value in _MANY else column == value


def _stands(columns: Sequence[sa.ColumnElement[Any]], word: str) -> sa.ColumnElement[bool]:
    return sa.or_(*(column.icontains(word, autoescape=True) for column in columns))


def _key(source: _Source, row: Row) -> Key:
    return tuple(row[-len(source.order) :])


def _write_cursor(key: Key) -> str:
    text = json.dumps([key[0].isoformat(), *key[1:]])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_cursor(kind: ListKind, text: str) -> Key:
    try:
        octets = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        moment, *more = json.loads(octets)
        at = datetime.fromisoformat(moment)
        if at.tzinfo is None or not any(_fits(source, more) for source in _SOURCES[kind]):
            raise ValueError
        at = at.astimezone(UTC)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise ValueError("this is no cursor of this list") from None
    return (at, *more)


def _fits(source: _Source, more: list[Any]) -> bool:
    kinds: list[type] = [int if isinstance(column.type, sa.Integer) else str for column in source.order[1:]]
    if any(isinstance(value, int) and not 0 <= value < _MOST_POSITIONS for value in more):
        return False
    return [type(value) for value in more] in (kinds, [str])  # a search that stopped names no line, only a subject


def _mail_line(row: Row) -> dict[str, Any]:
    return as_json({name: getattr(row, name) for name in (*_MAIL, *_DELIVERY)}) | {"rcpt_to": redacted(row.rcpt_to)}


def _post_line(row: Row) -> dict[str, Any]:
    return as_json({name: getattr(row, name) for name in (*_POST, "attachments")})


def _email_line(row: Row) -> dict[str, Any]:
    reply = reply_of(row)
    told = {"reason": told_reason(row), "reply": str(reply) if reply else "", "enhanced_status": row.reply_enhanced}
    return {"id": row.email_id} | as_json({name: getattr(row, name) for name in (*_RECIPIENT, *_EMAIL)}) | told


_MAIL = ("id", "received_at", "mail_from", "sha256", "size", "subject")
_DELIVERY = ("rcpt_to", "mailbox", "disposition", "reason", "post_id", "duplicate_of", "attempts", "next_attempt_at")
_RECIPIENT = ("recipient", "disposition", "reason", "attempts", "copies", "relay", "next_attempt_at")
_EMAIL = ("template", "stream", "message_id", "accepted_at", "subject", "app", "serial_key", "serial_position")
_POST = ("id", "mailbox", "kind", "author", "author_address", "title", "created_at", "mail_id", "thread_id", "app")
_ATTACHMENTS = (
    sa.select(sa.func.count()).where(attachments.c.post_id == posts.c.id).correlate(posts).scalar_subquery()
).label("attachments")

_MAILS = _Source(
    query=sa.select(*(mails.c[name] for name in _MAIL), *(deliveries.c[name] for name in _DELIVERY)),
    join=(deliveries.c.mail_id, mails.c.id),
    order=(mails.c.received_at, mails.c.id, deliveries.c.position, deliveries.c.id),
    filters={"mail_from": mails.c.mail_from}
    | {name: deliveries.c[name] for name in ("rcpt_to", "mailbox", "disposition")},
    searched=(mails.c.subject, mails.c.mail_from, deliveries.c.rcpt_to, deliveries.c.reason, mails.c.id),
    tell=_mail_line,
)
_EMAILS = _Source(
    query=sa.select(email_recipients, *(emails.c[name] for name in _EMAIL), WAITS_FOR),
    join=(email_recipients.c.email_id, emails.c.id),
    order=(emails.c.accepted_at, emails.c.id, email_recipients.c.position),
    filters={name: email_recipients.c[name] for name in ("recipient", "disposition", "relay")}
    | {name: emails.c[name] for name in ("template", "stream", "app")},
    searched=(
        emails.c.subject,
        email_recipients.c.recipient,
        email_recipients.c.reason,
        email_recipients.c.reply_text,
        emails.c.template,
        emails.c.id,
    ),
    tell=_email_line,
)
_REJECTIONS = _Source(
    query=sa.select(rejections),
    order=(rejections.c.rejected_at, rejections.c.request_id),
    filters={"app": rejections.c.app},
    searched=(rejections.c.reason, rejections.c.request_id),
    tell=rejected_line,
    is_always={"disposition": Disposition.REJECTED},
)
_POSTS = _Source(
    query=sa.select(*(posts.c[name] for name in _POST), _ATTACHMENTS),
    order=(posts.c.created_at, posts.c.id),
    filters={name: posts.c[name] for name in ("mailbox", "kind", "mail_id", "thread_id", "app")},
    searched=(posts.c.title, posts.c.author, posts.c.author_address, posts.c.text, posts.c.id),
    tell=_post_line,
)
_SOURCES: Mapping[ListKind, tuple[_Source, ...]] = {
    "mails": (_MAILS,),
    "emails": (_EMAILS, _REJECTIONS),
    "posts": (_POSTS,),
}
