"""Signed addresses: what stands behind the + of an address and only we can have written.  One keyed HMAC for all of them.

A token is 42 letters and digits (RFC 4648 base32, lower case, because local parts lose their case on the way): the 16 octets
of a UUID and 80 bits of HMAC-SHA256 over purpose and UUID.  The purpose binds it, so that one thing's token opens no other.
A seal is shorter: any few octets and 64 bits of the same HMAC (`mail.secret_address`).
Promises: every key given is good for reading, the first one signs (rotation: put a new one in front); comparison takes the
same time whatever differs.  Limit: a token does not expire; the key it was signed with does, when it is taken away.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import uuid
from collections.abc import Sequence

KEY_BYTES = 32
INVITATION = "invitation"
_PROOF_BYTES = 10
_SEAL_BYTES = 8
_TOKEN = re.compile(r"[a-z2-7]{42}")


class Tokens:
    """The keys, newest first."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) < KEY_BYTES for key in keys):
            raise ValueError(f"signing takes keys of at least {KEY_BYTES} octets")
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        return f"Tokens({len(self._keys)} keys)"

    def sign(self, purpose: str, identity: str) -> str:
        """The token of a UUID for one purpose."""
        subject = uuid.UUID(identity).bytes
        octets = subject + _proof(self._keys[0], purpose, subject)
        return _written(octets)

    def seal(self, purpose: str, octets: bytes) -> str:
        """Any few octets (of a number that base32 needs no padding for, with the proof) as a shorter token."""
        sealed = octets + _proof(self._keys[0], purpose, octets)[:_SEAL_BYTES]
        return base64.b32encode(sealed).decode().lower()

    def unseal(self, purpose: str, token: str, *, size: int) -> bytes | None:
        """The `size` octets that we sealed for this purpose, None for a token that we did not."""
        try:
            sealed = base64.b32decode(token.upper())
        except ValueError:
            return None
        octets, proof = sealed[:size], sealed[size:]
        matches = [hmac.compare_digest(proof, _proof(key, purpose, octets)[:_SEAL_BYTES]) for key in self._keys]
        return octets if any(matches) else None

    def read(self, purpose: str, token: str) -> str | None:
        """The UUID that we signed for this purpose, None for a token that we did not sign."""
        token = token.lower()
        if not looks_signed(token):
            return None
        octets = base64.b32decode(token.upper() + "=" * (-len(token) % 8))
        if _written(octets) != token:
            return None  # the last letter holds two bits more than there are, and only one spelling is ours
        subject, proof = octets[:16], octets[16:]
        matches = [hmac.compare_digest(proof, _proof(key, purpose, subject)) for key in self._keys]
        return str(uuid.UUID(bytes=subject)) if any(matches) else None


def looks_signed(text: str) -> bool:
    """Whether the text has the form of a token, ours or forged."""
    return _TOKEN.fullmatch(text.lower()) is not None


def _written(octets: bytes) -> str:
    return base64.b32encode(octets).decode().rstrip("=").lower()


def _proof(key: bytes, purpose: str, subject: bytes) -> bytes:
    return hmac.digest(key, purpose.encode() + b"\0" + subject, hashlib.sha256)[:_PROOF_BYTES]
