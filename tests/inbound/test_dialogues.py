"""Every dialogue of dialogues/*.txt and dialogues/lmtp/*.txt, played against a real door.

`C: line` is sent with CR LF; `C| octets` is sent as it stands, with Python's escapes; `S: pattern` must match the next reply
(`*` for anything, lines of one reply joined by ` / `); `S: (closed)` expects the end; `K: n` is the number of mails kept so
far; `# …` is a comment; `L: limit value` sets a limit of the door and stands first.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from conftest import House, Talk

from gateway.inbound.lmtp_door import LmtpDoor
from gateway.inbound.smtp_door import SmtpDoor

DIALOGUES = sorted((Path(__file__).parent / "dialogues").rglob("*.txt"))


@pytest.mark.parametrize("path", DIALOGUES, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def test_the_door_keeps_to_the_dialogue(path: Path, house: House) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    limits = dict(line[3:].split() for line in lines if line.startswith("L: "))
    kind = LmtpDoor if path.parent.name == "lmtp" else SmtpDoor
    door = await house.open_door(
        kind, **{name: float(value) if "." in value else int(value) for name, value in limits.items()}
    )
    talk = await Talk.with_door(door)
    try:
        for number, line in enumerate(lines, 1):
            await play(line, talk, house, where=f"{path.name}, line {number}: {line}")
    finally:
        talk.close()


async def play(line: str, talk: Talk, house: House, *, where: str) -> None:
    kind, text = line[:2], line[3:]
    if kind == "C:":
        await talk.send(text.encode() + b"\r\n")
    elif kind == "C|":
        await talk.send(text.encode("latin-1").decode("unicode_escape").encode("latin-1"))
    elif kind == "K:":
        kept = sum(depth.ready for depth in await house.broker.depths())
        assert kept == int(text), f"{where}: {kept} mails are kept"
    elif kind == "S:":
        reply = await talk.reply()
        wanted = "" if text == "(closed)" else text
        assert fnmatchcase(reply.replace("[", "("), wanted.replace("[", "(")), f"{where}: the door said {reply!r}"
    else:
        assert kind == "L:", where


def test_there_are_dialogues() -> None:
    assert len(DIALOGUES) > 15
