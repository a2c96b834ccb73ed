"""How lists and stories look on a terminal: data on stdout, one object a line with --json, aligned columns without.

Values of peers are made harmless: control and bidi characters never reach the terminal raw.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

MAX_CELL_CHARACTERS = 48
_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True)
class Lines:
    """A fact that takes several lines (one at least), the first of which says it all."""

    lines: Sequence[str]


def in_words(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same with what was found out of the sender as lines for people."""
    from gateway.inbound.authenticate.words import words_of

    found = {key: item[key] for key in ("authentication", "auth") if isinstance(item.get(key), Mapping)}
    return {**item, **{key: Lines(words) for key, value in found.items() if (words := words_of(value))}}


def printable(value: Any) -> str:
    """One line of text, whatever the value was."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    return "".join(c if c.isprintable() and c not in _BIDI else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> int:
    """Prints a list, oldest first; returns how many lines of data."""
    if as_json:
        return sum(_print_json(row) for row in rows)
    kept = [[*(_cell(row.get(name)) for name in columns[:-1]), printable(row.get(columns[-1]))] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *kept]) for i in range(len(columns))]
    if kept:
        for line in [list(columns), *kept]:
            _out("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return len(kept)


def print_object(item: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints one object: its facts (`Lines` one below the other), then lists of objects as indented lines (the timeline)."""
    if as_json:
        _print_json(item)
        return
    for key, value in item.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            _out(f"{key}:")
            for line in value:
                _out("  " + "  ".join(_fact(name, fact) for name, fact in line.items() if fact not in (None, "", {})))
        elif isinstance(value, Lines):
            _out(f"{key}: {printable(value.lines[0])}")
            for text in value.lines[1:]:
                _out(f"  {printable(text)}")
        elif value not in (None, "", [], {}):
            _out(f"{key}: {printable(value)}")


def _fact(name: str, fact: Any) -> str:
    if name == "at":
        return printable(fact)
    if isinstance(fact, Mapping):
        return " ".join(f"{key}={printable(value)}" for key, value in fact.items() if value not in (None, "", [], {}))
    return printable(fact) if name == "step" else f"{name}={printable(fact)}"


def _cell(value: Any) -> str:
    text = printable(value)
    return text if len(text) <= MAX_CELL_CHARACTERS else text[: MAX_CELL_CHARACTERS - 1] + "…"


def _print_json(item: Mapping[str, Any]) -> int:
    _out(json.dumps(item, ensure_ascii=False, default=_plain))
    return 1


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _out(line: str) -> None:
    sys.stdout.write(line + "\n")
