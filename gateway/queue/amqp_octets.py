"""Reads what any program put into a message's properties as far as it can be read.

The AMQP library reads strictly, and a frame that it cannot read ends the connection with all that is in hand on it.  The broker
hands such a message on as it is and delivers it again: one octet of an app's would stop the house.  So here
    text that is not UTF-8                             has U+FFFD in it
    a moment beyond what Python has                    is None
    a table or list that cannot be read, or is nested
    more than `DEEPEST` deep                           is empty
and the handler judges the ticket.
Limit: it holds for the whole process, an app's other AMQP connections in it included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pamqp import decode

Read = Callable[[bytes], tuple[int, Any]]

DEEPEST = 20
_LENGTH_BYTES = 4
_MOMENT_BYTES = 8


def read_leniently() -> None:
    """Teaches the library so; a second call changes nothing."""
    table = _or_empty(_table, dict)
    decode.METHODS |= {"shortstr": _short_text, "table": table, "timestamp": _moment}
    decode.TABLE_MAPPING |= {b"F": table, b"A": _or_empty(decode.field_array, list), b"T": _moment}


class _Depth(threading.local):
    here = 0


_depth = _Depth()


def _or_empty(read: Read, empty: Callable[[], Any]) -> Read:
    """What begins with its own length can be passed over."""

    def lenient(value: bytes) -> tuple[int, Any]:
        end = _LENGTH_BYTES + int.from_bytes(value[:_LENGTH_BYTES])
        if _depth.here >= DEEPEST:
            return end, empty()
        _depth.here += 1
        try:
            return read(value)
        except ValueError:
            return end, empty()
        finally:
            _depth.here -= 1

    return lenient


def _table(value: bytes) -> tuple[int, dict[str, Any]]:
    end = _LENGTH_BYTES + int.from_bytes(value[:_LENGTH_BYTES])
    if end > len(value):
        raise ValueError("a table that is longer than its frame")
    found: dict[str, Any] = {}
    at = _LENGTH_BYTES
    while at < end:
        used, key = _short_text(value[at:end])
        at += used
        used, found[key] = decode.embedded_value(value[at:end])
        at += used
    return end, found


def _short_text(value: bytes) -> tuple[int, str]:
    end = 1 + value[0]
    return end, value[1:end].decode("utf-8", "replace")


def _moment(value: bytes) -> tuple[int, Any]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return _MOMENT_BYTES, None
