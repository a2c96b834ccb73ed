"""The mails of tests/parse/mails: real-looking ones of many programs, each read as the .json beside it says.

HELD lists what may be held, and why; nothing else may.
"""

from __future__ import annotations

import hashlib
import json
import resource
from pathlib import Path
from typing import Any

from gateway.cage import Cage
from gateway.mail.parse import ParsedMail, parse
from gateway.mail.parse.tree import from_transport

MAILS = sorted((Path(__file__).parent / "mails").glob("*.eml"))
HELD: dict[str, str] = {}  # none of these is beyond a limit; what is, stands in bombs.py
CPU_SECONDS = 2.0


def seen(mail: ParsedMail) -> dict[str, Any]:
    return {
        "title": mail.subject,
        "text": mail.text,
        "html": mail.html,
        "defects": list(mail.defects),
        "attachments": [
            {"filename": item.filename, "size": len(item.octets), "sha256": hashlib.sha256(item.octets).hexdigest()}
            for item in mail.attachments
        ],
    }


async def test_every_mail_is_read_as_its_writer_says_within_its_budget() -> None:
    assert len(MAILS) >= 40
    wrong: dict[str, Any] = {}
    async with Cage(children=1, preload=("gateway.mail.parse.fallback",)) as cage:
        for path in MAILS:
            expected = json.loads(path.with_suffix(".json").read_text())
            before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
            got = seen(await parse(path.read_bytes(), cage))
            assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < CPU_SECONDS
            if found := {key: (want, got[key]) for key, want in expected.items() if got[key] != want}:
                wrong[path.stem] = found
    assert wrong == {}
    assert HELD == {}


async def test_the_caged_fallback_reads_every_mail_the_same_way() -> None:
    wrong: dict[str, Any] = {}
    async with Cage(children=1, preload=("gateway.mail.parse.fallback",)) as cage:
        for path in MAILS:
            expected = json.loads(path.with_suffix(".json").read_text())
            job = "gateway.mail.parse.fallback:parse_job"
            got = seen(from_transport(*await cage.run(job, {}, path.read_bytes(), cpu_seconds=CPU_SECONDS)))
            if found := {key: (want, got[key]) for key, want in expected.items() if got[key] != want}:
                wrong[path.stem] = found
    assert wrong == {}


def test_a_wrong_expectation_would_be_noticed() -> None:
    """Every mail's expectation names its text, its attachments and its defects."""
    for path in MAILS:
        assert {"text", "attachments", "defects"} <= set(json.loads(path.with_suffix(".json").read_text())), path.stem
