"""Who a sender really is, as far as it could be found out: one value, stored with the mail, shown and acted upon.

`verdict` is the one word `who` goes by: `pass` = the domain of the only From address vouches for the mail (`aligned_domain`,
by `aligned_by`); `temperror` = what could prove it cannot be looked up now; `fail` = nothing proves it; `none` = not judged.
Promise: `author` is the From address in the form people are compared by, '' where the header names none that every program
reads alike.  It is hearsay unless the verdict is `pass`; even then it is the domain's word that this is the one who wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from gateway.mail.people import person_key


class Result(StrEnum):
    """What one mechanism found (RFC 8601, section 2.7)."""

    NONE = "none"
    PASS = "pass"
    FAIL = "fail"
    SOFTFAIL = "softfail"
    NEUTRAL = "neutral"
    POLICY = "policy"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpfCheck:
    """Whether a client may speak for a domain; `identity` is `mailfrom` or `helo`."""

    result: Result = Result.NONE
    domain: str = ""
    identity: str = "mailfrom"
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureCheck:
    """One DKIM signature; `policy` = it is sound and still proves nothing to us, `reason` says why."""

    result: Result
    domain: str = ""
    selector: str = ""
    algorithm: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArcCheck:
    """The chain of those who passed the mail on; told, and never a proof of who wrote it."""

    result: Result = Result.NONE
    sealers: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DmarcCheck:
    """What the From domain says of itself; `policy` is its p= or sp=, '' where it says nothing."""

    result: Result = Result.NONE
    domain: str = ""
    policy: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """All of it; `source` is `own` (looked up by us), `mta` (told by our own mail server), `both` (it left something out)
    or `login` (the author logged in here).

    `login` is the address of the person who logged in, here or at our mail server, to send this; '' where it names nobody.
    """

    verdict: Result = Result.NONE
    reason: str = "not judged"
    author: str = ""
    aligned_domain: str = ""
    aligned_by: str = ""
    source: str = ""
    spf: SpfCheck = SpfCheck()
    helo: SpfCheck = SpfCheck(identity="helo")
    dkim: tuple[SignatureCheck, ...] = ()
    arc: ArcCheck = ArcCheck()
    dmarc: DmarcCheck = DmarcCheck()
    junk: str = ""
    login: str = ""

    @property
    def is_proven(self) -> bool:
        """Whether the domain of `author` vouches for this mail."""
        return self.verdict is Result.PASS and bool(self.author)

    def verifies(self, mail_from: str) -> bool:
        """Whether a notice to the envelope's sender reaches who wrote the mail: he logged in with this address, or the
        author's domain vouches, and it is the author's own address or one that the sending host may speak for.
        """
        return bool(mail_from) and (person_key(mail_from) == self.login or self._vouches_for(mail_from))

    def _vouches_for(self, mail_from: str) -> bool:
        return self.is_proven and (person_key(mail_from) == self.author or self._may_host_send(mail_from))

    def _may_host_send(self, mail_from: str) -> bool:
        """Whether SPF of this very domain is what vouches; our mail server may have found it of another envelope."""
        spf = self.spf
        domain = person_key(mail_from).rpartition("@")[2]
        return self.aligned_by == "spf" and spf.result is Result.PASS and spf.domain == domain

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Authentication:
        """Reads what `to_json` wrote; an empty object is a mail that was not judged."""
        if not values:
            return NOT_JUDGED
        plain = {key: values[key] for key in ("reason", "author", "aligned_domain", "aligned_by", "source", "junk")}
        return cls(
            verdict=Result(values["verdict"]),
            spf=SpfCheck(**_with_result(values["spf"])),
            helo=SpfCheck(**_with_result(values["helo"])),
            dkim=tuple(SignatureCheck(**_with_result(item)) for item in values["dkim"]),
            arc=ArcCheck(**_with_result(values["arc"]) | {"sealers": tuple(values["arc"]["sealers"])}),
            dmarc=DmarcCheck(**_with_result(values["dmarc"])),
            login=values.get("login", ""),  # versions before it wrote none
            **plain,
        )


NOT_JUDGED = Authentication()


def _with_result(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, "result": Result(values["result"])}
