"""How a page is made: the templates, the words for times and sizes, and the headers every page carries.  Home of jinja2 here.

Promises: autoescape and StrictUndefined everywhere; no page may run a script or take a style that is not ours, or be framed;
nothing of a page is kept by a cache.  Times and sizes are written for people, their exact value in the title.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup

from gateway.runtime import Clock
from gateway.web.files import SHOWN_TYPES, file_answer, safe_headers

_WEB = Path(__file__).parent.parent
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# The frame of a strange html: it loads nothing, runs nothing, sends nothing; its pictures stand in it.
FRAME_CSP = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox"
)
_EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with less, a browser hides the Origin of our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-DNS-Prefetch-Control": "off",
}
_UNITS = ((86400 * 365, " year"), (86400 * 30, " month"), (86400, " day"), (3600, " h"), (60, " min"), (1, " s"))
_COUNTED_UNITS = frozenset({" year", " month", " day"})
_TONES = dict.fromkeys(("delivered", "relayed"), "good")
_TONES |= dict.fromkeys(("held", "delayed", "unknown"), "warn")
_TONES |= dict.fromkeys(("failed", "dead", "rejected", "expired", "bounced", "complained"), "bad")
_TONES |= dict.fromkeys(("pending", "sending"), "start")


class View:
    """The templates; one for all pages."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        loader = jinja2.FileSystemLoader(_WEB / "templates")
        self._environment = jinja2.Environment(
            loader=loader,
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters.update(
            when=self.when, exact=exact, size=size, duration=duration, ident=ident, query=query
        )
        self._environment.globals.update(version=static_version(), tone=tone)

    def page(self, request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """A whole page, or a piece of one, as a response."""
        body = self.render(name, request=request, **values)
        headers = _EVERYWHERE | {"Content-Security-Policy": CSP, "Cache-Control": "no-store"}
        return HTMLResponse(body, status_code=status, headers=headers)

    def render(self, name: str, **values: Any) -> str:
        return self._environment.get_template(name).render(**values)

    def frame(self, html: str) -> HTMLResponse:
        """A document for the sandboxed frame; `html` is sanitised."""
        body = self.render("frame.html", content=Markup(html))
        headers = _EVERYWHERE | {"Content-Security-Policy": FRAME_CSP, "Cache-Control": "private, max-age=300"}
        return HTMLResponse(body, headers=headers)

    def when(self, moment: datetime | str | None) -> Markup:
        """A moment as people say it, exact in the title."""
        if not moment:
            return Markup("–")
        at = _moment(moment)
        template = Markup('<time datetime="{}" title="{}">{}</time>')
        return template.format(at.isoformat(), exact(at), _relative(at - self._clock()))


def exact(moment: datetime | str) -> str:
    """A moment to the second."""
    return f"{_moment(moment):%Y-%m-%d %H:%M:%S} UTC"


def _moment(moment: datetime | str) -> datetime:
    return (datetime.fromisoformat(moment) if isinstance(moment, str) else moment).astimezone(UTC)


def _relative(distance: timedelta) -> str:
    seconds = distance.total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"


def duration(seconds: float | None) -> str:
    """A length of time in its largest unit."""
    if seconds is None:
        return "–"
    for length, unit in _UNITS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count}{unit}" + ("s" if unit in _COUNTED_UNITS and count != 1 else "")
    return "0 s"


def size(octets: int) -> str:
    """A number of octets for people."""
    if octets < 1000:
        return f"{octets} bytes" if octets != 1 else "1 byte"
    amount = float(octets)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 999.5:
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{amount / 1000:.1f} TB"


def ident(identity: str) -> Markup:
    """An id that looks short and is copied whole (one click selects it)."""
    return Markup('<code class="id" title="{0}">{0}</code>').format(identity)


def tone(disposition: str) -> str:
    """How a disposition is coloured; its word always stands beside the colour."""
    return _TONES.get(disposition, "plain")


def query(values: Mapping[str, Any], **changes: Any) -> str:
    """A query string of the values that are set."""
    wanted = {key: value for key, value in {**values, **changes}.items() if value not in (None, "")}
    return "?" + urlencode(wanted) if wanted else "?"


def file_response(
    request: Request, octets: bytes, *, filename: str, content_type: str = "", inline: bool = False
) -> Response:
    """A file of a stranger: only pictures are ever shown in place, all else is saved; nothing in it runs."""
    shown = content_type if inline and content_type in SHOWN_TYPES else "application/octet-stream"
    return file_answer(request, octets, {**_EVERYWHERE, **safe_headers(filename, shown)})


def static_files() -> dict[str, tuple[bytes, str]]:
    """What lies in `static`, by its path there, with its type."""
    types = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}
    folder = _WEB / "static"
    found = sorted(path for path in folder.rglob("*") if path.suffix in types)
    return {str(path.relative_to(folder)): (path.read_bytes(), types[path.suffix]) for path in found}


def static_version() -> str:
    """Changes whenever a static file does: it stands in their addresses, so that browsers may keep them."""
    digest = hashlib.sha256()
    for octets, _ in static_files().values():
        digest.update(octets)
    return digest.hexdigest()[:12]


def static_response(octets: bytes, content_type: str) -> Response:
    headers = _EVERYWHERE | {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(octets, media_type=content_type, headers=headers)
