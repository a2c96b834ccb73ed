"""Our recipients as a Postfix table, so that Postfix refuses an unknown one at RCPT, also while we are down.

One line per address and backstop (`@domain`), international domains in both spellings; plus-addresses need no line
(`recipient_delimiter = +`).  For `texthash:` (read as it stands) or for postmap.
Promise: the file is always whole: written aside, flushed to disk, renamed; one that is right already is left alone.
Limits: Postfix's processes see a new file when they are renewed (100 clients, 100 s without one) or by `postfix reload`.
"""

from __future__ import annotations

import re
from pathlib import Path

from gateway.inbound.router import Router
from gateway.mail.addresses import domain_to_unicode
from gateway.whole_file import EVERYBODYS, write_whole

_PLAIN_KEY = re.compile(r"[^\s\"\\#][^\s\"\\]*")


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
    # Addresses are no secret, and Postfix reads them as a user of its own.
    return write_whole(path, text.encode(), mode=EVERYBODYS)
