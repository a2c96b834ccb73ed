"""What the template `notices` is given: whitelisted facts of one notice as the params it fills in; never params of others.

Pure, so that a notice taken on again after a crash says the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gateway.mail.links import StatusLinks
from gateway.store.notice_plans import Stage
from gateway.store.notices import Notice

_MAX_SUBJECT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """Who speaks: our name, the address answers go to, links to status pages, and the language for who shows none."""

    hostname: str
    postmaster: str
    links: StatusLinks
    language: str


def params_of(notice: Notice, house: House) -> dict[str, Any]:
    """The params of the template; every key is always there."""
    facts, is_mail = notice.facts, notice.kind == "mail"
    is_alone = notice.stage != Stage.DIGEST
    said = {
        "key": _key(notice),
        "is_mail": is_mail,
        "id": notice.subject,
        "subject": _short(facts.get("subject")),
        "recipient": notice.recipient,
        "sent": _moment(facts.get("received_at") or facts.get("accepted_at")),
        "because": facts.get("because") or "",
        "reply": "" if is_mail else facts.get("reply") or "",
        "template": facts.get("template") or "",
        "link": house.links.of(notice.subject) if is_mail and is_alone else "",
        "hostname": house.hostname,
        "refused": [dict(item) for item in facts.get("refused") or ()],
        "refused_count": facts.get("refused_count") or 0,
        "gathered": [_gathered(item, house) for item in facts.get("gathered") or ()],
        "count": facts.get("count") or 0,
    }
    return {"n": said}


def language_of(notice: Notice, house: House) -> str:
    return str(notice.facts.get("language") or house.language)


def _key(notice: Notice) -> str:
    if notice.stage == Stage.ASKED:
        return f"email-{notice.facts['disposition']}"
    stage, _, number = notice.stage.partition("-")
    return f"{stage}-again" if number not in ("", "1") else stage


def _gathered(item: Mapping[str, Any], house: House) -> dict[str, Any]:
    is_mail = item["received_at"] is not None
    return {
        "stage": item["stage"],
        "subject": _short(item["subject"]),
        "recipient": item["recipient"],
        "sent": _moment(item["received_at"] or item["accepted_at"]),
        "id": item["id"],
        "link": house.links.of(item["id"]) if is_mail else "",
    }


def _short(subject: str | None) -> str:
    text = subject or ""
    return text if len(text) <= _MAX_SUBJECT else text[: _MAX_SUBJECT - 1] + "…"


def _moment(text: str | None) -> dict[str, Any]:
    """A moment as the words of each language put it together."""
    moment = datetime.fromisoformat(text).astimezone(UTC) if text else datetime(1970, 1, 1, tzinfo=UTC)
    return {"day": moment.day, "month": moment.month, "year": moment.year, "clock": f"{moment:%H:%M}"}
