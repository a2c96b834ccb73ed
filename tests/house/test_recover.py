"""A backup is restored under a gateway: what it had sent since is not sent again, and `gateway recover` decides."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from gateway.app import Parts, Store
from gateway.contract.email_send import SendEmail
from gateway.mail.ids import new_id
from gateway.maillog import MailLog
from gateway.reply import Reply
from gateway.settings import Settings
from gateway.store.ledger import Claim

ANN = "ann@example.org"


@asynccontextmanager
async def running(folder: Path, said: io.StringIO) -> AsyncIterator[Store]:
    """The store as a starting gateway opens it."""
    settings = Settings(data_dir=folder, hostname="mx.test").filled()
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
