"""What was found out about a sender, as lines a person reads; for the story at the terminal and in the pages.

Takes what `Authentication.to_json` wrote and the store kept, of this version or another: what is missing is passed over.
Values of strangers stay text: whoever shows the lines makes them harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SOURCES = {
    "own": "looked up by us",
    "login": "the author has logged in at our door",
    "mta": "told by our mail server",
    "both": "told by our mail server, and looked up by us where it says nothing",
}
_SHOWN_SIGNATURES = 5


def words_of(found: Mapping[str, Any]) -> list[str]:
    """The verdict first, then how each mechanism came to its part; nothing for a mail that was not judged."""
    return [line for line in _lines(found) if line] if found else []


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield _verdict(found)
    place = "here" if found.get("source") == "login" else "at our mail server"
    yield f"logged in {place} as {found['login']}" if found.get("login") else ""
    yield _spf(found.get("spf") or {}, "SPF")
    yield _spf(found.get("helo") or {}, "SPF of HELO")
    yield from _signatures(found.get("dkim") or ())
    yield _chain(found.get("arc") or {})
    yield _dmarc(found.get("dmarc") or {})
    yield f"junk: {found['junk']}" if found.get("junk") else ""
    yield _SOURCES.get(found.get("source") or "", "")


def _verdict(found: Mapping[str, Any]) -> str:
    author = found.get("author") or "not known"
    if found.get("verdict") == "pass":
        return f"{author}: {found.get('aligned_domain')} vouches for it ({found.get('aligned_by') or '?'})"
    return f"{author}: {found.get('reason') or 'not judged'}"


def _spf(check: Mapping[str, Any], name: str) -> str:
    if not check.get("domain") and check.get("result") in (None, "none"):
        return ""
    return _with_reason(f"{name} {check.get('result')} for {check.get('domain') or 'no domain'}", check)


def _signatures(checks: Any) -> Iterator[str]:
    for check in checks[:_SHOWN_SIGNATURES]:
        facts = (("d", check.get("domain")), ("s", check.get("selector")), ("a", check.get("algorithm")))
        said = " ".join(f"{tag}={value}" for tag, value in facts if value)
        yield _with_reason(f"DKIM {check.get('result')} {said}".rstrip(), check)
    if more := len(checks) - _SHOWN_SIGNATURES:
        yield f"and {more} more signatures" if more > 0 else ""
    if not checks:
        yield "DKIM none: it has no signature"


def _chain(check: Mapping[str, Any]) -> str:
    if check.get("result") in (None, "none"):
        return ""
    sealers = ", ".join(check.get("sealers") or ())
    return _with_reason(f"ARC {check.get('result')}{f' by {sealers}' if sealers else ''}", check)


def _dmarc(check: Mapping[str, Any]) -> str:
    if not check.get("domain"):
        return ""
    policy = f" (p={check['policy']})" if check.get("policy") else ""
    return _with_reason(f"DMARC {check.get('result')} for {check['domain']}{policy}", check)


def _with_reason(line: str, check: Mapping[str, Any]) -> str:
    return f"{line}: {check['reason']}" if check.get("reason") else line
