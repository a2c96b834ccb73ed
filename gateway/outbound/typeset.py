"""The part of rendering that runs in the cage: compiles a template's texts and fills in the params.

Jinja2 in its immutable sandbox, undefined names are errors, HTML parts are escaped and their CSS is inlined.  The sandbox
stops neither `'a' * 10**9` nor nested loops, and constants fold while compiling: so both happen here, where a kill is cheap.
Promises: params are never template source; a part over 1 MiB is an error; the subject is one line; nothing is fetched.
Home of jinja2 and css-inline; imported by nobody in the gateway's own process.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import css_inline
from jinja2 import DictLoader, StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_PART_CHARACTERS = 1024 * 1024
MAX_SUBJECT_CHARACTERS = 2000
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_INLINER = css_inline.CSSInliner(load_remote_stylesheets=False, keep_at_rules=True)


class PartTooLong(Exception):
    """A template's output passed its limit."""


class _Environment(ImmutableSandboxedEnvironment):
    """Reads `order.items` as the param of this name, not as the method of dict."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def render_job(request: dict[str, Any], octets: bytes) -> tuple[dict[str, Any], bytes]:
    """Job of the cage: `files`, `subject`, `text`, `html` (names, '' for none), `params` → subject, text, html."""
    environment = _environment(tuple(sorted(request["files"].items())))
    params = request["params"]
    html = _fill(environment.get_template(request["html"]), params) if request["html"] else ""
    return {
        "subject": one_line(_fill(environment.get_template(request["subject"]), params)),
        "text": _fill(environment.get_template(request["text"]), params).strip() + "\n",
        "html": _bounded(_INLINER.inline(html)) if html else "",
    }, b""


def one_line(text: str) -> str:
    """A subject for any text: breaks and control characters become spaces, an endless one is cut."""
    line = _BREAKS.sub(" ", text).strip()
    return line if len(line) <= MAX_SUBJECT_CHARACTERS else line[: MAX_SUBJECT_CHARACTERS - 1] + "…"


@lru_cache(maxsize=64)
def _environment(files: tuple[tuple[str, str], ...]) -> _Environment:
    """Keyed by content, so an edited file is compiled anew and an unchanged one never."""
    environment = _Environment(
        loader=DictLoader(dict(files)),
        undefined=StrictUndefined,
        autoescape=lambda name: bool(name and name.endswith(".html")),
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.pop("lipsum")
    return environment


def _fill(template: Template, params: dict[str, Any]) -> str:
    parts, left = [], MAX_PART_CHARACTERS
    for part in template.generate(params):
        left -= len(part)
        if left < 0:
            raise PartTooLong(f"{template.name} makes more than {MAX_PART_CHARACTERS} characters")
        parts.append(part)
    return "".join(parts)


def _bounded(html: str) -> str:
    if len(html) > MAX_PART_CHARACTERS:
        raise PartTooLong(f"the HTML with its styles has more than {MAX_PART_CHARACTERS} characters")
    return html
