"""What tells that two mails belong to one conversation: clues of a mail, weighed by the store against what it knows.

In this order: a thread id that a signed reply address carried; the Message-IDs it answers (RFC 5322, section 3.6.4); the
same author with the same subject, prefixes of answers and forwards aside.  Pure: nothing here looks anything up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SUBJECT_DAYS = 30
MAX_REFERENCES = 50
_WORDS = "re|aw|antw|antwort|wg|fw|fwd|sv|vs|vb|tr|rv|rif|r|ref|i|res|enc|odp|pd|ynt|ilt|回复|答复|转发"
_PREFIX = re.compile(rf"\s*(?:{_WORDS})\s*(?:\[\d{{1,3}}\]|\(\d{{1,3}}\)|\d{{1,3}})?\s*[:：]\s*", re.I)
_MAX_PREFIXES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadClues:
    """`thread_id` is proved or ''; `references` go from the nearest to the farthest; the rest is hearsay."""

    thread_id: str = ""
    message_id: str = ""
    references: tuple[str, ...] = ()
    subject_key: str = ""
    author_key: str = ""


def references_of(in_reply_to: str, references: tuple[str, ...]) -> tuple[str, ...]:
    """The Message-IDs a mail answers, the nearest first, each once."""
    nearest_first = (in_reply_to, *reversed(references))
    return tuple(dict.fromkeys(item for item in nearest_first if item))[:MAX_REFERENCES]


def subject_key(subject: str) -> str:
    """The subject for comparison: without Re:, Aw:, Fwd: and their like, white space and case."""
    for _ in range(_MAX_PREFIXES):
        match = _PREFIX.match(subject)
        if not match:
            break
        subject = subject[match.end() :]
    return " ".join(subject.split()).casefold()
