"""One strict mailbox grammar of ours, both directions (RFC 5321 section 4.1.2, RFC 6531), and display names beside it.

Used by the contract (what apps send), the doors (what clients say in MAIL and RCPT), compose and relay.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A mailbox with an optional display name."""

    mailbox: str
    name: str = ""

    @property
    def key(self) -> str:
        """For comparison: the domain in lower case, the local part as it is."""
        local, _, domain = self.mailbox.rpartition("@")
        return f"{local}@{domain.lower()}"


def parse_mailbox(text: str) -> str:
    """Returns `text` if it is exactly one mailbox `local@domain`; raises ValueError saying what is wrong."""
    raise ValueError("stub")


def parse_address(text: str) -> Address:
    """Reads `local@domain` or `Display Name <local@domain>`; raises ValueError."""
    raise ValueError("stub")
