"""text/enriched (RFC 1896): the words without their commands.

Promises: `<<` is a `<`, parameters are no words, a single line end is a space; linear.  Limits: text/richtext (RFC 1341) is
read the same way, its own commands for signs and lines aside.
"""

from __future__ import annotations

import re

_PARAMETER = re.compile(r"<param>[^<]{0,1000}</param>", re.I)
_COMMAND = re.compile(r"<<|</?[A-Za-z0-9-]{1,60}>")
_LINE_ENDS = re.compile(r"\n+")


def to_text(text: str) -> str:
    """The text (lines end in LF) as people read it."""
    words = _COMMAND.sub(lambda found: "<" if found[0] == "<<" else "", _PARAMETER.sub("", text.rstrip()))
    return _LINE_ENDS.sub(lambda found: "\n" * (len(found[0]) - 1) or " ", words)
