"""The mails of CPython's own tests, where this Python brings them, against what the stdlib finds in them.

The stdlib's tree is the oracle: each leaf that is no text must be an attachment of ours with its name, size and digest, each
text must stand in our text.  `OTHERWISE` lists the mails where we differ on purpose, and why.
"""

from __future__ import annotations

import email
import hashlib
import importlib.util
import time
from collections import Counter
from email import policy
from pathlib import Path

import pytest

from gateway.mail.parse import ParsedMail, fast
from gateway.mail.parse.fallback import parse_octets

OTHERWISE: dict[str, str] = {
    "msg_36.txt": "an external body (RFC 2046, 5.2.3) stays an attachment, octet for octet; the stdlib reads into it",
}


def _mails() -> list[Path]:
    found = importlib.util.find_spec("test")
    folders = (
        [Path(place) / "test_email" / "data" for place in (found.submodule_search_locations or [])] if found else []
    )
    return sorted(path for folder in folders for path in folder.glob("*.txt"))


MAILS = _mails()
pytestmark = pytest.mark.skipif(
    not MAILS, reason="SKIPPED LOUDLY: this Python came without test.test_email's data; no mail was read"
)


def _leaves(octets: bytes) -> list[email.message.Message]:
    found: list[email.message.Message] = []

    def walk(part: email.message.Message) -> None:
        if part.get_content_type() == "message/rfc822" or not part.is_multipart():
            found.append(part)
            return
        for child in part.get_payload():
            walk(child)

    walk(email.message_from_bytes(octets, policy=policy.compat32))
    return found


def _words(text: str) -> Counter[str]:
    return Counter(word for word in text.replace(">", " ").split() if word.isascii())


def differences(octets: bytes, mail: ParsedMail) -> list[str]:
    """What the stdlib finds that stands nowhere in ours."""
    missing = []
    ours = Counter(hashlib.sha256(item.octets).hexdigest() for item in mail.attachments)
    names = {item.filename for item in mail.attachments}
    for leaf in _leaves(octets):
        if leaf.get_content_type() == "message/rfc822" or leaf.get_content_maintype() == "multipart":
            continue
        content = leaf.get_payload(decode=True) or b""
        name = leaf.get_filename()
        if name and name.isascii() and "/" not in name and "=?" not in name and name not in names:
            missing.append(f"name {name}")
        if leaf.get_content_type() == "text/plain" and not name and leaf.get_content_disposition() != "attachment":
            lost = _words(content.decode("utf-8", "replace")) - _words(mail.text)
            if lost:
                missing.append(f"words {sorted(lost)[:5]}")
        elif leaf.get_content_type() != "text/html" and not ours[hashlib.sha256(content).hexdigest()]:
            missing.append(f"{leaf.get_content_type()} of {len(content)} bytes")
    return missing


def test_at_least_98_of_100_are_read_as_the_stdlib_reads_them() -> None:
    wrong = {}
    for path in MAILS:
        octets = path.read_bytes()
        began = time.process_time()
        mail = parse_octets(octets)
        assert time.process_time() - began < 2
        if found := differences(octets, mail):
            wrong[path.name] = found
    assert set(wrong) <= set(OTHERWISE), {name: wrong[name] for name in wrong if name not in OTHERWISE}
    assert set(OTHERWISE) <= set(wrong), "no longer otherwise"


def test_at_least_95_of_100_take_the_fast_path_and_come_out_the_same() -> None:
    read = [(fast.read(path.read_bytes()), parse_octets(path.read_bytes())) for path in MAILS]
    taken = [(quick, slow) for quick, slow in read if quick is not None]
    assert all(quick == slow for quick, slow in taken)
    assert len(taken) >= 0.95 * len(read)
