"""The canonical form of JSON (RFC 8785): equal values give equal octets, whoever wrote them.

Used to hash requests, so that an id tells the same content from other content on every version of the gateway.
`json_problems` finds what has no such form beforehand (RFC 7493): NaN, integers beyond 2**53, lone surrogates, values
that are not JSON.  `measure` comes before both: it tells what is too large or too deep for either, and stops there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

MAX_DEPTH = 32
MAX_SAFE_INTEGER = 2**53 - 1


def canonical_json(value: Any) -> str:
    """Returns the RFC 8785 form; expects a value in which `json_problems` finds nothing."""
    if isinstance(value, dict):
        members = sorted(value.items(), key=lambda member: member[0].encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{_string(key)}:{canonical_json(item)}" for key, item in members) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(canonical_json, value)) + "]"
    if isinstance(value, str):
        return _string(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _number(float(value))


def measure(value: Any, *, nodes: int, characters: int) -> str:
    """Returns what is too much about `value`, "" when nothing is; looks no further than the limits it is given."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            return f"is nested deeper than {MAX_DEPTH} levels"
        nodes -= len(level)
        if nodes < 0:
            return "has too many values"
        characters -= sum(len(item) for item in level if isinstance(item, str))
        found: list[Any] = []
        for item in level:
            if isinstance(item, dict | list | tuple):
                if len(item) > nodes:
                    return "has too many values"
                characters -= sum(len(key) for key in item if isinstance(key, str)) if isinstance(item, dict) else 0
                found.extend(item.values() if isinstance(item, dict) else item)
                if len(found) > nodes:
                    return "has too many values"
        if characters < 0:
            return "is too long"
        level, depth = found, depth + 1
    return ""


def json_problems(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yields (path, what is wrong) for everything inside `value` that has no canonical form."""
    if len(path) > MAX_DEPTH:
        yield path, f"is nested deeper than {MAX_DEPTH} levels"
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not _is_text(key):
                yield path, f"has the key {key!r}, which is not text"
            else:
                yield from json_problems(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from json_problems(item, (*path, index))
    else:
        problem = _scalar_problem(value)
        if problem:
            yield path, problem


def _scalar_problem(value: Any) -> str:
    if isinstance(value, str):
        return "" if _is_text(value) else "is not Unicode text (a lone surrogate)"
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return "" if abs(value) <= MAX_SAFE_INTEGER else "is an integer beyond 2**53, give it as a string"
    if isinstance(value, float):
        return "" if math.isfinite(value) else "is not a finite number"
    return f"is not a JSON value ({type(value).__name__})"


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _string(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    """ECMAScript's Number::toString (ECMA-262 section 6.1.6.1.20); Python's repr has the same shortest digits."""
    if value == 0:
        return "0"
    if value < 0:
        return "-" + _number(-value)
    _, figures, exponent = Decimal(repr(value)).as_tuple()
    point = len(figures) + int(exponent)
    digits = "".join(map(str, figures)).rstrip("0")
    if 0 < point <= 21:
        return digits.ljust(point, "0") if len(digits) <= point else f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{tail}e{'+' if point > 0 else '-'}{abs(point - 1)}"
