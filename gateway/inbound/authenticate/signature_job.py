"""Verifying DKIM and ARC signatures, in the cage: dkimpy's expressions take the square of a run of blanks, and a key may be any
number.  Home of dkimpy.

Guards what dkimpy leaves open: the size of a key and its exponent, its k= against the signature's a=, its h=, s= and t=.
Keys were looked up before; one that was not is absent here.  Every fault of a signature is its own result.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import dkim
from dkim.crypto import parse_public_key

from gateway.inbound.authenticate.signatures import tags_of

_MIN_BITS, _MAX_BITS = 1024, 4096
_MAX_EXPONENT_BITS = 33


class _BadKey(Exception):
    """The key is not one to believe; the text says why."""


class _TestingKey(_BadKey):
    """The key says of itself that it is being tried out (t=y): as good as unsigned (RFC 6376, section 3.6.1)."""


def verify_job(request: dict[str, Any], octets: bytes) -> tuple[dict[str, Any], bytes]:
    """`signatures`: [result, reason] of each index asked for; `arc`: result, sealers and reason, if asked for."""
    keys: Mapping[str, str] = request["keys"]

    def lookup(name: bytes, timeout: float = 0) -> bytes | None:
        key = keys.get(name.decode("ascii", "replace").rstrip(".").lower())
        return None if key is None else key.encode("ascii", "replace")

    verifier = dkim.DKIM(octets)
    told = [_signature(verifier, index, keys, lookup) for index in request["signatures"]]
    return {"signatures": told, "arc": _chain(octets, keys, lookup) if request["arc"] else None}, b""


def _signature(verifier: Any, index: int, keys: Mapping[str, str], lookup: Any) -> list[str]:
    try:
        tags, _, _ = verifier.verify_headerprep(index)
        values = {name.decode(): value.decode() for name, value in tags.items()}
        name = f"{values['s']}._domainkey.{values['d']}".lower()
        check_key(tags_of(keys[name]), values)
        is_sound = verifier.verify(idx=index, dnsfunc=lookup)
    except _TestingKey as error:
        return ["neutral", str(error)]
    except _BadKey as error:
        return ["permerror", str(error)]
    except dkim.ValidationError as error:
        return ["fail" if "hash mismatch" in str(error) else "permerror", _words(error)]
    # Broad: dkimpy raises what it stumbles over; all of it is this signature's own fault.
    except Exception as error:  # noqa: BLE001
        return ["permerror", _words(error)]
    return ["pass", ""] if is_sound else ["fail", "the signature does not fit the header"]


def check_key(key: Mapping[str, str], signature: Mapping[str, str]) -> None:
    """Raises _BadKey for a key that dkimpy would take and we do not."""
    kind = key.get("k", "rsa").lower()
    if key.get("v", "DKIM1") != "DKIM1":
        raise _BadKey("the key is of another version")
    if kind != signature["a"].partition("-")[0].lower():
        raise _BadKey("the key is of another kind than the signature")
    if "h" in key and "sha256" not in _words_of(key["h"]):
        raise _BadKey("the key is not for this hash")
    if not {"*", "email"} & _words_of(key.get("s", "*")):
        raise _BadKey("the key is not for email")
    if not key.get("p"):
        raise _BadKey("the key was revoked")
    flags = _words_of(key.get("t", ""))
    if "s" in flags and signature.get("i", "@").rpartition("@")[2].lower() not in ("", signature["d"].lower()):
        raise _BadKey("the key is not for subdomains")
    if kind == "rsa":
        _check_size(key["p"])
    if "y" in flags:
        raise _TestingKey("the key is being tried out (t=y)")


def _check_size(text: str) -> None:
    try:
        key = parse_public_key(base64.b64decode("".join(text.split())))
        bits, exponent = int(key["modulus"]).bit_length(), int(key["publicExponent"])
    except Exception:  # noqa: BLE001 - the parser raises IndexError and others for what is no key
        raise _BadKey("the key cannot be read") from None
    if not _MIN_BITS <= bits <= _MAX_BITS:
        raise _BadKey(f"the key has {bits} bits; {_MIN_BITS} to {_MAX_BITS} are taken")
    if exponent < 3 or exponent.bit_length() > _MAX_EXPONENT_BITS:
        raise _BadKey("the key has an exponent that no honest one has")


def _chain(octets: bytes, keys: Mapping[str, str], lookup: Any) -> dict[str, Any]:
    try:
        for text in keys.values():
            tags = tags_of(text)
            if tags.get("k", "rsa").lower() == "rsa" and tags.get("p"):
                _check_size(tags["p"])
        validity, found, reason = dkim.ARC(octets).verify(dnsfunc=lookup)
    except Exception as error:  # noqa: BLE001 - as above
        return {"result": "permerror", "sealers": [], "reason": _words(error)}
    result = {dkim.CV_Pass: "pass", dkim.CV_None: "none"}.get(validity, "fail")
    sealers = [item["as-domain"].decode("ascii", "replace") for item in reversed(found) if "as-domain" in item]
    return {"result": result, "sealers": sealers, "reason": "" if result == "pass" else str(reason)[:200]}


def _words_of(text: str) -> set[str]:
    return {word.strip().lower() for word in text.split(":")} - {""}


def _words(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]
