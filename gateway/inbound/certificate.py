"""The certificate of the SMTP door: two PEM files, read anew when they change; and what is wrong with them.

Flow: the door asks `Certificates.context` at each handshake; `doctor` and the alarms ask `judge`.
Promises: a pair that cannot be used never takes the place of one that can (certificate and key are seldom replaced at the
same moment): the old one stays, the log says so once, and the next change is looked at again.  TLS 1.2 or later, ephemeral
keys only, no compression, no renegotiation; client certificates are not asked for.
Limits: a key with a passphrase cannot be used; revocation (OCSP) is not looked at.  Home of cryptography.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from gateway.runtime import utc_now

# Of TLS 1.2; those of 1.3 are all good.  The last ones are for old mail servers, which would come in the clear otherwise.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:!aNULL"
RENEW_DAYS = 14
URGENT_DAYS = 3
Level = Literal["warning", "wrong"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Where a certificate (with its chain, our own first) and its key are."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What is wrong with a pair, and what to do; `wrong` = clients are refused, or will be within days.

    `subject` tells the things that may be wrong apart: `files`, `dates`, `name`, `key`.
    """

    subject: str
    level: Level
    text: str
    next_step: str


class Certificates:
    """The pair in use; `on_fault` hears of a new one that cannot be used."""

    def __init__(self, pair: Pair, *, on_fault: Callable[[Exception], None]) -> None:
        """Raises ValueError where the pair cannot be used."""
        self.pair = pair
        self._on_fault = on_fault
        self._seen = _marks(pair)
        self._context = load(pair)
        self._judged: list[Trouble] = []
        self._judged_of: object = None
        self._judge_again = utc_now()

    def context(self) -> ssl.SSLContext:
        """The context for the next handshake: of the files as they are, or of the last that were good."""
        marks = _marks(self.pair)  # before the files are read: what changes meanwhile is seen the next time
        if marks != self._seen:
            self._seen = marks
            try:
                self._context = load(self.pair)
            except ValueError as fault:
                self._on_fault(fault)
        return self._context

    def judge(self, *, hostname: str) -> list[Trouble]:
        """What is wrong with the files now; they are read again only when they have changed, or an hour later."""
        now, marks = utc_now(), _marks(self.pair)
        if (marks, hostname) != self._judged_of or now > self._judge_again:
            self._judged_of, self._judge_again = (marks, hostname), now + timedelta(hours=1)
            self._judged = judge(self.pair, hostname=hostname, now=now)
        return self._judged


def load(pair: Pair) -> ssl.SSLContext:
    """The context of a pair; raises ValueError with what is wrong with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    for path in (pair.certificate, pair.key):
        try:
            path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
    try:
        context.load_cert_chain(pair.certificate, pair.key, password=_no_passphrase)
    except ssl.SSLError as error:
        what = "is not the key of" if error.reason == "KEY_VALUES_MISMATCH" else "and"
        why = (
            "" if error.reason == "KEY_VALUES_MISMATCH" else f" are no certificate and its key: {error.reason or error}"
        )
        raise ValueError(f"{pair.key} {what} {pair.certificate}{why}") from None
    return context


def judge(pair: Pair, *, hostname: str, now: datetime) -> list[Trouble]:
    """What is wrong with the files as they are; nothing = all is well."""
    try:
        load(pair)
    except ValueError as fault:
        step = "put the right files there; nothing needs a restart while the gateway runs"
        return [Trouble(subject="files", level="wrong", text=str(fault), next_step=step)]
    return [*_of_certificate(pair.certificate.read_bytes(), hostname, now), *_of_key(pair.key)]


def expiry(pair: Pair) -> datetime:
    """When the certificate ends; raises ValueError for what is none."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(pair.certificate.read_bytes()).not_valid_after_utc


def _of_certificate(octets: bytes, hostname: str, now: datetime) -> Iterator[Trouble]:
    from cryptography import x509

    found = x509.load_pem_x509_certificate(octets)  # the first one: our own
    days = (found.not_valid_after_utc - now).total_seconds() / 86400
    renew = "renew it; the new files are used from the next connection on"
    if days < 0:
        text = f"the certificate has expired at {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        yield Trouble(subject="dates", level="wrong", text=text, next_step=renew)
    elif days < RENEW_DAYS:
        text = f"the certificate expires at {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, in {days:.0f} days"
        yield Trouble(subject="dates", level="wrong" if days < URGENT_DAYS else "warning", text=text, next_step=renew)
    if found.not_valid_before_utc > now:
        text = f"the certificate is good from {found.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on only"
        yield Trouble(subject="dates", level="wrong", text=text, next_step="look at this machine's clock")
    names = _names(found)
    if not any(_covers(name, hostname.lower()) for name in names):
        text = f"the certificate is for {', '.join(names) or 'no name'}, and we call ourselves {hostname}"
        step = "set hostname to the name your MX record has, or get a certificate for it"
        yield Trouble(subject="name", level="warning", text=text, next_step=step)


def _names(certificate: object) -> list[str]:
    from cryptography import x509

    assert isinstance(certificate, x509.Certificate)
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]


def _covers(name: str, hostname: str) -> bool:
    """RFC 6125: the star stands for one label, the leftmost."""
    return name == hostname or (name.startswith("*.") and name[2:] == hostname.partition(".")[2])


def _of_key(path: Path) -> Iterator[Trouble]:
    if path.stat().st_mode & 0o007:
        step = f"chmod o= {path}; if others were on this machine, make a new key"
        yield Trouble(
            subject="key", level="warning", text=f"everybody on this machine may read the key {path}", next_step=step
        )


def _marks(pair: Pair) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when a file is replaced or written."""
    return tuple(_mark(path) for path in (pair.certificate, pair.key))


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _no_passphrase() -> bytes:
    raise ValueError("the key has a passphrase, which nobody is here to type")
