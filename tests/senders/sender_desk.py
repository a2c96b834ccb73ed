"""A desk where senders are judged: a fake name server, a real resolver, a real cage, and a mill for signed mail."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dkim
import nacl.encoding
import nacl.signing
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fake_dns import FakeDns

from gateway.cage import Cage
from gateway.inbound.authenticate import Authentication
from gateway.inbound.authenticate.authenticator import Authenticator, TrustedMta
from gateway.inbound.authenticate.resolver import Resolver
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id

MEMBER_HOST = "192.0.2.10"
STRANGER_HOST = "203.0.113.66"
SIGNED = (b"from", b"to", b"subject")


@functools.cache
def rsa_key(bits: int = 2048) -> tuple[bytes, str]:
    """A private key as dkimpy takes it, and the p= of its record."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, base64.b64encode(public).decode()


def odd_key(exponent: int, bits: int) -> str:
    """The p= of a key nobody would make: an RSAPublicKey (RFC 8017) of any two numbers."""
    numbers = b"".join(_der(2, value.to_bytes(value.bit_length() // 8 + 1, "big")) for value in (2**bits - 1, exponent))
    return base64.b64encode(_der(0x30, numbers)).decode()


def _der(tag: int, octets: bytes) -> bytes:
    return bytes([tag, 0x82]) + len(octets).to_bytes(2, "big") + octets


@functools.cache
def ed25519_key() -> tuple[bytes, str]:
    key = nacl.signing.SigningKey.generate()
    public = key.verify_key.encode(encoder=nacl.encoding.Base64Encoder).decode()
    return key.encode(encoder=nacl.encoding.Base64Encoder), public


def mail(author: str = "Ann <ann@example.org>", body: str = "Hello", *, more: Sequence[str] = ()) -> bytes:
    """A mail of CR LF lines; `more` are whole header lines on top."""
    lines = [*more, f"From: {author}", "To: photos@in.example.net", "Subject: A day", "", body]
    return "".join(f"{line}\r\n" for line in lines).encode()


def signed(octets: bytes, domain: str = "example.org", *, selector: str = "s1", **values: Any) -> bytes:
    """The same mail with a signature on top, by the key of `Desk`."""
    given = {"algorithm": b"rsa-sha256", "key": rsa_key()[0], "include": SIGNED, "length": False} | values
    line = dkim.DKIM(octets).sign(
        selector.encode(),
        domain.encode(),
        given["key"],
        signature_algorithm=given["algorithm"],
        include_headers=list(given["include"]),
        canonicalize=(b"relaxed", b"relaxed"),
        length=given["length"],
    )
    return bytes(line) + octets


@dataclass
class Desk:
    dns: FakeDns
    cage: Cage
    resolver: Resolver
    trusted: TrustedMta = field(default_factory=TrustedMta)

    async def judge(self, octets: bytes, **values: Any) -> Authentication:
        return await Authenticator(self.resolver, self.cage, trusted=self.trusted).authenticate(
            envelope(**values), octets
        )


def envelope(**values: Any) -> Envelope:
    facts: dict[str, Any] = {
        "mail_from": "ann@example.org",
        "client": STRANGER_HOST,
        "helo": "host.example.com",
        "door": "smtp",
    }
    return Envelope(
        mail_id=new_id(), rcpt_to=("photos@in.example.net",), received_at=datetime.now(UTC), **facts | values
    )


def zone() -> dict[str, list[tuple[str, Any]]]:
    """The world: example.org (Ann's, which signs and has SPF), evil.example.com, and suffixes that tell lies."""
    p = f"v=DKIM1; k=rsa; p={rsa_key()[1]}"
    theirs = [("TXT", "v=spf1 ip4:203.0.113.66 -all")]
    found: dict[str, list[tuple[str, Any]]] = {
        "example.org": [("TXT", f"v=spf1 ip4:{MEMBER_HOST} -all"), ("TXT", "an unrelated text")],
        "s1._domainkey.example.org": [("TXT", p)],
        "ed._domainkey.example.org": [("TXT", f"v=DKIM1; k=ed25519; p={ed25519_key()[1]}")],
        "_dmarc.example.org": [("TXT", "v=DMARC1; p=reject; sp=quarantine")],
        "strict.net": [("TXT", f"v=spf1 ip4:{MEMBER_HOST} -all")],
        "news.strict.net": [("TXT", f"v=spf1 ip4:{MEMBER_HOST} -all")],
        "_dmarc.strict.net": [("TXT", "v=DMARC1; p=reject; adkim=s; aspf=s")],
        "evil.example.com": theirs,
        "host.example.com": theirs,
    }
    signers = (
        "news.example.org strict.net news.strict.net evil.example.com com org co.uk bank.co.uk thief.co.uk github.io"
    )
    for domain in (*signers.split(), "thief.github.io", "example.com"):
        found[f"s1._domainkey.{domain}"] = [("TXT", p)]
        found.setdefault(domain, theirs)
    return found
