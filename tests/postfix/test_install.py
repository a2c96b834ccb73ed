"""postfix/install on the configuration of a Postfix that is not running: what it changes, keeps, refuses and takes back."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from mta import INSTALL, Mta, missing

BEFORE = "transport_maps = hash:/etc/postfix/transport\nrecipient_delimiter = -+\nmaximal_queue_lifetime = 3d\n"


@pytest.fixture
def mta(tmp_path: Path) -> Mta:
    if why := missing():
        pytest.skip(f"POSTFIX IS NOT TESTED: {why}")
    made = Mta(tmp_path / "mta")
    made.prepare()
    with (made.config / "main.cf").open("a") as file:
        file.write(BEFORE)
    (tmp_path / "recipients").write_text("posts@in.example.org ok\n")
    return made


def words(mta: Mta, *more: str) -> list[str]:
    folder = mta.folder.parent
    return ["--domain", "in.example.org", "--recipients", f"{folder}/recipients", "--libexec", f"{folder}/lib", *more]


def refused(mta: Mta, *more: str) -> str:
    before = state(mta)
    command = [str(INSTALL), "--config", str(mta.config), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout
    assert state(mta) == before
    return done.stderr


def state(mta: Mta) -> dict[str, str]:
    folder = mta.folder.parent
    roots = (mta.config, folder / "lib")
    files = [path for root in roots for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def lines(text: str) -> list[str]:
    """What is set, without the order and the blanks that postconf leaves to itself."""
    return sorted(" ".join(line.split()) for line in text.splitlines() if line.strip())


def test_a_dry_run_says_everything_and_changes_nothing(mta: Mta) -> None:
    before = state(mta)
    said = mta.install(*words(mta), "--dry-run")
    assert state(mta) == before
    assert "main.cf: message_size_limit: 10240000 -> 34865152\n    why: Eight phone photos" in said
    assert "main.cf: transport_maps: hash:/etc/postfix/transport -> hash:/etc/postfix/transport, texthash:" in said
    assert "master.cf: gateway unix - - n - 20 lmtp" in said
    assert said.count("    why: ") == said.count("main.cf: ") + said.count("master.cf: ")


@pytest.mark.parametrize("transport", ["lmtp", pytest.param("pipe", marks=pytest.mark.long)])
def test_it_is_done_once_and_taken_back_whole(transport: str, mta: Mta) -> None:
    before = state(mta)
    mta.install(*words(mta, "--transport", transport, "--pipe-user", "nobody"))
    once = state(mta)
    assert mta.command("postconf", "-h", "recipient_delimiter").strip() == "-+"
    assert mta.command("postconf", "-h", "smtpd_forbid_bare_newline").strip() == "normalize"
    assert "lmtp_send_xforward_command=yes" in mta.command("postconf", "-M", "gateway/unix")
    assert ("gateway-pipe" in once["mta/conf/master.cf"]) == (transport == "pipe")
    if transport == "pipe":
        assert os.access(mta.folder.parent / "lib" / "gateway-pipe", os.X_OK)

    assert mta.install(*words(mta, "--transport", transport, "--pipe-user", "nobody")).strip() == ""
    assert state(mta) == once

    mta.install("--undo")
    after = state(mta)
    assert {name: lines(text) for name, text in after.items()} == {name: lines(text) for name, text in before.items()}
    assert "nothing of ours" in mta.install("--undo")


def test_undo_leaves_alone_what_the_administrator_has_changed_since(mta: Mta) -> None:
    mta.install(*words(mta))
    mta.command("postconf", "-e", "message_size_limit = 50000000")
    maps = mta.command("postconf", "-h", "transport_maps").strip()
    mta.command("postconf", "-e", f"transport_maps = {maps}, hash:/etc/postfix/more")
    said = mta.install("--undo")
    assert "message_size_limit: left at 50000000" in said
    assert mta.command("postconf", "-h", "message_size_limit").strip() == "50000000"
    assert (
        mta.command("postconf", "-h", "transport_maps").strip() == "hash:/etc/postfix/transport, hash:/etc/postfix/more"
    )
    assert mta.command("postconf", "-h", "maximal_queue_lifetime").strip() == "3d"


def test_it_refuses_what_would_harm_the_mail_that_is_there(mta: Mta) -> None:
    assert "is in mydestination" in refused(mta, *words(mta), "--domain", "mta.example.net")
    assert "which domains?" in refused(mta)
    assert "at most 107 bytes" in refused(mta, *words(mta), "--socket", "/" + "x" * 107)
    assert "not a domain" in refused(mta, *words(mta), "--domain", "in example")
    assert "recipients export" in refused(mta, "--domain", "in.example.org", "--recipients", "/nonexistent")
    mta.command("postconf", "-e", "mailbox_size_limit = 20000000")
    assert "mailbox_size_limit is 20000000" in refused(mta, *words(mta))
    mta.command("postconf", "-e", "mailbox_size_limit = 0", "relay_domains = other.example.org")
    assert "would refuse theirs" in refused(mta, *words(mta))
    mta.command("postconf", "-e", "relay_recipient_maps = hash:/etc/postfix/relay")
    mta.install(*words(mta))
    assert mta.command("postconf", "-h", "relay_domains").startswith("other.example.org, texthash:")


def test_a_service_of_that_name_that_is_not_ours_stays(mta: Mta) -> None:
    mta.command("postconf", "-M", "gateway/unix=gateway unix - - n - - smtp")
    done = subprocess.run(
        [str(INSTALL), "--config", str(mta.config), *words(mta)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "a service gateway that is not ours" in done.stderr
    assert "smtp" in mta.command("postconf", "-M", "gateway/unix")
