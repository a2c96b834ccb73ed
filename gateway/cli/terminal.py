"""What every command needs of its terminal: the settings, a loop to run in, the one clear line of a failure.

Promises: data goes to stdout, all else to stderr; a failure is one line and an exit code.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.errors import Problem

if TYPE_CHECKING:
    from gateway.settings import Settings

EXIT_NO, EXIT_USAGE, EXIT_LATER = 1, 2, 75

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Context = typer.Context


def settings_of(context: Context) -> Settings:
    from gateway import settings

    config, overrides = context.obj
    return settings.load(config=config, overrides=overrides)


def options_of(context: Context) -> list[str]:
    """The options before the command, as they would be written again."""
    config, overrides = context.obj
    return [*(["--config", str(config)] if config else []), *(word for item in overrides for word in ("--set", item))]


def wait_for(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def print_list(context: Context, kind: str, columns: Sequence[str], filters: dict[str, Any], as_json: bool) -> None:
    from gateway import commands, tables

    rows = wait_for(
        commands.rows(settings_of(context), kind, {key: value for key, value in filters.items() if value is not None})
    )
    if not tables.print_rows(rows, columns, as_json=as_json):
        note(f"no {kind}")


def fail(code: int, problems: Sequence[Problem]) -> int:
    for item in problems:
        print(f"gateway: {' '.join(str(item).split())}", file=sys.stderr)  # noqa: T201
    return code


def no(text: str) -> typer.Exit:
    return typer.Exit(fail(EXIT_NO, [Problem("", text)]))


def note(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201
