"""The story in plain words: every step of a timeline as a sentence a person understands, its raw facts beside it.

Promises: every step the store writes has its words here (a test holds both against each other); a step of a newer version
is shown by its name, never hidden.  Values of strangers stay text: what is returned is escaped by the template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_Words = tuple[str, str]  # tone, sentence with {facts}

_MAIL: dict[str, _Words] = {
    "received": ("start", "Came in by {door} from {mail_from} and was kept."),
    "delivered": ("good", "Delivered to the mailbox {mailbox}: a post was made of it."),
    "duplicate": ("plain", "The same mail had been delivered before; nothing new was made of it."),
    "discarded": ("plain", "Discarded: nothing was made of it."),
    "held": ("warn", "Held: it waits for a person to decide."),
    "deferred": ("warn", "Could not be finished; it will be tried again by itself."),
    "failed": ("bad", "Given up: the mailbox did not take it."),
    "dead": ("bad", "Became a dead letter: it is an operator's turn."),
    "replayed": ("plain", "Taken up anew from the octets as they were received."),
    "release_asked": ("plain", "{by} let it go on to its mailbox."),
    "replay_asked": ("plain", "{by} asked for it to be processed anew."),
    "retry_asked": ("plain", "{by} put the dead letter back into its queue."),
    "drop_asked": ("plain", "{by} threw the dead letter away."),
    "notice_sent": ("plain", "{to} was told of it by mail."),
    "confirmation_asked": ("plain", "Its sender was asked whether it is really from him."),
    "unconfirmed": ("plain", "Nobody said in time that it is really from him."),
    "nobody_told": ("plain", "Nobody was told of it by mail."),
}
_EMAIL: dict[str, _Words] = {
    "accepted": ("start", "Accepted from {app}: from now on it is ours to send."),
    "rejected": ("bad", "Refused: the request was wrong and never became an email."),
    "rendered": ("plain", "Written from its template; every attempt sends these same octets."),
    "claimed": ("plain", "Attempt {attempt} began."),
    "dot_sent": ("plain", "The whole email was handed over; only the relay's answer was missing."),
    "relayed": ("good", "The relay {relay} took it."),
    "late_relayed": ("good", "The relay {relay} took it; its answer came late."),
    "delayed": ("warn", "Not now, said {relay}; it will be tried again by itself."),
    "failed": ("bad", "Refused for good by {relay}."),
    "unknown": ("warn", "No answer came after it was handed over: it may have arrived or not."),
    "claim_released": ("plain", "The attempt was given back before anything was sent."),
    "held": ("warn", "Held: it waits for a person to decide."),
    "dead": ("bad", "Became a dead letter: it is an operator's turn."),
    "revived": ("plain", "Put back: it is tried again."),
    "cancelled": ("plain", "Cancelled: it will not be sent."),
    "suppressed": ("plain", "Not sent: this address is on the list of those we do not write to."),
    "bounced": ("bad", "It came back: the address could not be reached."),
    "complained": ("bad", "The recipient marked it as unwanted."),
    "released": ("plain", "Let go on."),
    "expired": ("bad", "Its time ran out before it could be sent."),
    "turn_came": ("plain", "Its turn came: whatever stood before it with the key {serial_key} is over."),
    "sent_back": ("plain", "Waits for its turn: an email before it with the key {serial_key} is not over."),
    "reissued": ("plain", "Its place in the queue had been lost and was made anew."),
    "retry_asked": ("plain", "{by} put the dead letter back into its queue."),
    "drop_asked": ("plain", "{by} threw the dead letter away."),
}
_POST: dict[str, _Words] = {
    "created": ("start", "The post was made."),
    "photo_rendered": ("good", "A photo was made ready to be looked at."),
    "photo_refused": ("bad", "A photo could not be taken."),
    "retry_asked": ("plain", "{by} put the dead letter back into its queue."),
    "drop_asked": ("plain", "{by} threw the dead letter away."),
}
WORDS: Mapping[str, Mapping[str, _Words]] = {"mail": _MAIL, "email": _EMAIL, "post": _POST}
_UNNAMED = {
    "app": "an app",
    "mail_from": "nobody in particular (<>)",
    "relay": "the relay",
    "by": "Somebody",
    "to": "Somebody",
}
_BY = {"command": "Somebody at the terminal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of a story: `note` is the reason or the relay's own words, `facts` all that was recorded."""

    at: str
    step: str
    tone: str
    sentence: str
    recipient: str
    note: str
    next_attempt_at: str
    facts: Mapping[str, Any]


def steps(kind: str, timeline: list[dict[str, Any]]) -> list[Step]:
    """The story of a mail, an email or a post, oldest first."""
    return [_step(kind, line) for line in timeline]


def _step(kind: str, line: Mapping[str, Any]) -> Step:
    data: Mapping[str, Any] = line["data"]
    tone, words = WORDS[kind].get(line["step"], ("plain", str(line["step"]).replace("_", " ").capitalize() + "."))
    return Step(
        at=line["at"],
        step=line["step"],
        tone=tone,
        sentence=words.format_map(_Facts(data)) if "{" in words else words,
        recipient=line["recipient"],
        note=_note(line["step"], data),
        next_attempt_at=str(data.get("next_attempt_at") or ""),
        facts={key: value for key, value in data.items() if value not in (None, "", [], {})},
    )


def _note(step: str, data: Mapping[str, Any]) -> str:
    """The reason and the relay's words, and who did it where the sentence does not say so."""
    errors = data.get("errors") or []
    told = [str(data.get(name) or "") for name in ("reason", "why", "reply")]
    told += [f"{item.get('path')}: {item.get('message')}" for item in errors if isinstance(item, Mapping)]
    if data.get("by") and not step.endswith("_asked") and str(data["by"]) not in told[0]:
        told.append(f"by {data['by']}")
    return " · ".join(dict.fromkeys(item for item in told if item))


class _Facts(dict[str, str]):
    """The values a sentence may name; a missing one has a word, so that no sentence breaks."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__({key: str(value) for key, value in data.items() if value not in (None, "")})
        if self.get("by") in _BY:
            self["by"] = _BY[self["by"]]

    def __missing__(self, key: str) -> str:
        return _UNNAMED.get(key, "?")
