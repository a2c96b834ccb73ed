"""One strict mailbox grammar of ours, both directions (RFC 5321 section 4.1.2, RFC 6531), and display names beside it.

Used by the contract (what apps send), the doors (what clients say in MAIL and RCPT), compose and relay.  A mailbox is a
dot-atom or a quoted-string, exactly one `@`, and a domain of LDH labels, IDN labels or an address literal.
Promises: what passes is one mailbox for every parser that may read it later (no spaces, commas, angle brackets, control
or direction characters, encoded words), in NFC; the null sender '' never passes.
A door takes an envelope's sender with less (`parse_sender`): refused, it would be lost for a grammar that its owner cannot mend.
Limits: comments, groups and source routes are refused; the null sender is the caller's own case.  Home of idna.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from dataclasses import dataclass

MAX_LOCAL_OCTETS = 64
MAX_DOMAIN_OCTETS = 255
MAX_MAILBOX_OCTETS = 254
MAX_ADDRESS_CHARACTERS = 1000
MAX_SENDER_CHARACTERS = 500

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\u0080-\U0010ffff]+"
_DOT_ATOM = re.compile(rf"{_ATOM}(\.{_ATOM})*")
_QUOTED = re.compile(r'"(?:[A-Za-z0-9!#$%&\'*+/=?^_`{|}~\-.()\[\]:;\u0080-\U0010ffff]|\\["\\])*"')
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_SENDER_IN_USE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_ENCODED_WORD = re.compile(r"=\?.*\?=")
_QUOTED_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"')
_NAME_SPECIALS = frozenset(',;:@"<>')
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_DIRECTION_MARKS = frozenset("\u061c\u200e\u200f")  # harmless in a name of a right-to-left script
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"})
_BREAKING = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A mailbox with an optional display name."""

    mailbox: str
    name: str = ""

    @property
    def key(self) -> str:
        """For comparison: the domain as lower-case A-labels, the local part without needless quotes, its case kept."""
        local, _, domain = self.mailbox.rpartition("@")
        if local.startswith('"') and _DOT_ATOM.fullmatch(local[1:-1]):
            local = local[1:-1]
        try:
            return f"{local}@{domain_to_ascii(domain)}"
        except ValueError:
            return f"{local}@{domain.lower()}"


def parse_mailbox(text: str) -> str:
    """Returns `text` in NFC if it is exactly one mailbox `local@domain`; raises ValueError saying what is wrong."""
    if not text:
        raise ValueError("is empty, an address like ann@example.org is needed")
    if len(text) > MAX_MAILBOX_OCTETS:
        raise ValueError(f"is longer than {MAX_MAILBOX_OCTETS} octets")
    mailbox = unicodedata.normalize("NFC", text)
    _refuse_unseen(mailbox)
    if mailbox.count("@") != 1:
        raise ValueError("must contain exactly one @" if "@" in mailbox else "has no @")
    local, _, domain = mailbox.partition("@")
    _check_local(local)
    ascii_domain = domain_to_ascii(domain)
    if max(_octets(mailbox), _octets(local) + 1 + len(ascii_domain)) > MAX_MAILBOX_OCTETS:
        raise ValueError(f"is longer than {MAX_MAILBOX_OCTETS} octets")
    return mailbox


def parse_sender(text: str) -> str:
    """Returns an envelope's sender: a mailbox, or what is in use as one; raises the ValueError of `parse_mailbox`.

    Forgiven are a long local part (RFC 5321, section 4.5.3.1, wants no limit; VERP needs more), dots anywhere in it (phones),
    and any domain of letters, digits, `-` and `_` (scanners). Whoever compares or answers asks `parse_mailbox`, to which such a
    sender is nobody.
    """
    try:
        return parse_mailbox(text)
    except ValueError:
        is_in_use = len(text) <= MAX_SENDER_CHARACTERS and _SENDER_IN_USE.fullmatch(text)
        if not is_in_use or _ENCODED_WORD.search(text):
            raise
        return text


def parse_address(text: str) -> Address:
    """Reads `local@domain` or `Display Name <local@domain>`, the name quoted or plain; raises ValueError."""
    if len(text) > MAX_ADDRESS_CHARACTERS:
        raise ValueError(f"is longer than {MAX_ADDRESS_CHARACTERS} characters")
    text = text.strip(" ")
    if not text.endswith(">"):
        return Address(mailbox=parse_mailbox(text))
    name, opening, mailbox = text[:-1].rpartition("<")
    if not opening:
        raise ValueError("has > without <")
    return Address(mailbox=parse_mailbox(mailbox), name=_parse_name(name.strip(" ")))


def domain_to_ascii(domain: str) -> str:
    """Returns the domain as lower-case A-labels (RFC 5891) or the address literal as it is; raises ValueError."""
    if domain.startswith("["):
        return _check_literal(domain)
    if len(domain) > MAX_DOMAIN_OCTETS:
        raise ValueError(f"the domain is longer than {MAX_DOMAIN_OCTETS} octets")
    ascii_domain = domain.lower() if domain.isascii() else _encode_idn(domain)
    labels = ascii_domain.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{domain!r} is not a domain name")
    if labels[-1].isdigit():
        raise ValueError(f"{domain!r} is not a domain name; an IP address goes in brackets")
    if len(ascii_domain) > MAX_DOMAIN_OCTETS:
        raise ValueError(f"the domain is longer than {MAX_DOMAIN_OCTETS} octets")
    return ascii_domain


def domain_to_unicode(domain: str) -> str:
    """Returns the domain as U-labels, as people write it; one that cannot be read so stays as it is."""
    import idna

    try:
        return idna.decode(domain)
    except idna.IDNAError:
        return domain


def needs_smtputf8(mailbox: str) -> bool:
    """Whether only a server with SMTPUTF8 can take this mailbox: a domain has an ASCII form, a local part has none."""
    return not mailbox.rpartition("@")[0].isascii()


def wire_mailbox(mailbox: str) -> str:
    """The mailbox as SMTP and headers carry it: domain as A-labels, local part untouched."""
    local, _, domain = mailbox.rpartition("@")
    return f"{local}@{domain_to_ascii(domain)}"


def _octets(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _refuse_unseen(mailbox: str) -> None:
    for character in mailbox:
        if character in " ,<>":
            raise ValueError(f"is not one address: {character!r} is not allowed in it")
        if character in _DIRECTION or unicodedata.category(character) in _UNSEEN:
            raise ValueError(f"contains the invisible character U+{ord(character):04X}")
    if _ENCODED_WORD.search(mailbox):
        raise ValueError("contains an encoded word (=?…?=)")


def _check_local(local: str) -> None:
    if not local:
        raise ValueError("has nothing before the @")
    if _octets(local) > MAX_LOCAL_OCTETS:
        raise ValueError(f"has more than {MAX_LOCAL_OCTETS} octets before the @")
    if not _DOT_ATOM.fullmatch(local) and not (_QUOTED.fullmatch(local) and len(local) > 2):
        raise ValueError(f"{local!r} cannot stand before the @ (misplaced dots, brackets or quotes)")


def _check_literal(domain: str) -> str:
    inner = domain[1:-1]
    try:
        if not domain.endswith("]") or "%" in inner:
            raise ValueError
        if inner[:5].lower() == "ipv6:":
            ipaddress.IPv6Address(inner[5:])
        else:
            ipaddress.IPv4Address(inner)
    except ValueError:
        raise ValueError(f"{domain!r} is not an address literal like [192.0.2.1] or [IPv6:2001:db8::1]") from None
    return domain.lower()


def _encode_idn(domain: str) -> str:
    import idna

    try:
        return idna.encode(domain, uts46=True, std3_rules=True).decode("ascii").lower()
    except UnicodeError as error:
        raise ValueError(f"{domain!r} is not an internationalised domain name: {error}") from None


def _parse_name(name: str) -> str:
    quoted = _QUOTED_NAME.fullmatch(name)
    if quoted:
        name = re.sub(r"\\(.)", r"\1", quoted[1])
    elif specials := sorted(_NAME_SPECIALS & set(name)):
        raise ValueError(f"is not one address: a display name with {' '.join(specials)} must stand in double quotes")
    if "<" in name or ">" in name:
        raise ValueError("the display name contains < or >")
    for character in name:
        if unicodedata.category(character) in _BREAKING or character in _DIRECTION - _DIRECTION_MARKS:
            raise ValueError(f"the display name contains the control character U+{ord(character):04X}")
    return name.strip(" ")
