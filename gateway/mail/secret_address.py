"""Secret addresses: `photos+TOKEN@…`, made for one person and one mailbox; who has it may write there as that person.

A token is 24 letters and digits (RFC 4648 base32, lower case): the person's handle (5 octets), the day it expires (2 octets,
0 = never) and 64 bits of HMAC over those and the mailbox's address.  Promises: reading takes no database; a person's new
handle makes all of his old addresses void, a key taken away all that it signed; `redacted` keeps tokens out of logs and lists.
Limit: like a key under the mat, it proves that somebody was told, not who he is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from gateway.mail.tokens import Tokens

HANDLE_BYTES = 5
_FIRST_DAY = date(2020, 1, 1)
_MAX_DAYS = 0xFFFF
# A secret address's token, or a signed one (`mail.tokens`): where a yes, or a word in somebody's thread, goes.
_IN_ADDRESS = re.compile(r"\+[a-z2-7]{24}(?:[a-z2-7]{18})?(?=@)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What a token of ours says; `expires_on` is the first day it is good for nothing any more."""

    handle: str
    expires_on: date | None

    def has_expired(self, now: datetime) -> bool:
        return self.expires_on is not None and now.astimezone(UTC).date() >= self.expires_on


def new_token(tokens: Tokens, mailbox: str, secret: Secret) -> str:
    """The token for a mailbox's own address; raises ValueError for a day that it cannot hold."""
    days = 0 if secret.expires_on is None else (secret.expires_on - _FIRST_DAY).days
    if not 0 <= days <= _MAX_DAYS or (secret.expires_on is not None and days == 0):
        raise ValueError(f"{secret.expires_on} cannot stand in an address")
    return tokens.seal(_purpose(mailbox), bytes.fromhex(secret.handle) + days.to_bytes(2, "big"))


def read_token(tokens: Tokens, mailbox: str, token: str) -> Secret | None:
    """What we signed for this mailbox; None for everything else. It may have expired."""
    octets = tokens.unseal(_purpose(mailbox), token, size=HANDLE_BYTES + 2)
    if octets is None:
        return None
    days = int.from_bytes(octets[HANDLE_BYTES:], "big")
    expires_on = _FIRST_DAY + timedelta(days=days) if days else None
    return Secret(handle=octets[:HANDLE_BYTES].hex(), expires_on=expires_on)


def redacted(text: str) -> str:
    """The text with the token of every secret or signed address in it left out."""
    return _IN_ADDRESS.sub("+…", text)


def _purpose(mailbox: str) -> str:
    return f"secret {mailbox.casefold()}"
