"""A job for the cage: renders, and tells which modules that made it import."""

from __future__ import annotations

import sys
from typing import Any


def render_and_tell_imports(request: dict[str, Any], octets: bytes) -> tuple[dict[str, Any], bytes]:
    before = set(sys.modules)
    from gateway.outbound.typeset import render_job

    files = {"s.txt": "{{ a }}", "b.txt": "{{ a|upper }}", "b.html": "<style>p {color: red}</style><p>{{ a }}</p>"}
    render_job({"files": files, "subject": "s.txt", "text": "b.txt", "html": "b.html", "params": {"a": "x"}}, b"")
    return {"imported": sorted(set(sys.modules) - before)}, b""
