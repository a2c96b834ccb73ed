"""The same clients under TLS, logged in: what Ann posts to a members' mailbox is hers, what Bob posts in her name is held."""

from __future__ import annotations

import email.policy
import json
import smtplib
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from shutil import which

import pytest
import trustme

sys.path.insert(0, str(Path(__file__).parents[1] / "crash"))

from house import READY_SECONDS, House, free_port

HERE = Path(__file__).parent
ANN, BOB, PASSWORD = "ann@example.org", "bob@example.org", "correct horse"
TO = "club@localhost"


@dataclass
class SecuredHouse(House):
    """A gateway with a certificate, where Ann and Bob may log in and Ann is a member."""

    smtps_port: int = field(default_factory=free_port)

    @property
    def authority(self) -> Path:
        return self.folder.parent / "ca.pem"

    @property
    def pair(self) -> Path:
        return self.folder.parent / "mx.pem"

    def put_certificate(self, authority: trustme.CA) -> None:
        made = authority.issue_cert("127.0.0.1", "localhost")
        made.private_key_and_cert_chain_pem.write_to_path(self.pair)
        self.pair.chmod(0o600)

    def gateway(self, *words: str, stdin: str = "") -> str:
        command = [sys.executable, "-m", "gateway.cli", *words]
        place = {"env": self.environment(), "cwd": self.folder.parent}
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, **place)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr
        return str(done.stdout)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[SecuredHouse]:
    folder = tmp_path_factory.mktemp("secured")
    (folder / "var").mkdir()
    house = SecuredHouse(folder / "var", "capture:")
    authority.cert_pem.write_to_path(house.authority)
    house.put_certificate(authority)
    house.more = {
        "GATEWAY_TLS_CERTIFICATE": str(house.pair),
        "GATEWAY_SMTPS_LISTEN": f"127.0.0.1:{house.smtps_port}",
        "GATEWAY_MAILBOXES": json.dumps([{"address": TO, "kind": "posts", "who": "members"}]),
    }
    house.start()
    assert house.wait_ready(), house.log()
    for name in (ANN, BOB):
        house.gateway("users", "add", name, stdin=f"{PASSWORD}\n")
    house.gateway("people", "add", ANN, "--name", "Ann")
    yield house
    assert house.stop() == 0


def message(subject: str) -> EmailMessage:
    made = EmailMessage(policy=email.policy.SMTP)
    made["From"], made["To"], made["Subject"] = ANN, TO, subject
    made.set_content("Our holiday\n")
    return made


def run(*words: str, octets: bytes = b"") -> None:
    if which(words[0]) is None:
        pytest.skip(f"{words[0].upper()} IS NOT TESTED: not installed (make services)")
    done = subprocess.run(words, input=octets, capture_output=True, timeout=120)
    if b"requires Net::SSLeay" in done.stderr:
        pytest.skip("SWAKS IS NOT TESTED UNDER TLS: libnet-ssleay-perl is not installed (make services)")
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")


def by_swaks(house: SecuredHouse, subject: str) -> None:
    words = ["--to", TO, "--from", ANN, "--header", f"Subject: {subject}", "--body", "Our holiday"]
    login = ["--auth", "PLAIN", "--auth-user", ANN, "--auth-password", PASSWORD]
    tls = ["--tls", "--tls-verify", "--tls-ca-path", str(house.authority)]
    run("swaks", "--server", f"127.0.0.1:{house.smtp_port}", *words, *login, *tls)


def by_msmtp(house: SecuredHouse, subject: str) -> None:
    tls = ["--tls=on", "--tls-starttls=on", f"--tls-trust-file={house.authority}"]
    login = ["--auth=login", f"--user={ANN}", f"--passwordeval=echo {PASSWORD}"]
    octets = message(subject).as_bytes(policy=email.policy.SMTP.clone(linesep="\n"))
    run("msmtp", f"--port={house.smtp_port}", "--host=127.0.0.1", f"--from={ANN}", *tls, *login, TO, octets=octets)


def by_smtplib(house: SecuredHouse, subject: str, user: str = ANN) -> None:
    context = ssl.create_default_context(cafile=str(house.authority))
    with smtplib.SMTP("127.0.0.1", house.smtp_port, local_hostname="client.example.net", timeout=120) as session:
        session.starttls(context=context)
        session.login(user, PASSWORD)
        assert session.send_message(message(subject)) == {}


def by_curl_at_the_port_of_tls(house: SecuredHouse, subject: str) -> None:
    file = house.folder.parent / "mail.eml"
    file.write_bytes(message(subject).as_bytes())
    words = ["--mail-from", ANN, "--mail-rcpt", TO, "--upload-file", str(file), "--user", f"{ANN}:{PASSWORD}"]
    url = f"smtps://127.0.0.1:{house.smtps_port}/client.example.net"
    run("curl", "--silent", "--show-error", url, *words, "--cacert", str(house.authority))


def became(house: SecuredHouse, subject: str) -> dict[str, object]:
    """The mail's row, once it has its disposition."""
    deadline = time.monotonic() + READY_SECONDS * 2
    while True:
        for row in house.list("mails"):
            if row["subject"] == subject and row["disposition"] != "pending":
                return row
        assert time.monotonic() < deadline, house.log()[-2000:]
        time.sleep(0.1)  # asking by the command, as a person would


CLIENTS = [by_swaks, by_msmtp, by_smtplib, by_curl_at_the_port_of_tls]


@pytest.mark.parametrize("post", CLIENTS)
def test_a_client_that_logs_in_posts_as_the_member_it_is(
    post: Callable[[SecuredHouse, str], None], house: SecuredHouse, authority: trustme.CA
) -> None:
    house.put_certificate(authority)  # renewed while it serves: each client meets a new one
    subject = post.__name__.replace("_", " ")
    post(house, subject)
    row = became(house, subject)
    assert (row["disposition"], row["reason"]) == ("delivered", ""), row
    if post is by_smtplib:
        (shown,) = house.list("show", str(row["id"]))
        assert shown["auth"] == ANN
        assert str(shown["tls"]).startswith("TLSv1.3 ")


def test_what_bob_posts_in_anns_name_is_held(house: SecuredHouse) -> None:
    by_smtplib(house, "by Bob as Ann", user=BOB)
    row = became(house, "by Bob as Ann")
    assert row["disposition"] == "held"
    assert f"{BOB} has logged in, which is not the author" in str(row["reason"])


def test_a_wrong_password_and_a_login_in_the_clear_are_refused(house: SecuredHouse) -> None:
    context = ssl.create_default_context(cafile=str(house.authority))
    with smtplib.SMTP("127.0.0.1", house.smtp_port, timeout=60) as session:
        session.ehlo()
        assert not session.has_extn("auth")
        assert session.docmd("AUTH", "PLAIN AGEAYg==")[0] == 538
        session.starttls(context=context)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            session.login(ANN, "wrong")
        session.login(ANN, PASSWORD)
        session.mail(ANN)
        assert session.rcpt("somebody@elsewhere.example")[0] == 550
