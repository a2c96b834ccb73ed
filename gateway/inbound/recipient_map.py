"""Our recipients as a Postfix table, so that Postfix refuses an unknown one at RCPT, also while we are down.

One line per address and backstop (`@domain`), international domains in both spellings; plus-addresses need no line
(`recipient_delimiter = +`).  For `texthash:` (read as it stands) or for postmap.
Promise: the file is always whole: written aside, flushed to disk, renamed; one that is right already is left alone.
Limits: Postfix's processes see a new file when they are renewed (100 clients, 100 s without one) or by `postfix reload`.
"""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from gateway.inbound.router import Router
from gateway.mail.addresses import domain_to_unicode

_PLAIN_KEY = re.compile(r"[^\s\"\\#][^\s\"\\]*")
_READABLE = 0o644  # addresses are no secret, and Postfix reads them as a user of its own


def recipient_map(router: Router) -> str:
    """The table's text."""
    keys = []
    for local, domain in router.patterns():
        for spelling in dict.fromkeys((domain, domain_to_unicode(domain))):
            keys.append(_key("" if local == "*" else local, spelling))
    return "".join(f"{key} ok\n" for key in keys)


def _key(local: str, domain: str) -> str:
    key = f"{local}@{domain}"
    return key if _PLAIN_KEY.fullmatch(key) else '"' + re.sub(r'(["\\])', r"\\\1", key) + '"'


def write_map(path: Path, text: str) -> bool:
    """Puts the text where Postfix looks for it; False when it is there already.  On any fault the old file stays."""
    octets = text.encode()
    with suppress(FileNotFoundError):
        if path.read_bytes() == octets:
            return False
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            os.fchmod(number, _READABLE)
            file.write(octets)
            file.flush()
            os.fsync(number)
        os.rename(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True
