"""`make lint` guards the layers: a forbidden import fails it and is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint_with(folder: Path, file: str, line: str) -> subprocess.CompletedProcess[str]:
    """Runs the layer check on a copy of the tree with one more line in one file."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "gateway", folder / "gateway", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    if line:
        path = folder / "gateway" / file
        path.write_text(path.read_text() + f"\n{line}\n")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_the_tree_as_it_is_keeps_the_layers(tmp_path: Path) -> None:
    done = lint_with(tmp_path, "", "")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "named"),
    [
        ("queue/ticket.py", "import gateway.inbound.intake", "gateway.queue.ticket -> gateway.inbound.intake"),
        ("store/blobs.py", "import gateway.queue.broker", "gateway.store.blobs -> gateway.queue.broker"),
        ("outbound/deliver.py", "import gateway.settings", "gateway.outbound.deliver -> gateway.settings"),
        ("store/mails.py", "import gateway.maillog", "gateway.store.mails -> gateway.maillog"),
        ("cage.py", "import gateway.mail.ids", "gateway.cage -> gateway.mail.ids"),
        ("web/api/emails.py", "import sqlalchemy", "gateway.web.api.emails -> sqlalchemy"),
    ],
)
def test_a_forbidden_import_fails_lint_and_is_named(tmp_path: Path, file: str, line: str, named: str) -> None:
    done = lint_with(tmp_path, file, line)
    assert done.returncode == 1
    assert named in done.stdout
