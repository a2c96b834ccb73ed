"""The intake: what is kept, in which form, and what is not."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import House

from gateway.errors import PermanentFailure, QueueUnavailable, StoreUnavailable, TransientFailure
from gateway.inbound.intake import IntakeLimits
from gateway.mail.envelope import Envelope


def envelope(*rcpt_to: str) -> Envelope:
    return Envelope(
        mail_id="",
        mail_from="ann@example.org",
        rcpt_to=rcpt_to or ("posts@localhost",),
        received_at=datetime(2026, 1, 1, tzinfo=UTC),
        door="smtp",
        client="192.0.2.1",
        helo="client",
    )


async def test_a_small_mail_is_one_ticket_with_its_octets_and_envelope(house: House) -> None:
    mail_id = await house.intake().accept(envelope(), b"Subject: x\r\n\r\nx\r\n")
    (ticket,) = await house.tickets()
    assert ticket.id == mail_id
    assert ticket.body == b"Subject: x\r\n\r\nx\r\n"
    assert ticket.content_type == "message/rfc822"
    assert ticket.headers["sha256"] == hashlib.sha256(ticket.body).hexdigest()
    read = Envelope.from_headers(ticket.id, ticket.headers)
    assert (read.mail_from, read.rcpt_to, read.client, read.helo) == (
        "ann@example.org",
        ("posts@localhost",),
        "192.0.2.1",
        "client",
    )


@pytest.mark.parametrize(
    "header", [b"Received: by a\r\n" * 60, b"X-Long: y\r\n" * 12_000, b"Subject: no end of the header" * 5_000]
)
async def test_what_a_mail_server_of_ours_took_is_kept_and_left_to_ingest(header: bytes, house: House) -> None:
    """Refused here, it would be returned to whom a forger named as its sender."""
    octets = header + b"\r\n\r\nx\r\n"
    with pytest.raises(PermanentFailure):
        await house.intake().accept(envelope(), octets)
    assert await house.intake().accept(replace(envelope(), by_trusted_host=True), octets)
    with pytest.raises(PermanentFailure, match="a bare CR"):
        await house.intake().accept(replace(envelope(), by_trusted_host=True), octets + b"\r")


@pytest.mark.parametrize("value", [None, "true", 1, "", [], {"a": True}])
def test_a_ticket_that_does_not_say_so_was_not_handed_over_by_a_trusted_host(value: Any) -> None:
    """Older versions leave it out, and a program that plays door may write anything."""
    headers = envelope().to_headers()
    assert Envelope.from_headers("1", headers | {"by_trusted_host": True}).by_trusted_host
    del headers["by_trusted_host"]
    assert not Envelope.from_headers("1", headers).by_trusted_host
    assert not Envelope.from_headers("1", headers | {"by_trusted_host": value}).by_trusted_host


async def test_a_large_mail_is_a_blob_and_an_empty_ticket(house: House) -> None:
    octets = b"Subject: x\r\n\r\n" + b"y" * 300_000
    await house.intake().accept(envelope(), octets)
    (ticket,) = await house.tickets()
    assert ticket.body == b""
    assert ticket.headers["size"] == len(octets)
    assert await house.blobs.get(str(ticket.headers["blob"])) == octets


async def test_many_recipients_become_tickets_of_a_hundred_with_one_mail_id(house: House) -> None:
    rcpt_to = tuple(f"r{number}@help.example.org" for number in range(250))
    mail_id = await house.intake().accept(envelope(*rcpt_to), b"x\r\n")
    tickets = await house.tickets()
    assert sorted(len(ticket.headers["rcpt_to"]) for ticket in tickets) == [50, 100, 100]
    assert {ticket.id for ticket in tickets} == {mail_id}
    assert sorted(name for ticket in tickets for name in ticket.headers["rcpt_to"]) == sorted(rcpt_to)


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"a\nb\r\n", "5.6.0"),
        (b"a\rb\r\n", "5.6.0"),
        (b"a\0b\r\n", "5.6.0"),
        (b"a\r", "5.6.0"),
        (b"X: y\r\n" * 20_000 + b"\r\nbody\r\n", "5.3.4"),
        (b"Received: from a by b\r\n" * 51 + b"\r\n", "5.4.6"),
        (b"x" * 2_000_001, "5.3.4"),
    ],
)
async def test_what_must_not_be_stored_is_refused_for_good(octets: bytes, status: str, house: House) -> None:
    with pytest.raises(PermanentFailure) as refused:
        await house.intake(limits=IntakeLimits(mail_bytes=2_000_000)).accept(envelope(), octets)
    assert refused.value.reply.enhanced_status == status
    assert await house.tickets() == []


async def test_fifty_hops_and_a_long_header_still_pass(house: House) -> None:
    octets = b"Received: from a by b\r\n" * 50 + b"X: " + b"y" * 100_000 + b"\r\n\r\nReceived: in the text\r\n"
    await house.intake().accept(envelope(), octets)
    assert len(await house.tickets()) == 1


async def test_a_store_that_fails_keeps_the_ticket_from_being_published(house: House) -> None:
    class NoBlobs:
        async def put(self, octets: bytes) -> str:
            raise StoreUnavailable("no disk")

    with pytest.raises(StoreUnavailable):
        await house.intake(blobs=NoBlobs()).accept(envelope(), b"\r\n" + b"x" * 300_000)
    assert await house.tickets() == []


async def test_a_queue_that_fails_is_told(house: House) -> None:
    class NoQueue:
        async def publish(self, tickets: Any) -> None:
            raise QueueUnavailable("down")

    with pytest.raises(QueueUnavailable):
        await house.intake(broker=NoQueue()).accept(envelope(), b"x\r\n")


async def test_too_little_space_is_transient(house: House) -> None:
    with pytest.raises(TransientFailure) as refused:
        await house.intake(min_free_bytes=10**18).accept(envelope(), b"x\r\n")
    assert refused.value.reply.code == 452
