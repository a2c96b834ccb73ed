"""The links we put into notices: signed, so that who has one may look at one mail and at nothing else.

The page behind them is the web's; it reads the token here.  Limit: a link lives as long as the key that signed it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.mail.tokens import Tokens

_PURPOSE = "status"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusLinks:
    """Links below `public_url`, the address under which people reach our pages."""

    tokens: Tokens
    public_url: str

    def of(self, mail_id: str) -> str:
        """Where the sender of a mail sees what became of it."""
        return f"{self.public_url.rstrip('/')}/status/{self.tokens.sign(_PURPOSE, mail_id)}"

    def mail_id(self, token: str) -> str | None:
        """The mail whose sender holds this token; None for one that we did not sign."""
        return self.tokens.read(_PURPOSE, token)
