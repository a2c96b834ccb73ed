"""The data of a mail: its end, its dots and its room, however the socket cuts it."""

from __future__ import annotations

import asyncio
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from gateway.inbound.incoming import FREE_BYTES, Incoming, Room

AFTER = b"MAIL FROM:<>\r\n"
WIRE = st.lists(st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\0", b"x", b"abcdefgh"]), max_size=40).map(
    b"".join
)
CUTS = st.lists(st.integers(min_value=1, max_value=7), min_size=1, max_size=20)


def read_whole(wire: bytes) -> tuple[bytes, bytes]:
    """What RFC 5321, section 4.5.2, says, done in one piece."""
    body, _, rest = (b"\r\n" + wire).partition(b"\r\n.\r\n")
    return (body + b"\r\n").replace(b"\r\n.", b"\r\n")[2:], rest


@given(WIRE, CUTS)
def test_any_cut_reads_as_the_whole(lines: bytes, cuts: list[int]) -> None:
    wire = lines + b"\r\n.\r\n" + AFTER
    incoming = Incoming(mail_bytes=10_000, room=Room(10_000))
    rest, position, turn = None, 0, 0
    while rest is None:
        piece = wire[position : position + cuts[turn % len(cuts)]]
        rest = incoming.feed(piece)
        position, turn = position + len(piece), turn + 1
    octets, rest_of_whole = read_whole(wire)
    assert asyncio.run(incoming.octets()) == octets
    assert rest + wire[position:] == rest_of_whole


def test_a_mail_of_exactly_the_limit_passes_and_one_more_does_not() -> None:
    for size, passes in ((1000, True), (1001, False)):
        incoming = Incoming(mail_bytes=1000, room=Room(0))
        assert incoming.feed(b"x" * (size - 2) + b"\r\n.\r\n") == b""
        assert (incoming.refusal is None) is passes


def test_dots_added_by_the_client_do_not_count() -> None:
    incoming = Incoming(mail_bytes=30, room=Room(0))
    assert incoming.feed(b"..\r\n" * 10 + b".\r\n") == b""
    assert incoming.refusal is None
    assert asyncio.run(incoming.octets()) == b".\r\n" * 10


def test_large_mails_share_the_room_and_small_ones_need_none() -> None:
    room = Room(FREE_BYTES)
    first, second, small = (Incoming(mail_bytes=10**9, room=room) for _ in range(3))
    first.feed(b"x" * FREE_BYTES * 2)
    second.feed(b"x" * (FREE_BYTES + 1000))
    small.feed(b"x" * FREE_BYTES)
    assert (first.refusal, small.refusal) == (None, None)
    assert second.refusal is not None
    assert second.refusal.enhanced_status == "4.3.1"
    assert room.held == FREE_BYTES - 4
    assert not room.has(FREE_BYTES * 2)
    first.close()
    first.close()
    assert room.held == 0


def test_what_is_refused_is_still_read_to_its_end() -> None:
    incoming = Incoming(mail_bytes=10, room=Room(0))
    assert incoming.feed(b"x" * 1000 + b"\r\n.") is None
    assert incoming.feed(b"\r\nQUIT\r\n") == b"QUIT\r\n"
    assert incoming.refusal is not None
    assert incoming.refusal.code == 552


def test_segments_of_two_octets_cost_no_more_memory_than_they_carry() -> None:
    incoming, times = Incoming(mail_bytes=10**9, room=Room(10**9)), 200_000
    tracemalloc.start()
    try:
        for _ in range(times):
            incoming.feed(b"ab")
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 2 * (2 * times)
    assert incoming.feed(b"\r\n.\r\n") == b""
    assert asyncio.run(incoming.octets()) == b"ab" * times + b"\r\n"
