"""`gateway explain`, `replay` and `release` as a person types them, with no gateway running."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from conftest import open_house

from gateway.inbound.mailbox import Context, Hold, Outcome, ReceivedMail
from gateway.mail.envelope import Envelope
from gateway.queue.broker import Dead, Done
from gateway.queue.ticket import MAIL_INBOUND

PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452") + bytes(16)


def gateway(folder: Path, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *words],
        env=kept | {"GATEWAY_DATA_DIR": str(folder / "var")},
        cwd=folder,
        input=given,
        capture_output=True,
        timeout=60,
    )


def objects(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def eml(tmp_path: Path) -> Path:
    message = EmailMessage()
    message["From"] = "Änne <anne@example.org>"
    message["Subject"] = "Two things"
    message.set_content("Some words.\n")
    message.add_attachment(PNG, maintype="application", subtype="octet-stream", filename="straße.dat")
    file = tmp_path / "mail.eml"
    file.write_bytes(message.as_bytes().replace(b"\n", b"\r\n"))
    return file


def test_explain_says_what_would_become_of_each_recipient_and_makes_no_files(eml: Path, tmp_path: Path) -> None:
    words = ["--to", "posts@localhost", "--to", "gone@localhost", "--from", "ann@example.org", "--json"]
    post, gone = objects(gateway(tmp_path, "explain", str(eml), *words))
    assert list(post) == [
        *("rcpt_to", "mailbox", "disposition", "reason", "author", "title"),
        *("text", "html", "attachments", "defects", "auth"),
    ]
    assert (post["rcpt_to"], post["mailbox"], post["disposition"]) == ("posts@localhost", "posts", "delivered")
    assert (post["author"], post["title"], post["text"].strip()) == ("Änne", "Two things", "Some words.")
    assert post["attachments"] == [
        {
            "filename": "straße.dat",
            "content_type": "application/octet-stream",
            "sniffed": "image/png",
            "size": len(PNG),
            "sha256": hashlib.sha256(PNG).hexdigest(),
        }
    ]
    assert (gone["disposition"], gone["reason"]) == ("held", "no mailbox: gone@localhost is unknown here")
    assert gone["door"] == "550 5.1.1 gone@localhost is unknown here"
    assert [item.name for item in tmp_path.iterdir()] == ["mail.eml"], "a look makes no files"


def test_explain_knows_photos_and_support_and_makes_no_keys(eml: Path, tmp_path: Path) -> None:
    forged = f"support+{'a' * 42}@localhost"
    words = ["--to", "photos@localhost", "--to", "support@localhost", "--to", forged, "--json"]
    photos, support, third = objects(gateway(tmp_path, "explain", str(eml), *words))
    assert (photos["mailbox"], photos["disposition"], photos["reason"]) == ("photos", "delivered", "partial")
    assert (support["mailbox"], support["disposition"], support["title"]) == ("support", "delivered", "Two things")
    assert (third["disposition"], third["door"].split()[:2]) == ("held", ["550", "5.1.1"])
    assert [item.name for item in tmp_path.iterdir()] == ["mail.eml"], "a look makes no files"


def test_explain_reads_stdin_and_speaks_to_people_too(eml: Path, tmp_path: Path) -> None:
    done = gateway(tmp_path, "explain", "-", "--to", "posts@localhost", given=eml.read_bytes())
    assert done.returncode == 0, done.stderr.decode()
    assert "disposition: delivered\n" in done.stdout.decode()


def test_people_are_told_of_the_sender_in_words(eml: Path, tmp_path: Path) -> None:
    done = gateway(tmp_path, "explain", str(eml), "--to", "posts@localhost", "--from", "ann@example.org")
    assert done.returncode == 0, done.stderr
    told = done.stdout.decode()
    assert "auth: anne@example.org: neither a signature nor the sending host vouches for example.org\n  " in told
    assert "  looked up by us\n" in told
    assert "{" not in told.partition("auth:")[2].partition("attachments")[0]


def test_explain_of_a_hopeless_mail_says_why_it_would_be_held(tmp_path: Path) -> None:
    bomb = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + b"--x\r\n\r\n\r\n" * 5_000 + b"--x--\r\n"
    (told,) = objects(gateway(tmp_path, "explain", "-", "--to", "posts@localhost", "--json", given=bomb))
    assert told["disposition"] == "held"
    assert "parts" in told["reason"]


def test_explain_of_no_file_and_without_recipient_fail_in_one_line(tmp_path: Path) -> None:
    missing = gateway(tmp_path, "explain", "nowhere.eml", "--to", "posts@localhost")
    assert (missing.returncode, missing.stderr) == (1, b"gateway: nowhere.eml: No such file or directory\n")
    assert gateway(tmp_path, "explain", "-").returncode == 2


class Holds:
    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        return Hold(reason="wait")


async def held_mail(folder: Path, end: Done | Dead = Done()) -> str:
    """A mail held for one of its two recipients, its ticket ended so, in the folder's data_dir; returns its id."""
    (folder / "var").mkdir()
    async with open_house(folder / "var") as house:
        house.mailboxes["broken"] = Holds()
        ingest = await house.open_ingest()
        rcpt_to = ("posts@localhost", "broken@localhost")
        envelope = Envelope(
            mail_id="", mail_from="ann@example.org", rcpt_to=rcpt_to, received_at=datetime.now(UTC), door="smtp"
        )
        mail_id = await house.intake().accept(envelope, b"Subject: x\r\n\r\nwords\r\n")
        (ticket,) = await house.tickets()
        await ingest.handle(ticket)
        async with house.broker.consume({MAIL_INBOUND: 1}, concurrency=1) as consumer:
            async for lease in consumer:
                await lease.settle(end)
                break
        return mail_id


async def waiting(folder: Path) -> list[Any]:
    async with open_house(folder / "var") as house:
        return await house.tickets()


def test_replay_and_release_put_tickets_of_what_waits_and_leave_the_rest_alone(tmp_path: Path) -> None:
    mail_id = asyncio.run(held_mail(tmp_path))
    rows = objects(gateway(tmp_path, "replay", mail_id[:20], mail_id, "--json"))
    assert [(row["id"], row["rcpt_to"], row["disposition"], row["action"]) for row in rows] == [
        (mail_id, "posts@localhost", "delivered", "left alone"),
        (mail_id, "broken@localhost", "held", "replayed"),
    ]
    assert gateway(tmp_path, "release", mail_id[:20]).stderr == b"1 released\n"
    tickets = asyncio.run(waiting(tmp_path))
    assert [ticket.headers["rcpt_to"] for ticket in tickets] == [["broken@localhost"]] * 2
    assert [bool(ticket.headers.get("released")) for ticket in tickets] == [False, True]


def test_a_replay_takes_the_dead_letter_away_whose_other_recipients_have_their_end(tmp_path: Path) -> None:
    mail_id = asyncio.run(held_mail(tmp_path, Dead(reason="a bug of ours")))
    assert [row["id"] for row in objects(gateway(tmp_path, "dead", "list", "--json"))] == [mail_id]
    assert gateway(tmp_path, "replay", mail_id).returncode == 0
    assert objects(gateway(tmp_path, "dead", "list", "--json")) == []


def test_replay_of_what_is_unknown_fails_and_does_nothing(tmp_path: Path) -> None:
    done = gateway(tmp_path, "replay", "0123abc")
    assert (done.returncode, done.stderr) == (1, b"gateway: nothing is known of 0123abc\n")
    assert list(tmp_path.iterdir()) == []
    mail_id = asyncio.run(held_mail(tmp_path))
    done = gateway(tmp_path, "replay", mail_id, "0123abc")
    assert done.returncode == 1
    assert asyncio.run(waiting(tmp_path)) == [], "all ids are looked up first"
