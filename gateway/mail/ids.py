"""The ids of mails, posts, deliveries and events: UUIDv7 (RFC 9562, section 5.7), so they sort by birth.

An app's own email id may be any UUID; it is only brought into canonical form here.
"""

from __future__ import annotations

import uuid

from uuid_utils.compat import uuid7


def new_id() -> str:
    """Mints a UUIDv7 in canonical text form."""
    return str(uuid7())


def canonical_uuid(text: str) -> str:
    """Returns the canonical lower-case form of a UUID in 8-4-4-4-12 form; raises ValueError otherwise."""
    value = uuid.UUID(text)
    if str(value) != text.lower():
        raise ValueError("not a UUID in 8-4-4-4-12 form")
    return str(value)
