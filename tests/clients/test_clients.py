"""The mail clients people have post a photo at the SMTP door, and it becomes an album in the words of the README."""

from __future__ import annotations

import email.policy
import smtplib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from shutil import which

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "crash"))
sys.path.insert(0, str(Path(__file__).parents[1] / "inbound"))

from house import READY_SECONDS, House
from pictures import encoded, upright

HERE = Path(__file__).parent
TO = "photos@localhost"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("clients")
    (folder / "var").mkdir()
    house = House(folder / "var", "capture:")
    house.start()
    assert house.wait_ready(), house.log()
    yield house
    house.kill()


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "beach.jpg"
    path.write_bytes(encoded(upright(), "JPEG"))
    return path


def message(subject: str, picture: Path) -> EmailMessage:
    made = EmailMessage(policy=email.policy.SMTP)
    made["From"], made["To"], made["Subject"] = "ann@example.org", TO, subject
    made.set_content("Our holiday\n")
    made.add_attachment(picture.read_bytes(), maintype="image", subtype="jpeg", filename=picture.name)
    return made


def run(*words: str, octets: bytes = b"") -> None:
    if which(words[0]) is None:
        pytest.skip(f"{words[0].upper()} IS NOT TESTED: not installed (make services)")
    done = subprocess.run(words, input=octets, capture_output=True, timeout=120)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")


def by_swaks(port: int, picture: Path, folder: Path) -> None:
    words = ["--to", TO, "--from", "ann@example.org", "--header", "Subject: by swaks", "--body", "Our holiday"]
    run("swaks", "--server", f"127.0.0.1:{port}", *words, "--attach-type", "image/jpeg", "--attach", f"@{picture}")


def by_msmtp(port: int, picture: Path, folder: Path) -> None:
    words = [f"--port={port}", "--host=127.0.0.1", "--from=ann@example.org", "--auth=off", "--tls=off"]
    octets = message("by msmtp", picture).as_bytes(policy=email.policy.SMTP.clone(linesep="\n"))
    run("msmtp", *words, TO, octets=octets)


def by_smtplib(port: int, picture: Path, folder: Path) -> None:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.example.net", timeout=120) as session:
        assert session.send_message(message("by smtplib", picture)) == {}


def by_nodemailer(port: int, picture: Path, folder: Path) -> None:
    if not (HERE / "node_modules" / "nodemailer").is_dir():
        pytest.skip("NODEMAILER IS NOT TESTED: not installed (make services)")
    run("node", str(HERE / "send.js"), str(port), str(picture), TO)


def by_curl(port: int, picture: Path, folder: Path) -> None:
    file = folder / "mail.eml"
    file.write_bytes(message("by curl", picture).as_bytes())
    words = ["--mail-from", "ann@example.org", "--mail-rcpt", TO, "--upload-file", str(file)]
    run("curl", "--silent", "--show-error", f"smtp://127.0.0.1:{port}/client.example.net", *words)


@pytest.mark.parametrize("post", [by_swaks, by_msmtp, by_smtplib, by_nodemailer, by_curl])
def test_a_client_posts_a_photo(
    post: Callable[[int, Path, Path], None], house: House, picture: Path, tmp_path: Path
) -> None:
    post(house.smtp_port, picture, tmp_path)
    title = post.__name__.replace("_", " ")
    deadline = time.monotonic() + READY_SECONDS * 3
    while True:
        rows = [row for row in house.list("posts") if row["title"] == title]
        if rows:
            break
        assert time.monotonic() < deadline, (house.list("mails"), house.log()[-2000:])
        time.sleep(0.1)  # asking by the command, as a person would
    (mail,) = [row for row in house.list("mails") if row["subject"] == title]
    assert mail["disposition"] == "delivered"
    assert rows[0]["author"] == "ann@example.org"
    (album,) = house.list("show", str(rows[0]["id"]))
    assert "Our holiday" in str(album["text"])
    assert "beach.jpg" in str(album["attachments"])
