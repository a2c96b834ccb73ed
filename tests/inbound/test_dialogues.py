"""Every dialogue of dialogues/**/*.txt, played against a real door: clear/ by SMTP, tls/ at a door with a certificate where ann
may log in with `secret`, lmtp/ by LMTP, those beside the folders by SMTP in the clear and under TLS from the first octet on.

`C: line` is sent with CR LF; `C| octets` is sent as it stands, with Python's escapes; `S: pattern` must match the next reply
(`*` for anything, lines of one reply joined by ` / `); `S: (closed)` expects the end; `K: n` is the number of mails kept so
far; `T: starttls` shakes hands; `# …` is a comment; `L: limit value` sets a limit of the door, the intake or a share and stands
first; `L: proxy yes` makes us a trusted host that begins with a PROXY header.
"""

from __future__ import annotations

import ssl
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from conftest import House, Talk

from gateway.errors import TransientFailure
from gateway.inbound.certificate import Certificates
from gateway.inbound.door_auth import Shown
from gateway.inbound.door_limits import Shares
from gateway.inbound.intake import IntakeLimits
from gateway.inbound.lmtp_door import LmtpDoor
from gateway.inbound.smtp_door import SmtpDoor
from gateway.inbound.xforward import TrustedHosts
from gateway.reply import Reply
from gateway.web.provenance import parse_networks

DIALOGUES = sorted((Path(__file__).parent / "dialogues").rglob("*.txt"))
FOR_BOTH = [path for path in DIALOGUES if path.parent.name == "dialogues"]


class AnnOnly:
    """Knows one password."""

    async def prove(self, shown: Shown, *, client: str) -> str:
        if shown.name == "busy":
            raise TransientFailure("later", reply=Reply(code=454, enhanced_status="4.7.0", text="try again later"))
        return "ann@example.org" if (shown.name, shown.password) == ("ann@example.org", "secret") else ""


@pytest.mark.parametrize("path", DIALOGUES, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def test_the_door_keeps_to_the_dialogue(
    path: Path, house: House, certificates: Certificates, client_context: ssl.SSLContext
) -> None:
    lines = lines_of(path)
    kind = LmtpDoor if path.parent.name == "lmtp" else SmtpDoor
    more: dict[str, Any] = {"certificates": certificates, "logins": AnnOnly()} if path.parent.name == "tls" else {}
    talk = await Talk.with_door(await house.open_door(kind, **limits_of(lines, house), **more))
    await play_all(lines, talk, house, client_context)


@pytest.mark.parametrize("path", FOR_BOTH, ids=lambda path: path.stem)
async def test_the_door_keeps_to_it_under_tls(
    path: Path, house: House, certificates: Certificates, client_context: ssl.SSLContext
) -> None:
    lines = lines_of(path)
    door = await house.open_door(SmtpDoor, certificates=certificates, **limits_of(lines, house))
    assert isinstance(door, SmtpDoor)
    await door.start_tls("127.0.0.1:0")
    await play_all(lines, await Talk.with_tls_door(door, client_context), house, client_context)
    assert {ticket.headers["tls"][:4] for ticket in await house.tickets()} <= {"TLSv"}


def lines_of(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def limits_of(lines: list[str], house: House) -> dict[str, Any]:
    """What the door is opened with."""
    words = dict(line[3:].split() for line in lines if line.startswith("L: "))
    is_proxied = words.pop("proxy", "no") == "yes"
    given: dict[str, Any] = {name: float(value) if "." in value else int(value) for name, value in words.items()}
    shares = {name: given.pop(name) for name in Shares.__dataclass_fields__ if name in given}
    intake = {name: given.pop(name) for name in ("header_bytes", "hops") if name in given}
    found = {"failed_login_seconds": 0.0, "shares": Shares(**shares)} | given
    if is_proxied:
        found |= {"listen": "127.0.0.1:0?proxy=yes", "trusted_hosts": TrustedHosts(parse_networks(["127.0.0.1"]))}
    return found | ({"intake": house.intake(limits=IntakeLimits(**intake))} if intake else {})


async def play_all(lines: list[str], talk: Talk, house: House, context: ssl.SSLContext) -> None:
    try:
        for number, line in enumerate(lines, 1):
            if line == "T: starttls":
                await talk.start_tls(context)
            else:
                await play(line, talk, house, where=f"line {number}: {line}")
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
    assert len(DIALOGUES) > 40
