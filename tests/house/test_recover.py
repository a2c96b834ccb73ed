"""A backup is restored under a gateway: what it had sent since is not sent again, and `gateway recover` decides."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway import commands
from gateway.app import Parts, Store
from gateway.app.in_use import at_work
from gateway.contract.email_send import SendEmail
from gateway.errors import TransientFailure
from gateway.mail.ids import new_id
from gateway.maillog import MailLog
from gateway.reply import Reply
from gateway.settings import Settings
from gateway.store.ledger import Claim

ANN = "ann@example.org"


@asynccontextmanager
async def running(folder: Path, said: io.StringIO, url: str = "sqlite:///{data_dir}/store.db") -> AsyncIterator[Store]:
    """The store as a starting gateway opens it."""
    settings = Settings(data_dir=folder, hostname="mx.test", database_url=url).filled()
    async with AsyncExitStack() as stack:
        yield await Parts(settings, MailLog(stream=said)).store(stack)


async def accept(store: Store) -> str:
    email = SendEmail(id=new_id(), to=(ANN,), subject="s", text="t")
    await store.ledger.record_accepted(
        email, app="", content_hash="h", ticket_id="t", stream="normal", message_id=f"<{email.id}@mx.test>"
    )
    return email.id


async def send(store: Store, email_id: str) -> bool:
    claim = await store.ledger.claim(email_id, ANN, ticket_id="t", lifetime_seconds=60)
    if not isinstance(claim, Claim):
        return False
    await store.ledger.record_dot_sent(claim)
    await store.ledger.record_relayed(claim, relay="r", reply=Reply(code=250, enhanced_status="2.0.0", text="ok"))
    return True


def gateway(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    command = [sys.executable, "-m", "gateway.cli", *words]
    env = kept | {"GATEWAY_DATA_DIR": str(folder)}
    return subprocess.run(command, cwd=folder.parent, env=env, capture_output=True, text=True, timeout=120)


async def test_after_a_restore_nothing_is_sent_again_until_a_person_says_so(tmp_path: Path) -> None:
    folder, said = tmp_path / "var", io.StringIO()
    async with running(folder, said) as store:
        emails = [await accept(store) for _ in range(3)]
    shutil.copy(folder / "store.db", tmp_path / "backup.db")
    async with running(folder, said) as store:
        assert [await send(store, email_id) for email_id in emails] == [True] * 3
    assert "went-back" not in said.getvalue()
    for path in folder.glob("store.db-*"):
        path.unlink()
    shutil.copy(tmp_path / "backup.db", folder / "store.db")

    async with running(folder, said) as store:
        assert [await send(store, email_id) for email_id in emails] == [False] * 3
    assert "event='ledger-went-back'" in said.getvalue()
    assert "held=3" in said.getvalue()

    listed = gateway(folder, "recover", "--json")
    assert {json.loads(line)["id"] for line in listed.stdout.splitlines()} == set(emails)
    assert "3 cancelled" in gateway(folder, "recover", "--cancel").stderr
    assert gateway(folder, "recover", "--json").stdout == ""
    both = gateway(folder, "recover", "--cancel", "--resend")
    assert (both.returncode, "either" in both.stderr) == (2, True)
    said.truncate(0)
    async with running(folder, said) as store:
        assert await send(store, await accept(store))
    assert "went-back" not in said.getvalue()


MORE = 100
Backup = tuple[str, Callable[[], None], Callable[[], str]]


@pytest.fixture(params=["sqlite", "postgresql"])
def backup(request: pytest.FixtureRequest, tmp_path: Path) -> Backup:
    """The URL of a store, what backs it up, and what restores the backup and returns its URL."""
    if request.param == "sqlite":
        folder = tmp_path / "var"
        url, kept = f"sqlite:///{folder}/store.db", tmp_path / "backup.db"

        def restore_file() -> str:
            for path in folder.glob("store.db-*"):
                path.unlink()
            shutil.copy(kept, folder / "store.db")
            return url

        return url, lambda: shutil.copy(folder / "store.db", kept) and None, restore_file
    server, url = (request.getfixturevalue(name) for name in ("postgres_server", "bare_postgres_url"))
    name = urlsplit(url).path[1:]

    def back_up() -> None:
        """Connections that were closed a moment ago are ended by the server, or by this."""
        server.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        server.run(f"CREATE DATABASE {name}_backup TEMPLATE {name}")

    return url, back_up, lambda: url.replace(name, f"{name}_backup")


async def test_of_a_hundred_sent_since_the_backup_none_is_sent_again(backup: Backup, tmp_path: Path) -> None:
    url, back_up, restore = backup
    folder, said = tmp_path / "var", io.StringIO()
    async with running(folder, said, url) as store:
        emails = [await accept(store) for _ in range(10)]
        assert await send(store, emails[0])
    back_up()
    async with running(folder, said, url) as store:
        emails += [await accept(store) for _ in range(MORE - 9)]
        assert [await send(store, email_id) for email_id in emails[1:]] == [True] * MORE
    assert "went-back" not in said.getvalue()

    url = restore()
    async with running(folder, said, url) as store:
        assert [await send(store, email_id) for email_id in emails[:10]] == [False] * 10
        assert [await store.ledger.email(email_id) for email_id in emails[10:]] == [None] * (MORE - 9), (
            "it knows no others"
        )
        assert await store.ledger.overdue(older_than_seconds=-3600) == [], "nor does the sweeper make tickets for them"
        fresh = await accept(store)
        assert await send(store, fresh), "what is new goes on its way"
    assert "event='ledger-went-back'" in said.getvalue()
    assert "held=9" in said.getvalue()
    async with running(folder, said, url) as store:
        assert [await send(store, email_id) for email_id in emails[:10]] == [False] * 10


async def test_a_house_restored_with_its_mark_is_held_by_command(tmp_path: Path) -> None:
    folder, said = tmp_path / "var", io.StringIO()
    async with running(folder, said) as store:
        emails = [await accept(store) for _ in range(3)]
        assert await send(store, emails[0])
    settings = Settings(data_dir=folder, hostname="mx.test").filled()
    with at_work(folder), pytest.raises(TransientFailure, match="stop it first"):
        await commands.hold_restored(settings)
    assert await commands.hold_restored(settings) == 2
    async with running(folder, said) as store:
        assert [await send(store, email_id) for email_id in emails] == [False] * 3
    assert {line["id"] for line in await commands.held_back(settings)} == set(emails[1:])
