"""What a list was asked for: the filters, the cursor and the days of a query string, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from fastapi import Request

from gateway.store.lists import Page

PAGE_LINES = 50
_MAX_CHARACTERS = 200
_IN_SIGHT = {"text", "disposition"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`wanted` is what the form shows again; `filters` and `page` are what the list takes."""

    wanted: dict[str, str]
    filters: dict[str, str | None]
    page: Page

    def values(self) -> dict[str, Any]:
        """For the template: `is_narrowed` says that one of the filters is set that are folded away otherwise."""
        is_set = {name for name, value in self.wanted.items() if value and name != "after"}
        return {"wanted": self.wanted, "is_filtered": bool(is_set), "is_narrowed": bool(is_set - _IN_SIGHT)}


def asked(request: Request, names: Sequence[str], *, limit: int = PAGE_LINES) -> Asked:
    """Reads the query; raises ValueError for a day that is none."""
    given = {name: request.query_params.get(name, "").strip()[:_MAX_CHARACTERS] for name in names}
    days = {name: request.query_params.get(name, "").strip() for name in ("since", "until")}
    cursor = request.query_params.get("after", "")
    since, until = _day(days["since"]), _day(days["until"])
    if until is not None:
        until = (
            until + timedelta(days=1) if until.date() < date.max else None
        )  # nothing lies behind the last day there is
    page = Page(limit=limit, after=cursor, since=since, until=until)
    return Asked(wanted=given | days | {"after": cursor}, filters=dict(given), page=page)


def _day(text: str) -> datetime | None:
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no day; days are written 2026-12-31") from None
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
