"""What makes two mails the same mail: a digest of the octets that does not change when a mail is sent again.

Where a Message-ID exists the leading trace headers are left out (Return-Path, Received, Delivered-To, X-Original-To): a
client that got no answer may come again by another way.  Without one only equal octets are equal.
"""

from __future__ import annotations

import hashlib
import re

_TRACE = re.compile(
    rb"(?:(?:return-path|received|delivered-to|x-original-to):[^\r\n]*\r?\n(?:[ \t][^\r\n]*\r?\n)*)*", re.I
)
_MESSAGE_ID = re.compile(rb"^message-id:[ \t]*<[^\r\n]*>", re.I | re.M)


def content_key(octets: bytes) -> str:
    """The digest (64 hex digits) that a copy of this mail shares."""
    end = octets.find(b"\r\n\r\n")
    head = octets[: end if end >= 0 else len(octets)]
    start = 0
    if _MESSAGE_ID.search(head):
        match = _TRACE.match(octets, 0, len(head) + 2)
        start = match.end() if match else 0
    return hashlib.sha256(memoryview(octets)[start:]).hexdigest()
