"""DKIM (RFC 6376, 8301, 8463) and ARC (RFC 8617): what is signed is chosen here, keys are fetched here, the cage verifies.

Before anything is verified a signature must be one that proves something: its h= names From, its algorithm is of today, its d=
and s= are plain domains, it signs the whole body (l= lets anybody add to it) and every instance of a field that should stand
once, and it is short.  At most `MAX_SIGNATURES` are verified, those of the author's domain first, and chains of at most
`MAX_INSTANCES`.
Promises: a key that cannot be looked up now is `temperror`; a cage that ends at its limit is `permerror` with that reason;
nothing a mail or a key says raises from here, except that no cage is there (TransientFailure).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway.errors import JobFailed, OverBudget
from gateway.inbound.authenticate.header import Field, Header
from gateway.inbound.authenticate.resolver import DnsFault
from gateway.inbound.authenticate.result import ArcCheck, Result, SignatureCheck
from gateway.inbound.authenticate.spf import Ask
from gateway.mail.addresses import domain_to_ascii
from gateway.mail.parse import Cage

MAX_SIGNATURES = 5
MAX_TOLD = 20
MAX_INSTANCES = 10
_MAX_VALUE = 8 * 1024
_MAX_SIGNED_FIELDS = 200
_MAX_KEY_BYTES = 2_048
_ALGORITHMS = ("rsa-sha256", "ed25519-sha256")
_BLANKS = re.compile(r"[ \t]{65}")
_INSTANCE = re.compile(r"(?:^|;)\s*i\s*=\s*(\d{1,4})\s*(?:;|$)")
_JOB = "gateway.inbound.authenticate.signature_job:verify_job"
_CPU_SECONDS, _CPU_SECONDS_PER_MEGABYTE, _MAX_CPU_SECONDS = 1.5, 0.3, 15.0
_WALL_SECONDS = 60.0
_ARC_FIELDS = ("arc-seal", "arc-message-signature")
Keys = dict[str, str | DnsFault]


@dataclass(frozen=True, slots=True)
class _Claim:
    """A signature worth verifying: the `index`-th of the mail."""

    index: int
    key_name: str
    check: SignatureCheck


async def check_signatures(
    octets: bytes, header: Header, ask: Ask, cage: Cage, *, prefer: str = ""
) -> tuple[tuple[SignatureCheck, ...], ArcCheck]:
    """Every signature in its order, and the chain; `prefer` is the domain whose signatures are looked at first."""
    repeated = header.repeated()
    found = [_claim(index, field, repeated) for index, field in enumerate(header.all("dkim-signature"))]
    claims = [item for item in found if isinstance(item, _Claim)]
    chosen = sorted(claims, key=lambda claim: not _is_near(claim.check.domain, prefer))[:MAX_SIGNATURES]
    arc, arc_names = _chain(header)
    keys = await _fetch({claim.key_name for claim in chosen} | arc_names, ask)
    verified = await _verify(octets, chosen, arc, keys, cage)
    by_index = {claim.index: check for claim, check in zip(chosen, verified[0], strict=True)}
    late = "not looked at: the mail has too many signatures"
    told = [by_index.get(index) or _unverified(item, late) for index, item in enumerate(found)]
    return tuple(told[:MAX_TOLD]), verified[1]


def _unverified(item: _Claim | SignatureCheck, reason: str) -> SignatureCheck:
    return replace(item.check, result=Result.POLICY, reason=reason) if isinstance(item, _Claim) else item


def _claim(index: int, field: Field, repeated: Mapping[str, int]) -> _Claim | SignatureCheck:
    try:
        tags = tags_of(field.value)
        domain, selector = _domain(tags.get("d", "")), _domain(tags.get("s", ""), is_selector=True)
    except ValueError as error:
        return SignatureCheck(result=Result.PERMERROR, reason=f"it cannot be read: {error}")
    check = SignatureCheck(result=Result.NONE, domain=domain, selector=selector[:100], algorithm=tags.get("a", "")[:30])
    if doubt := _doubt(tags, repeated):
        return replace(check, result=Result.POLICY, reason=doubt)
    return _Claim(index, f"{selector}._domainkey.{domain}", check)


def tags_of(value: str) -> dict[str, str]:
    """A tag list (RFC 6376, section 3.2); raises ValueError, also for what costs more to read than honest ones."""
    if len(value) > _MAX_VALUE or _BLANKS.search(value):
        raise ValueError("it is longer than honest ones")
    tags: dict[str, str] = {}
    for item in value.rstrip(" \t;").split(";"):
        name, equals, text = item.partition("=")
        if not equals or not name.strip().replace("_", "").isalnum():
            raise ValueError("a tag without =")
        if name.strip() in tags:
            raise ValueError(f"the tag {name.strip()[:20]} twice")
        tags[name.strip()] = text.strip(" \t")
    return tags


def _doubt(tags: Mapping[str, str], repeated: Mapping[str, int]) -> str:
    """Why a signature proves nothing even if it is sound, '' when it may."""
    signed = [name.strip().lower() for name in tags.get("h", "").split(":")]
    if tags.get("a", "").lower() not in _ALGORITHMS:
        return "its algorithm is not one of today's (RFC 8301)"
    if "from" not in signed:
        return "it does not sign From"
    if len(signed) > _MAX_SIGNED_FIELDS:
        return "it signs more fields than honest ones do"
    if "l" in tags:
        return "it signs the beginning of the body only (l=), so that anybody may add to it"
    open_to_all = [name for name, count in repeated.items() if signed.count(name) < count]
    if open_to_all:
        return f"the mail has {repeated[open_to_all[0]]} {open_to_all[0].title()} fields, and it does not sign them all"
    return ""


def _domain(text: str, *, is_selector: bool = False) -> str:
    """A d= or s= as lower-case A-labels; raises ValueError for all that has a blank, a dot at its end, or one label."""
    domain = domain_to_ascii(f"{text}.selector" if is_selector else text)
    if domain.startswith("[") or "." not in domain:
        raise ValueError(f"{text[:60]!r} is no domain to sign for")
    return domain.removesuffix(".selector") if is_selector else domain


def _is_near(domain: str, other: str) -> bool:
    return bool(other) and (domain == other or other.endswith(f".{domain}") or domain.endswith(f".{other}"))


def _chain(header: Header) -> tuple[ArcCheck | None, set[str]]:
    """None when there is a chain to verify, with its keys' names; else what is to be said of it."""
    fields = [field for name in _ARC_FIELDS for field in header.all(name)]
    if not fields:
        return ArcCheck(), set()
    names: set[str] = set()
    for field in fields:
        instance = _INSTANCE.search(field.value)
        if instance is None or not 1 <= int(instance[1]) <= MAX_INSTANCES:
            return ArcCheck(result=Result.PERMERROR, reason=f"not a chain of at most {MAX_INSTANCES}"), set()
        try:
            tags = tags_of(field.value)
            names.add(f"{_domain(tags.get('s', ''), is_selector=True)}._domainkey.{_domain(tags.get('d', ''))}")
        except ValueError as error:
            return ArcCheck(result=Result.PERMERROR, reason=f"it cannot be read: {error}"), set()
    if len(fields) > MAX_INSTANCES * len(_ARC_FIELDS):
        return ArcCheck(result=Result.PERMERROR, reason=f"not a chain of at most {MAX_INSTANCES}"), set()
    return None, names


async def _fetch(names: set[str], ask: Ask) -> Keys:
    async def one(name: str) -> str | DnsFault:
        try:
            answer = await ask(name, "TXT")
        except DnsFault as fault:
            return fault
        texts = [item for item in answer if isinstance(item, bytes)]
        if len(texts) != 1 or len(texts[0]) > _MAX_KEY_BYTES:
            return ""
        return texts[0].decode("ascii", "replace")

    wanted = sorted(names)
    return dict(zip(wanted, await asyncio.gather(*map(one, wanted)), strict=True))


async def _verify(
    octets: bytes, claims: Sequence[_Claim], arc: ArcCheck | None, keys: Keys, cage: Cage
) -> tuple[list[SignatureCheck], ArcCheck]:
    known = {name: key for name, key in keys.items() if isinstance(key, str) and key}
    ready = [claim for claim in claims if claim.key_name in known]
    answer: dict[str, Any] = {"signatures": [], "arc": None}
    if ready or arc is None:
        request = {"signatures": [claim.index for claim in ready], "arc": arc is None, "keys": known}
        answer = await _in_cage(request, octets, cage)
    told = {claim.index: item for claim, item in zip(ready, answer["signatures"], strict=True)}
    checks = [_checked(claim, keys[claim.key_name], told.get(claim.index)) for claim in claims]
    return checks, arc or _chain_checked(answer["arc"], keys)


def _checked(claim: _Claim, key: str | DnsFault, told: Sequence[str] | None) -> SignatureCheck:
    if isinstance(key, DnsFault):
        return replace(claim.check, result=Result.TEMPERROR, reason=f"its key cannot be looked up now ({key})")
    if told is None:
        return replace(claim.check, result=Result.PERMERROR, reason="there is no such key, or more than one")
    return replace(claim.check, result=Result(told[0]), reason=told[1])


def _chain_checked(told: Mapping[str, Any], keys: Keys) -> ArcCheck:
    result = Result(told["result"])
    if result is not Result.PASS and any(isinstance(key, DnsFault) for key in keys.values()):
        result = Result.TEMPERROR
    return ArcCheck(result=result, sealers=tuple(told["sealers"]), reason=told["reason"])


async def _in_cage(request: dict[str, Any], octets: bytes, cage: Cage) -> dict[str, Any]:
    passes = len(request["signatures"]) + 2 * request["arc"]
    cpu_seconds = min(_MAX_CPU_SECONDS, _CPU_SECONDS + _CPU_SECONDS_PER_MEGABYTE * passes * len(octets) / 2**20)
    try:
        answer, _ = await cage.run(_JOB, request, octets, cpu_seconds=cpu_seconds, wall_seconds=_WALL_SECONDS)
        return answer
    except (OverBudget, JobFailed) as fault:
        reason = (
            f"verifying ended at its limit ({fault.kind})" if isinstance(fault, OverBudget) else "cannot be verified"
        )
        failed = ["permerror", reason]
        return {
            "signatures": [failed for _ in request["signatures"]],
            "arc": {"result": "permerror", "sealers": [], "reason": reason},
        }
