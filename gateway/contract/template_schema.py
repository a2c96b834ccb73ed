"""What a template wants of its params: `schema.json` (JSON Schema, draft 2020-12) in the template's folder.

Used by the client before it publishes and by acceptance, so a missing or wrong param never reaches an inbox.
Promises: every problem at once, with a path an app would write (`params.items[0].price`), never quoting a value; files are
read anew at each check, so an edit holds at once; nothing is fetched from anywhere.  Home of jsonschema-rs.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from gateway.errors import Problem

_MAX_PROBLEMS = 100
_MAX_PATH_SHOWN = 500
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def template_folders(dirs: Sequence[Path]) -> dict[str, Path]:
    """The templates by name, those of earlier folders first in sight."""
    found: dict[str, Path] = {}
    for directory in dirs:
        for folder in sorted(directory.iterdir()) if directory.is_dir() else ():
            if _is_template(folder):
                found.setdefault(folder.name, folder)
    return found


def template_folder(dirs: Sequence[Path], name: str) -> Path | None:
    """The folder of one template; None when there is none of this name."""
    if not _NAME.fullmatch(name):
        return None
    return next((directory / name for directory in dirs if _is_template(directory / name)), None)


def problems_in(dirs: Path | Sequence[Path], template: str, params: dict[str, Any]) -> list[Problem]:
    """Checks params against a template's schema; a missing template names the nearest ones."""
    dirs = [dirs] if isinstance(dirs, Path) else dirs
    folder = template_folder(dirs, template)
    if folder is None:
        return [Problem("template", _missing(template, template_folders(dirs)))]
    try:
        validator = _validator((folder / "schema.json").read_bytes())
    except (OSError, ValueError) as error:
        return [Problem("template", f"{template} has no usable schema.json: {_first_line(error)}")]
    try:
        told = ((path, text) for error in validator.iter_errors(params) for path, text in _told(error))
        return [Problem(path[:_MAX_PATH_SHOWN], text) for path, text in islice(told, _MAX_PROBLEMS)]
    except ValueError as error:
        return [Problem("params", f"cannot be read as JSON: {_first_line(error)}")]


def _is_template(folder: Path) -> bool:
    return (folder / "subject.txt").is_file() and bool(_NAME.fullmatch(folder.name))


def _missing(template: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(template, known, n=2, cutoff=0.5) or sorted(known)[:5]
    return f"there is no template {template!r}" + (f", perhaps {' or '.join(near)}?" if near else "")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any:
    import jsonschema_rs

    return jsonschema_rs.validator_for(
        json.loads(schema), mask="the value", validate_formats=True, retriever=_fetch_nothing
    )


def _fetch_nothing(uri: str) -> Any:
    raise ValueError(f"schemas are not fetched: {uri}")


def _told(error: Any) -> Iterator[tuple[str, str]]:
    path = "params" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path)
    if error.kind.name == "required":
        yield f"{path}.{error.kind.property}", "is missing"
    elif error.kind.name in {"additionalProperties", "unevaluatedProperties"}:
        yield from ((f"{path}.{name}", "is unknown to this template") for name in error.kind.unexpected)
    else:
        yield path, _first_line(error).removeprefix("the value ")
