"""The SMTP reply: code, enhanced status and text, the one value every outcome is told in.

A door answers with it, a relay gives it to us, the ledger stores it, a DSN quotes it and the ladder decides by it.
Promise: the first digit of `code` and of `enhanced_status` always agree (RFC 3463, section 2); text is one line of
printable characters, whatever a peer sent.  Limit: multi-line replies are joined with a space.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ENHANCED = re.compile(r"^([245])\.(\d{1,3})\.(\d{1,3})(?:\s+|$)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
MAX_TEXT_CHARACTERS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One SMTP reply (RFC 5321 section 4.2, RFC 2034)."""

    code: int
    enhanced_status: str
    text: str

    def __post_init__(self) -> None:
        if not 200 <= self.code <= 599:
            raise ValueError(f"reply code {self.code} is outside 200-599")
        if self.enhanced_status and not self.enhanced_status.startswith(f"{self.code // 100}."):
            raise ValueError(f"enhanced status {self.enhanced_status} contradicts reply code {self.code}")

    @property
    def is_positive(self) -> bool:
        return self.code < 400

    @property
    def is_transient(self) -> bool:
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        return self.code >= 500

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code), self.enhanced_status, self.text) if part)

    @classmethod
    def from_peer(cls, code: int, text: str) -> Reply:
        """Reads what a peer answered; a code out of range becomes 451 and a contradicting enhanced status is dropped.

        An SMTP peer that talks garbage has proved nothing permanent, so garbage is transient.
        """
        clean = _UNPRINTABLE.sub(" ", text).strip()
        if not 200 <= code <= 599:
            return cls(
                code=451, enhanced_status="4.5.0", text=f"unintelligible reply {code}: {clean}"[:MAX_TEXT_CHARACTERS]
            )
        match = _ENHANCED.match(clean)
        enhanced = ""
        if match and int(match[1]) == code // 100:
            enhanced, clean = match[0].strip(), clean[match.end() :]
        return cls(code=code, enhanced_status=enhanced, text=clean[:MAX_TEXT_CHARACTERS])
