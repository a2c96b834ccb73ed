"""The patterns of a topic exchange: which subscribers a key reaches, the same on every engine."""

from __future__ import annotations

import re
from functools import lru_cache


def topic_matches(pattern: str, key: str) -> bool:
    """Whether a key of words parted by dots matches: `*` is one word, `#` any number of them, none included."""
    return _expression(pattern).fullmatch("." + key) is not None


@lru_cache(maxsize=1000)
def _expression(pattern: str) -> re.Pattern[str]:
    words: list[str] = []
    for word in pattern.split("."):
        if word != "#" or words[-1:] != ["#"]:  # a row of them means no more than one and costs far more
            words.append(word)
    parts = {"*": r"\.[^.]*", "#": r"(?:\.[^.]*)*"}
    return re.compile("".join(parts.get(word, r"\." + re.escape(word)) for word in words))
