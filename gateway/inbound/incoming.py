"""The data of one mail while it comes in: finds its end, takes the extra dots out (RFC 5321, section 4.5.2), keeps the rest.

It is fed what the socket gives, in pieces of any size, and scans each piece once, with no regard for lines.
Promises: only CR LF . CR LF ends the data; the octets are exactly the client's; what is larger than a mail may be, or than
the room that all mails coming in have together, is thrown away while it comes and its end is still found.
Limits: a mail is held in memory.  `octets` joins the pieces, so that for a moment it is held twice.
"""

from __future__ import annotations

import asyncio

from gateway.reply import Reply

END_OF_DATA = b"\r\n.\r\n"
LINE_WITH_DOT = b"\r\n."
_UNDECIDED = len(END_OF_DATA) - 1
FREE_BYTES = 256 * 1024
_PIECE_BYTES = 64 * 1024


class Room:
    """How many octets all mails coming in may hold in memory at once; one for all doors of a process.

    The first 256 KiB of a mail are free, so that ordinary mail goes on while large ones fill the room.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self.held = 0

    def has(self, size: int) -> bool:
        return self.held + max(0, size - FREE_BYTES) <= self._limit

    def take(self, size: int) -> bool:
        """Takes room for `size` octets; False when there is not that much."""
        if self.held + size > self._limit:
            return False
        self.held += size
        return True

    def give_back(self, size: int) -> None:
        self.held -= size


class Incoming:
    """One mail's data; `refusal` is the reply to a mail that was too much, `wire_bytes` all that was read for it."""

    def __init__(self, *, mail_bytes: int, room: Room) -> None:
        self.refusal: Reply | None = None
        self.wire_bytes = 0
        self._mail_bytes = mail_bytes
        self._room = room
        self._held = 0
        self._size = 0
        self._pieces: list[bytearray] = []
        # The line end of the DATA command stands before the first line: so `.` right after 354 is an ordinary end of data.
        self._tail = b"\r\n"
        self._to_skip = len(self._tail)

    def feed(self, data: bytes) -> bytes | None:
        """Takes what came; returns what stands behind the end of the data, None while there is no end."""
        self.wire_bytes += len(data)
        window = self._tail + data
        dot = window.find(LINE_WITH_DOT)  # one search tells of most pieces that they hold neither an end nor a dot
        end = window.find(END_OF_DATA, dot) if dot >= 0 else -1
        if end >= 0:
            self._keep(window[: end + 2], has_dots=dot < end)
            return window[end + len(END_OF_DATA) :]
        cut = _cut(window)
        self._keep(window[:cut], has_dots=dot >= 0)
        self._tail = window[cut:]
        return None

    async def octets(self) -> bytes:
        """The mail; to be asked once."""
        pieces, self._pieces = self._pieces, []
        if self._size > FREE_BYTES:
            return await asyncio.to_thread(b"".join, pieces)
        return b"".join(pieces)

    def close(self) -> None:
        """Gives the room back. Idempotent."""
        self._pieces = []
        self._room.give_back(self._held)
        self._held = 0

    def _keep(self, piece: bytes, *, has_dots: bool) -> None:
        if has_dots:
            piece = piece.replace(LINE_WITH_DOT, b"\r\n")
        if self._to_skip:
            skipped = min(self._to_skip, len(piece))
            self._to_skip -= skipped
            piece = piece[skipped:]
        if self.refusal is None and piece:
            self._size += len(piece)
            self.refusal = self._judge()
            if self.refusal is None:
                self._store(piece)
            else:
                self.close()

    def _store(self, piece: bytes) -> None:
        """Joins small pieces: an object for every segment of two octets would cost twenty times what the room counts."""
        if self._pieces and len(self._pieces[-1]) < _PIECE_BYTES:
            self._pieces[-1] += piece
        else:
            self._pieces.append(bytearray(piece))

    def _judge(self) -> Reply | None:
        if self._size > self._mail_bytes:
            text = f"the mail is larger than {self._mail_bytes} bytes"
            return Reply(code=552, enhanced_status="5.3.4", text=text)
        more = max(0, self._size - FREE_BYTES) - self._held
        if not self._room.take(more):
            return NO_ROOM
        self._held += more
        return None


NO_ROOM = Reply(code=452, enhanced_status="4.3.1", text="too many large mails at once, try again later")


def _cut(window: bytes) -> int:
    """Up to where nothing can belong to an end of data, and no CR LF . is cut in two."""
    cut = max(0, len(window) - _UNDECIDED)
    if window[max(0, cut - 2) : cut + 1] == LINE_WITH_DOT:
        return cut - 2
    if window[max(0, cut - 1) : cut + 2] == LINE_WITH_DOT:
        return cut - 1
    return cut
