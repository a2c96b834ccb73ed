"""Every bomb through the real SMTP door of a whole gateway, among ordinary mail: nobody else notices."""

from __future__ import annotations

import random
import smtplib
import sqlite3
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("crash", "parse")]

from bombs import BOMBS  # noqa: E402
from house import House  # noqa: E402

ORDINARY_MAILS = 60
CLIENTS = 4
SETTLE_SECONDS = 90

# Whom the door itself turns away, and the word by which it says why.
REFUSED = {
    "one header of three megabytes": "header",
    "a hundred thousand headers": "header",
    "a header that never ends": "header",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the door said to the data of one mail."""

    name: str
    code: int
    text: str

    @property
    def mail_id(self) -> str:
        return self.text.rsplit(" ", 1)[-1]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(folder=tmp_path / "var", relay_url="capture:")
    house.start()
    try:
        assert house.wait_ready(), house.log()
        yield house
    finally:
        house.kill()


def ordinary(number: int) -> bytes:
    return (
        f"From: ann@example.org\r\nTo: posts@localhost\r\nSubject: ordinary {number}\r\n"
        f"Message-ID: <ordinary-{number}@example.org>\r\n\r\nThe text of {number}.\r\n"
    ).encode()


def with_network_line_ends(octets: bytes) -> bytes:
    """As every client sends it; a bare LF would be turned away before anything is tried."""
    return octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def post(port: int, name: str, octets: bytes) -> Answer:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.localhost", timeout=30) as session:
        session.ehlo()
        session.mail("ann@example.org")
        session.rcpt("posts@localhost")
        code, text = session.data(with_network_line_ends(octets))
    return Answer(name=name, code=code, text=text.decode())


def post_all(port: int, mails: dict[str, bytes]) -> dict[str, Answer]:
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = clients.map(lambda item: post(port, *item), mails.items())
        return {answer.name: answer for answer in answers}


def settled(house: House, mail_ids: set[str]) -> dict[str, tuple[str, str]]:
    """Disposition and reason by mail id, once all have one that is not `pending`."""
    store = sqlite3.connect(f"file:{house.folder}/store.db?mode=ro", uri=True)
    found: dict[str, tuple[str, str]] = {}
    deadline = time.monotonic() + SETTLE_SECONDS
    try:
        while time.monotonic() < deadline:
            rows = store.execute("SELECT mail_id, disposition, reason FROM deliveries").fetchall()
            found = {row[0]: (row[1], row[2]) for row in rows if row[1] != "pending"}
            if mail_ids <= found.keys():
                return found
            time.sleep(0.05)  # another process writes it: there is nothing else to wait on
    finally:
        store.close()
    raise AssertionError(f"{len(mail_ids - found.keys())} mails are still open; log: {house.log()[-3000:]}")


def test_every_bomb_ends_stored_held_or_refused_and_ordinary_mail_goes_on(house: House) -> None:
    mails = {f"ordinary {number}": ordinary(number) for number in range(ORDINARY_MAILS)}
    mails |= {name: make() for name, make in BOMBS.items()}
    order = random.Random(7).sample(sorted(mails), len(mails))
    answers = post_all(house.smtp_port, {name: mails[name] for name in order})

    refused = {name: answer for name, answer in answers.items() if answer.code != 250}
    assert refused.keys() == REFUSED.keys()
    for name, answer in refused.items():
        assert 500 <= answer.code < 600
        assert REFUSED[name] in answer.text

    kept = {name: answer.mail_id for name, answer in answers.items() if name not in refused}
    ends = settled(house, set(kept.values()))
    for name, mail_id in kept.items():
        disposition, reason = ends[mail_id]
        if name in BOMBS:
            assert disposition in ("delivered", "held"), (name, disposition, reason)
            assert disposition == "delivered" or reason.startswith(("cannot be parsed", "parsing ended")), (
                name,
                reason,
            )
        else:
            assert disposition == "delivered", (name, disposition, reason)

    assert house.process is not None
    assert house.process.poll() is None, "the gateway died"
    assert not [line for line in house.log().splitlines() if "handler-failed" in line or "ticket-suspected" in line]
    assert house.stop() == 0
