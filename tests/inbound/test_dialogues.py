"""Every dialogue of dialogues/*.txt and dialogues/lmtp/*.txt, played against a real door.

`C: line` is sent with CR LF; `C| octets` is sent as it stands, with Python's escapes; `S: pattern` must match the next reply
(`*` for anything, lines of one reply joined by ` / `); `S: (closed)` expects the end; `K: n` is the number of mails kept so
far; `# …` is a comment; `L: limit value` sets a limit of the door, the intake or a share and stands first; `L: proxy yes` makes us
a trusted host that begins with a PROXY header.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from conftest import House, Talk

from gateway.inbound.door import Door
from gateway.inbound.door_limits import Shares
from gateway.inbound.intake import IntakeLimits
from gateway.inbound.lmtp_door import LmtpDoor
from gateway.inbound.smtp_door import SmtpDoor
from gateway.inbound.xforward import TrustedHosts
from gateway.web.provenance import parse_networks

DIALOGUES = sorted((Path(__file__).parent / "dialogues").rglob("*.txt"))


@pytest.mark.parametrize("path", DIALOGUES, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def test_the_door_keeps_to_the_dialogue(path: Path, house: House) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    limits = dict(line[3:].split() for line in lines if line.startswith("L: "))
    door = await open_door(house, LmtpDoor if path.parent.name == "lmtp" else SmtpDoor, limits)
    talk = await Talk.with_door(door)
    try:
        for number, line in enumerate(lines, 1):
            await play(line, talk, house, where=f"{path.name}, line {number}: {line}")
    finally:
        talk.close()


async def open_door(house: House, kind: type[Door], words: dict[str, str]) -> Door:
    is_proxied = words.pop("proxy", "no") == "yes"
    limits = {name: float(value) if "." in value else int(value) for name, value in words.items()}
    shares, intake = (
        {name: limits.pop(name) for name in of.__dataclass_fields__ if name in limits and name != "mail_bytes"}
        for of in (Shares, IntakeLimits)
    )
    return await house.open_door(
        kind,
        listen=f"127.0.0.1:0?proxy={'yes' if is_proxied else 'no'}",
        trusted_hosts=TrustedHosts(parse_networks(["127.0.0.1"])) if is_proxied else None,
        intake=house.intake(limits=IntakeLimits(**intake)) if intake else None,
        shares=Shares(**shares),
        **limits,
    )


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
    assert len(DIALOGUES) > 40
