"""The doctor looks, warns by name, and leaves everything as it was."""

from __future__ import annotations

import asyncio
import io
import json
import os
import smtplib
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.app import Parts, blob_mark, open_cage, open_store
from gateway.app.checks import refuse_open_house
from gateway.app.making import open_store_patiently
from gateway.app.services import BUILDERS
from gateway.errors import SettingsError
from gateway.maillog import MailLog
from gateway.runtime import Stop, utc_now
from gateway.settings import Settings
from gateway.store.blob_collector import Collector
from gateway.watch.doctor import check_blobs


def doctor(folder: Path, *, env: dict[str, str] | None = None) -> list[dict[str, Any]]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    command = [sys.executable, "-m", "gateway.cli", "doctor", "--json"]
    done = subprocess.run(command, cwd=folder, env=kept | (env or {}), capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def found(findings: list[dict[str, Any]], what: str) -> list[tuple[str, str]]:
    return [(item["level"], item["finding"]) for item in findings if item["what"] == what]


def test_the_doctor_makes_and_changes_no_file(tmp_path: Path) -> None:
    findings = doctor(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert found(findings, "relay") == [("warning", "capture: email is written to files and never sent")]
    assert found(findings, "store")[0][0] == "ok"


def test_relays_are_shown_by_name_and_security_and_unverified_ones_warn(tmp_path: Path) -> None:
    urls = "smtps://u:hunter2@mail.example.org?verify=no smtp+starttls://other.example.org"
    findings = doctor(tmp_path, env={"GATEWAY_RELAY_URLS": urls})
    assert found(findings, "relay") == [
        ("warning", "mail.example.org:465, tls: its certificate is not verified"),
        ("ok", "other.example.org:587, starttls"),
    ]


def test_a_mail_server_that_nobody_believes_is_named(tmp_path: Path) -> None:
    named = {"GATEWAY_TRUSTED_AUTHSERV_ID": "mx.example.org"}
    ((level, told),) = found(doctor(tmp_path, env=named | {"GATEWAY_LMTP_LISTEN": "127.0.0.1:2424"}), "senders")
    assert (level, "mx.example.org are never believed" in told) == ("warning", True)
    assert found(doctor(tmp_path, env=named), "senders") == []


def test_the_certificate_is_looked_at(tmp_path: Path) -> None:
    assert found(doctor(tmp_path), "certificate")[0][0] == "ok"
    assert found(doctor(tmp_path, env={"GATEWAY_SMTP_LISTEN": "0.0.0.0:2525"}), "certificate")[0][0] == "warning"
    made = trustme.CA().issue_cert("mx.example.org")
    made.private_key_and_cert_chain_pem.write_to_path(tmp_path / "mx.pem")
    (tmp_path / "mx.pem").chmod(0o644)
    env = {"GATEWAY_TLS_CERTIFICATE": "mx.pem", "GATEWAY_HOSTNAME": "other.example.org"}
    name, key = found(doctor(tmp_path, env=env), "certificate")
    assert name == ("warning", "the certificate is for mx.example.org, and we call ourselves other.example.org")
    assert key == ("warning", f"everybody on this machine may read the key {tmp_path}/mx.pem")
    (tmp_path / "mx.pem").chmod(0o600)
    [(level, text)] = found(doctor(tmp_path, env=env | {"GATEWAY_HOSTNAME": "mx.example.org"}), "certificate")
    assert (level, text.startswith(f"{tmp_path}/mx.pem, good until ")) == ("ok", True)
    (tmp_path / "mx.pem").write_text("no certificate")
    [(level, text)] = found(doctor(tmp_path, env=env), "certificate")
    assert level == "wrong"
    assert "no certificate and its key" in text


def test_half_of_tls_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    for half in ({"GATEWAY_TLS_KEY": "mx.key"}, {"GATEWAY_SMTPS_LISTEN": "127.0.0.1:0"}):
        command = [sys.executable, "-m", "gateway.cli", "doctor"]
        done = subprocess.run(command, cwd=tmp_path, env=kept | half, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert "tls_certificate: is wanted" in done.stderr


def test_a_store_without_our_schema_is_told_and_left_alone(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "var").mkdir()
    path = tmp_path / "var" / "store.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE strangers (a)")
    connection.close()
    before = path.read_bytes()
    [(level, text)] = found(doctor(tmp_path), "store")
    assert level == "wrong"
    assert "not the gateway's" in text
    assert path.read_bytes() == before
    path.write_bytes(b"")
    assert found(doctor(tmp_path), "store")[0][0] == "ok"
    assert path.read_bytes() == b""


@pytest.mark.parametrize("listen", ["0.0.0.0:8025", "[::]:8025", "192.0.2.1:8025", "mail.example.org:8025"])
async def test_listening_beyond_loopback_is_refused_until_somebody_can_log_in(tmp_path: Path, listen: str) -> None:
    settings = Settings(data_dir=tmp_path, web_listen=listen).filled()
    async with open_store(settings) as store:
        with pytest.raises(SettingsError, match=r"web_listen.*needs a user: gateway users add NAME"):
            await refuse_open_house(settings, store.access)
        await store.access.invite("ann")
        await refuse_open_house(settings, store.access)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.1.2.3:8025", "[::1]:8025", "localhost:8025"])
async def test_listening_on_loopback_needs_nobody(tmp_path: Path, listen: str) -> None:
    settings = Settings(data_dir=tmp_path, web_listen=listen).filled()
    async with open_store(settings) as store:
        await refuse_open_house(settings, store.access)


@asynccontextmanager
async def gone_store(settings: Settings) -> AsyncIterator[Path]:
    """A store that a gateway has worked with and that is not in its place; yields where it is."""
    async with open_store_patiently(settings, MailLog(stream=io.StringIO())):
        pass
    file = settings.data_dir / "store.db"
    yield file.rename(settings.data_dir / "away.db")


async def test_others_are_let_in_only_when_the_store_can_say_that_somebody_can_log_in(tmp_path: Path) -> None:
    settings, said = Settings(data_dir=tmp_path, web_listen="0.0.0.0:0").filled(), MailLog(stream=io.StringIO())
    async with gone_store(settings) as away, AsyncExitStack() as stack:
        service = await BUILDERS["web"](Parts(settings, said), stack)
        serving = asyncio.ensure_future(service(Stop()))
        away.rename(tmp_path / "store.db")
        with pytest.raises(SettingsError, match="needs a user"):
            await asyncio.wait_for(serving, 60)


async def test_a_store_that_is_gone_is_wrong_and_not_merely_unmade(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    settings = Settings(data_dir=tmp_path / "var").filled()
    async with gone_store(settings):
        [(level, text)] = found(doctor(tmp_path), "store")
        assert (level, "its file is gone" in text) == ("wrong", True)
        (tmp_path / "var" / "store.db").touch()
        assert found(doctor(tmp_path), "store") == [
            ("wrong", "its database is empty, and var/ledger.mark knows a ledger")
        ]


async def test_the_first_render_pays_no_imports(tmp_path: Path) -> None:
    cage = open_cage(Settings(data_dir=tmp_path).filled())
    cage._allow = ("cage_imports:",)
    async with cage:
        answer, _ = await cage.run("cage_imports:render_and_tell_imports", {})
    assert answer["imported"] == []


def test_a_damaged_queue_is_a_finding_with_its_next_step_not_the_end_of_the_visit(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "queue.db").write_bytes(b"no database at all, whatever its name says\n" * 100)
    findings = doctor(tmp_path)
    assert [(level, "file is not a database" in text) for level, text in found(findings, "queue")] == [("wrong", True)]
    assert found(findings, "store")[0][0] == "ok"


async def test_a_door_with_a_certificate_starts_while_the_store_is_away(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "mx.pem")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values: dict[str, Any] = {"smtp_listen": f"127.0.0.1:{port}", "tls_certificate": tmp_path / "mx.pem"}
    settings, context = Settings(data_dir=tmp_path, **values).filled(), ssl.create_default_context()
    authority.configure_trust(context)

    def post() -> tuple[int, int]:
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
            client.starttls(context=context)
            client.ehlo()
            refused = client.docmd("AUTH", "PLAIN AGFubgBzZWNyZXQ=")[0]
            client.mail("ann@example.org")
            client.rcpt("posts@localhost")
            return refused, client.data(b"Subject: x\r\n\r\nx")[0]

    async with gone_store(settings) as away, AsyncExitStack() as stack:
        await BUILDERS["smtp"](Parts(settings, MailLog(stream=io.StringIO())), stack)
        assert await asyncio.to_thread(post) == (454, 250)
        assert away.exists()
        assert not (tmp_path / "store.db").exists()


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_blob_store_that_is_not_there_is_wrong_where_something_was_kept(tmp_path: Path, is_known: bool) -> None:
    data, blobs = tmp_path / "var", tmp_path / "mnt"
    settings = Settings(data_dir=data, database_url=f"sqlite:///{data}/store.db", blobs_url=f"file://{blobs}")
    assert found(await doctor_of(settings), "blobs") == [("ok", "no store yet")]
    async with open_store_patiently(settings, MailLog(stream=io.StringIO())) as store:
        digest = await store.blobs.put(b"a picture")
        carried = [("a dead letter", digest)]
        await Collector(store.database, store.blobs, clock=utc_now).note_dead_tickets(carried)
    assert found(await doctor_of(settings), "blobs") == [("ok", "the store is there")]
    blobs.rename(tmp_path / "elsewhere")
    blobs.mkdir()
    if not is_known:
        (data / "blobs.mark").unlink()
    ((level, told),) = found(await doctor_of(settings), "blobs")
    assert level == "wrong"
    assert ("it was begun before" if is_known else "the ledger names blobs") in told


async def doctor_of(settings: Settings) -> list[dict[str, Any]]:
    is_known = blob_mark(settings).knows(settings.blobs_url)
    return [item.as_row() for item in await check_blobs(settings.blobs_url, settings.database_url, is_known=is_known)]
