"""The new words of an answer, apart from the mail it quotes.  Home of mail-parser-reply.

Promises: nothing is lost (text and quoted, put together, are the whole but for empty lines between them), nothing is ever
stripped to nothing, and an answer written between or below quoted lines is left whole.  The library only says where the
quote begins; its patterns can be made to run for ever, so it works in the cage, on texts of limited size, and a text it
cannot do in time stays whole.
Limits: signatures stay; a quote is known by the introductions of the languages below or by its `>`.
"""

from __future__ import annotations

from typing import Any

from gateway.errors import JobFailed
from gateway.mail.parse import Cage

MAX_CHARACTERS = 64 * 1024
_LANGUAGES = ["en", "de", "fr", "es", "it", "nl", "pl", "sv", "da", "cs"]
_CPU_SECONDS = 1.0
_WALL_SECONDS = 30.0


async def strip_reply(text: str, cage: Cage) -> tuple[str, str]:
    """Returns the new text and what was cut off it."""
    if not text.strip() or len(text) > MAX_CHARACTERS:
        return text, ""
    octets = text.encode("utf-8", "surrogatepass")
    try:
        answer, _ = await cage.run(
            "gateway.mail.reply_text:strip_job", {}, octets, cpu_seconds=_CPU_SECONDS, wall_seconds=_WALL_SECONDS
        )
    except JobFailed:
        return text, ""
    lines = text.split("\n")
    kept = answer["lines"]
    return "\n".join(lines[:kept]).rstrip(), "\n".join(lines[kept:]).strip("\n")


def strip_job(request: dict[str, Any], octets: bytes) -> tuple[dict[str, Any], bytes]:
    """The cage's entry: how many of the text's lines are new."""
    return {"lines": new_lines(octets.decode("utf-8", "surrogatepass"))}, b""


def new_lines(text: str) -> int:
    """How many lines from the top are the author's own; all of them where that cannot be told."""
    lines = [line.strip() for line in text.split("\n")]
    cut = min(_introduction(text, lines), _trailing_quote(lines))
    return cut if any(lines[:cut]) and not _is_answered_below(lines[cut:]) else len(lines)


def _introduction(text: str, lines: list[str]) -> int:
    """The line with which the quoted mail is introduced."""
    from mailparser_reply import EmailReplyParser

    replies = EmailReplyParser(languages=list(_LANGUAGES)).read(text).replies
    headers = [reply.headers.strip() for reply in replies if reply.headers and reply.headers.strip()]
    if not headers:
        return len(lines)
    first = headers[0].split("\n")[0].strip()
    return lines.index(first) if first in lines else len(lines)


def _trailing_quote(lines: list[str]) -> int:
    """Where the quoted lines at the end begin."""
    start = len(lines)
    while start and (not lines[start - 1] or lines[start - 1].startswith(">")):
        start -= 1
    return start if any(lines[start:]) else len(lines)


def _is_answered_below(rest: list[str]) -> bool:
    """Whether somebody wrote on behind a quoted line: then no cut is right."""
    quoted = False
    for line in rest:
        if line == "--":
            return False
        if line and quoted and not line.startswith(">"):
            return True
        quoted = quoted or line.startswith(">")
    return False
