"""format=flowed text (RFC 3676): lines that end in a space go on in the next one.

Promises: quote depth is kept (`> ` per level), stuffed spaces are taken away, the signature line `-- ` never flows; linear.
"""

from __future__ import annotations

_SIGNATURE = "-- "


def unflow(text: str, *, delsp: bool) -> str:
    """Joins the flowed lines of `text` (lines end in LF); `delsp` drops the space that marked the flow (section 4.1)."""
    joined: list[str] = []
    pending: list[str] = []
    pending_depth = 0
    for line in text.split("\n"):
        depth, content = _quoted(line)
        if pending and (depth != pending_depth or content == _SIGNATURE):
            joined.append(_requoted(pending_depth, "".join(pending)))
            pending = []
        pending_depth = depth
        if content.endswith(" ") and content != _SIGNATURE:
            pending.append(content[:-1] if delsp else content)
            continue
        joined.append(_requoted(depth, "".join([*pending, content])))
        pending = []
    if pending:
        joined.append(_requoted(pending_depth, "".join(pending)))
    return "\n".join(joined)


def _quoted(line: str) -> tuple[int, str]:
    content = line.lstrip(">")
    return len(line) - len(content), content.removeprefix(" ")


def _requoted(depth: int, content: str) -> str:
    return f"{'>' * depth} {content}" if depth else content
