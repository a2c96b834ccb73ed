"""Replay: mails that were held, failed or dead are processed anew, from the octets as they were received.

It only publishes tickets of the same mail id, one a recipient, marked `replay`; the worker opens the rows and goes the
ordinary way.  So it may be said twice: the second ticket finds what the first one did.  What was delivered (or is a
duplicate, or was discarded) is left alone.  A release is a replay of what was held, and tells the mailbox so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gateway.mail.disposition import Disposition
from gateway.queue.ticket import MAIL_INBOUND, Ticket
from gateway.store.mail_rows import DeliveryRecord
from gateway.store.mails import StoredMail

REPLAY = "replay"
RELEASE = "released"
WAITS_FOR_A_PERSON = (Disposition.HELD, Disposition.FAILED, Disposition.DEAD)


def is_replayable(row: DeliveryRecord) -> bool:
    """Whether there is anything to do anew; one that is pending is tried now, whatever it waits for."""
    return row.disposition in (*WAITS_FOR_A_PERSON, Disposition.PENDING)


def replay_tickets(mail: StoredMail, recipients: Iterable[str], *, is_release: bool = False) -> list[Ticket]:
    """The tickets that bring these recipients before their mailboxes again."""
    facts = {"sha256": mail.sha256, "size": mail.size, REPLAY: True} | ({RELEASE: True} if is_release else {})
    facts |= {"blob": mail.blob} if mail.blob else {}
    return [
        Ticket(
            queue=MAIL_INBOUND,
            id=mail.envelope.mail_id,
            body=mail.octets,
            content_type="message/rfc822",
            headers=replace(mail.envelope, rcpt_to=(rcpt_to,)).to_headers() | facts,
        )
        for rcpt_to in recipients
    ]
