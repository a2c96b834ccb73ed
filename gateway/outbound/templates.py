"""The template folders: what an email is made of, read from disk and handed to the cage as text.

`<name>/` holds `subject.txt`, `body.txt`, perhaps `body.html`, `schema.json` and `sample.json`; `_layout/` what several share
(`{% extends "_layout/base.html" %}`).  A locale chooses `body.de-AT.txt`, else `body.de.txt`, else `body.txt`, part by part,
and so for whatever file a part imports: `{% import "words.txt" as words %}` brings the words of the email's locale.
Folders given first win, so an operator's own template replaces a shipped one of the same name.
Promises: an edited file holds from the next email on; nothing is compiled here (that is `typeset`, in the cage).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.contract.template_schema import problems_in, template_folder, template_folders
from gateway.errors import Problem, TransientFailure

_LAYOUT = "_layout"
_SUFFIXES = (".txt", ".html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """One template's texts by name, and which of them are its parts; `html` is '' for a template without one."""

    subject: str
    text: str
    html: str
    files: dict[str, str]


class TemplateSet:
    """All templates of some folders, the earlier folders first."""

    def __init__(self, dirs: Sequence[Path]) -> None:
        self._dirs = tuple(dirs)
        self._read: dict[Path, tuple[int, int, str]] = {}

    @property
    def names(self) -> list[str]:
        return sorted(template_folders(self._dirs))

    def rows(self) -> list[dict[str, str]]:
        """One row per template for `gateway templates list`."""
        return [{"name": name, "folder": str(folder)} for name, folder in sorted(template_folders(self._dirs).items())]

    def problems(self, name: str, params: dict[str, Any]) -> list[Problem]:
        """What is wrong with a request for this template: paths are `template` and `params.…`."""
        return problems_in(self._dirs, name, params)

    def sources(self, name: str, locale: str | None = None) -> Sources:
        """The texts to render; raises TransientFailure when they cannot be read (an operator can mend that)."""
        folder = template_folder(self._dirs, name)
        if folder is None:
            raise TransientFailure(f"template {name} is gone")
        try:
            files = self._layouts() | _in_locale(self._texts(folder, ""), locale)
        except OSError as error:
            raise TransientFailure(f"template {name} cannot be read: {error}") from error
        subject, text, html = (
            _localised(part, locale, files) for part in ("subject{}.txt", "body{}.txt", "body{}.html")
        )
        if not text:
            raise TransientFailure(f"template {name} has no body.txt")
        return Sources(subject=subject, text=text, html=html, files=files)

    def sample(self, name: str) -> dict[str, Any]:
        """The params of `sample.json`; {} when there is none. Raises ValueError when it is not a JSON object."""
        folder = template_folder(self._dirs, name)
        if folder is None or not (folder / "sample.json").is_file():
            return {}
        sample = json.loads((folder / "sample.json").read_bytes())
        if not isinstance(sample, dict):
            raise ValueError("sample.json is not a JSON object")
        return sample

    def check(self) -> list[Problem]:
        """What is broken in the folders themselves; rendering is tried by `render.check_samples`."""
        return [problem for name in self.names for problem in self._check_one(name)]

    def _check_one(self, name: str) -> list[Problem]:
        try:
            self.sources(name)
            sample = self.sample(name)
        except (TransientFailure, OSError, ValueError) as error:
            return [Problem(name, str(error))]
        return [Problem(name, f"its sample: {problem}") for problem in self.problems(name, sample)]

    def _layouts(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for directory in reversed(self._dirs):
            if (directory / _LAYOUT).is_dir():
                found |= self._texts(directory / _LAYOUT, _LAYOUT + "/")
        return found

    def _texts(self, folder: Path, prefix: str) -> dict[str, str]:
        paths = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))  # editors keep locks there
        return {prefix + path.name: self._text(path) for path in paths if path.suffix in _SUFFIXES}

    def _text(self, path: Path) -> str:
        stat = path.stat()
        known = self._read.get(path)
        if known is None or known[:2] != (stat.st_mtime_ns, stat.st_size):
            known = self._read[path] = (stat.st_mtime_ns, stat.st_size, _read_text(path))
        return known[2]


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise OSError(f"{path} is not UTF-8: {error.reason} at octet {error.start}") from None


def _in_locale(files: dict[str, str], locale: str | None) -> dict[str, str]:
    """The files, each plain name with the text that the locale chooses for it."""
    plain = {name: re.fullmatch(r"([^.]+)(\.[a-z]+)", name) for name in files}
    chosen = {name: _localised(f"{match[1]}{{}}{match[2]}", locale, files) for name, match in plain.items() if match}
    return files | {name: files[best] for name, best in chosen.items()}


def _localised(part: str, locale: str | None, files: dict[str, str]) -> str:
    """The best name for a part: whole locale, its language, none; '' when there is no such file."""
    tag = (locale or "").replace("_", "-").lower()
    by_lower = {name.lower(): name for name in files}
    for variant in (f".{tag}", f".{tag.partition('-')[0]}", ""):
        if part.format(variant) in by_lower:
            return by_lower[part.format(variant)]
    return ""
