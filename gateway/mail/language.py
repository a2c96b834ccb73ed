"""Which language somebody writes in, by simple means: what the mail's headers say, else the little words of its text.

Good enough to choose the words of a notice; '' when nothing speaks clearly.  Looks at the first `_LOOKED_AT` characters.
"""

from __future__ import annotations

import re
from collections import Counter

_LOOKED_AT = 1_000
_CLEARLY = 2
_TAG = re.compile(r"\s*([A-Za-z]{2,3})(?:-[A-Za-z0-9-]{1,40})?\s*(?:;\s*q\s*=\s*([0-9.]{1,6}))?\s*")
_WORDS = re.compile(r"[^\W\d_]+")
_UKRAINIAN = re.compile(r"[іїєґ]", re.IGNORECASE)
_LITTLE_WORDS = {
    "en": "the and of to is in you that it for with are this have was not from hello thanks please",
    "de": "der die das und ist nicht ich ein eine mit für auf den von im wir sie hallo danke bitte grüße",
    "fr": "le la les et est un une des dans que pour pas avec vous nous sur bonjour merci au ce",
    "es": "el la los las y es un una que de en para con por no se hola gracias muy saludos",
    "uk": "і та що в на не з це до як але для від ми ви він вона дякую привіт будь ласка",
}
_OF_WORD: dict[str, list[str]] = {}
for _language, _text in _LITTLE_WORDS.items():
    for _little in _text.split():
        _OF_WORD.setdefault(_little, []).append(_language)


def language_of(content_language: str, accept_language: str, text: str) -> str:
    """The primary tag (`de`) of the language a mail is in, by its headers first (RFC 3282), then by its text."""
    return _preferred(content_language) or _preferred(accept_language) or _guessed(text[:_LOOKED_AT])


def _preferred(value: str) -> str:
    """The language that a header wants most; the first of equals."""
    best, best_weight = "", 0.0
    for item in value[:500].split(","):
        match = _TAG.fullmatch(item)
        weight = _number(match[2]) if match else 0.0
        if match and weight > best_weight:
            best, best_weight = match[1].lower(), weight
    return best


def _number(text: str | None) -> float:
    try:
        return float(text) if text else 1.0
    except ValueError:
        return 0.0


def _guessed(text: str) -> str:
    words = Counter(_WORDS.findall(text.lower()))
    votes: Counter[str] = Counter()
    for word in words.keys() & _OF_WORD.keys():
        for language in _OF_WORD[word]:
            votes[language] += words[word]
    if _UKRAINIAN.search(text):
        votes["uk"] += _CLEARLY
    ranked = votes.most_common(2)
    if not ranked or ranked[0][1] < _CLEARLY or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return ""
    return ranked[0][0]
