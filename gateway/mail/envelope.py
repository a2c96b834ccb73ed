"""The envelope of an inbound mail: who it is really from and to, and how it came.  Headers are hearsay.

Minted by a door, carried in the ticket's headers beside the exact octets, stored with the mail.
A ticket without `by_trusted_host`, of an older version or of another program, was not handed over by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.mail.people import person_key

APP = "app:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """`mail_from` is '' for the null sender; `rcpt_to` keeps the order in which the client named them.

    `tls` is the protocol and cipher, `auth` who logged in: a user's name, or `app:NAME`.
    `by_trusted_host`: a mail server of ours handed it over (a host of `trusted_hosts`, or who may open the LMTP socket).  Its
    word about the mail counts; that says nothing of who wrote the mail, since such a server brings the whole world's.
    """

    mail_id: str
    mail_from: str
    rcpt_to: tuple[str, ...]
    received_at: datetime
    door: str
    client: str = ""
    helo: str = ""
    tls: str = ""
    auth: str = ""
    by_trusted_host: bool = False

    @property
    def author_by_login(self) -> str:
        """The one address in whose name who logged in may speak, in the form people are compared by; '' for an app, and for
        a user whose name is no address.
        """
        return person_key(self.auth) if "@" in self.auth and not self.auth.startswith(APP) else ""

    @property
    def is_sender_by_login(self) -> bool:
        """Whether a login vouches for `mail_from`: a person's for their own address, an app's for any."""
        return self.auth.startswith(APP) or (
            self.author_by_login != "" and self.author_by_login == person_key(self.mail_from)
        )

    def to_headers(self) -> dict[str, Any]:
        """The ticket headers of the queue contract; `by_trusted_host` may be missing, and then was not so."""
        return {
            "mail_from": self.mail_from,
            "rcpt_to": list(self.rcpt_to),
            "client": self.client,
            "helo": self.helo,
            "tls": self.tls,
            "auth": self.auth,
            "received_at": self.received_at.isoformat(),
            "door": self.door,
            "by_trusted_host": self.by_trusted_host,
        }

    @classmethod
    def from_headers(cls, mail_id: str, headers: Mapping[str, Any]) -> Envelope:
        """Reads ticket headers; raises ValueError or KeyError when a program that plays door left something out."""
        received_at = datetime.fromisoformat(str(headers["received_at"]))
        if received_at.tzinfo is None:
            raise ValueError("received_at has no offset")
        rcpt_to = headers["rcpt_to"]
        if not isinstance(rcpt_to, list) or not rcpt_to or not all(isinstance(item, str) for item in rcpt_to):
            raise ValueError("rcpt_to is not a list of addresses")
        return cls(
            mail_id=mail_id,
            mail_from=str(headers["mail_from"]),
            rcpt_to=tuple(rcpt_to),
            received_at=received_at,
            by_trusted_host=headers.get("by_trusted_host") is True,
            **{key: str(headers.get(key) or "") for key in ("door", "client", "helo", "tls", "auth")},
        )
