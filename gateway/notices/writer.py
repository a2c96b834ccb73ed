"""From a chosen notice to the octets that go out: words in the reader's language, facts for machines, the mail's header.

The same for the ledger and for the outage ledger: what it needs is in the notice and in the octets it is handed.
Limit: a template that cannot be filled is the caller's to wait for; nothing is sent without words for people.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Protocol

from gateway.contract.email_send import SendEmail
from gateway.mail.addresses import Address, wire_mailbox
from gateway.mail.dsn import Head, Report, write_notice
from gateway.mail.loop_guard import header_octets
from gateway.notices.words import House, language_of, params_of
from gateway.store.notice_plans import Stage
from gateway.store.notices import TEMPLATE, Notice, Written

_RETRIED = timedelta(days=5)
_ACTIONS: dict[str, tuple[Any, str]] = {
    Stage.DELAYED: ("delayed", "4.3.0"),
    Stage.HELD: ("delayed", "4.2.0"),
    Stage.PARTIAL: ("delivered", "2.6.4"),  # RFC 3463: conversion with loss
    Stage.FAILED: ("failed", "5.7.1"),
}


class Words(Protocol):
    """A filled template."""

    @property
    def subject(self) -> str: ...

    @property
    def text(self) -> str: ...

    @property
    def html(self) -> str: ...


Fill = Callable[[str, dict[str, Any], str], Awaitable[Words]]
"""(template, params, locale) → its parts; the cage's work, handed in by the app."""


class NoticeWriter:
    """Writes notices in the name of one house."""

    def __init__(self, house: House, fill: Fill) -> None:
        self._house = house
        self._fill = fill

    async def write(self, notice: Notice, source: bytes) -> Written:
        """The notice as it goes out; `source` holds the mail whose header is returned. Raises what filling raises."""
        params, language = params_of(notice, self._house), language_of(notice, self._house)
        words = await self._fill(TEMPLATE, params, language)
        head = Head(
            id=notice.id,
            from_=Address(mailbox=self._house.postmaster, name=self._house.hostname),
            to=notice.addressee,
            subject=words.subject,
            date=notice.told_at or notice.due_at,
            hostname=self._house.hostname,
            answers=str(notice.facts.get("message_id") or ""),
        )
        report = _report(notice, source) if source else None
        octets = write_notice(head, text=words.text, html=words.html, report=report)
        request = SendEmail(
            id=notice.id,
            template=TEMPLATE,
            to=(wire_mailbox(notice.addressee),),
            params=params,
            locale=language,
        )
        return Written(request=request, subject=words.subject, message_id=head.message_id, octets=octets)


def _report(notice: Notice, source: bytes) -> Report:
    facts, stage = notice.facts, notice.stage.partition("-")[0]
    action, status = _ACTIONS[stage]
    arrived_at = datetime.fromisoformat(facts["received_at"])
    last = facts.get("last_attempt_at")
    return Report(
        recipient=notice.recipient,
        action=action,
        status=status,
        arrived_at=arrived_at,
        log_id=notice.subject,
        headers=header_octets(source),
        diagnostic=str(facts.get("reply") or "") if action == "failed" else "",
        last_attempt_at=datetime.fromisoformat(last) if last else None,
        retried_until=arrived_at + _RETRIED if stage == Stage.DELAYED else None,
    )
