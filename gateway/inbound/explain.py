"""Explain: what ingestion would make of a mail, in words: the same reading and the same decision, and nothing written.

Limits: whether a mail is a copy of one delivered lately is known to the store only, so a duplicate is explained as delivered;
a refused mail is explained as failed, though it is held where its sender cannot be told.
"""

from __future__ import annotations

from typing import Any

from gateway.errors import PermanentFailure
from gateway.inbound.attachments import TypedAttachment
from gateway.inbound.decide import Decider, Decision, ReadMail
from gateway.inbound.mailbox import Post
from gateway.inbound.router import Router
from gateway.mail.envelope import Envelope


async def explain(octets: bytes, envelope: Envelope, decider: Decider, router: Router) -> list[dict[str, Any]]:
    """One object for each recipient of the envelope, ready for JSON."""
    read = await decider.read(envelope, octets)
    told = []
    for rcpt_to in dict.fromkeys(envelope.rcpt_to):
        decision = await decider.decide(envelope, read, rcpt_to)
        told.append(_told(decision, read, envelope) | _at_the_door(router, rcpt_to))
    return told


def _told(decision: Decision, read: ReadMail, envelope: Envelope) -> dict[str, Any]:
    disposition, reason = decision.ruling()
    post = decision.outcome if isinstance(decision.outcome, Post) else None
    attachments = read.attachments if post is None else post.attachments
    return {
        "rcpt_to": decision.rcpt_to,
        "mailbox": decision.mailbox,
        "disposition": str(disposition),
        "reason": reason,
        "author": "" if post is None else post.author,
        "title": read.parsed.subject if post is None else post.title,
        "text": read.parsed.text if post is None else post.text,
        "html": read.parsed.html if post is None else post.html,
        "attachments": [_attachment(item) for item in attachments],
        "defects": list(read.parsed.defects),
        "auth": read.authentication.to_json(),
    }


def _attachment(item: TypedAttachment) -> dict[str, Any]:
    return {name: getattr(item, name) for name in ("filename", "content_type", "sniffed", "size", "sha256")}


def _at_the_door(router: Router, rcpt_to: str) -> dict[str, str]:
    """What a door would have said instead of taking the mail, where it would."""
    try:
        router.accepts(rcpt_to)
    except PermanentFailure as failure:
        return {"door": str(failure.reply)}
    return {}
