"""`gateway move`: the house grows, and takes along what it has."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.terminal import EXIT_NO, AsJson, Context, note, settings_of, wait_for

if TYPE_CHECKING:
    from gateway.watch.move import Part

_TOLD_SECONDS = 2.0


def move(
    context: Context,
    source: Annotated[str, typer.Option("--from", metavar="URL", help="Where it is.")] = "",
    target: Annotated[str, typer.Option("--to", metavar="URL", help="Where it goes.")] = "",
    as_json: AsJson = False,
) -> None:
    """Carries a queue, a ledger or blobs from one URL to another; without URLs all that new settings left in data_dir.

    The gateway stands still meanwhile.  Ended at any moment, run it again: it goes on.  Exit 1 when something did not come along.
    """
    from gateway import commands, tables

    if bool(source) != bool(target):
        raise typer.BadParameter(
            "--from and --to go together; without both, what data_dir holds goes where the settings say"
        )
    settings = settings_of(context)
    moves = wait_for(commands.what_moves(settings, source, target))
    for item in moves:
        wait_for(item.look(settings))
    parts: list[Part] = []
    try:
        for item in moves:
            lines = wait_for(item.run(settings, _Progress()))
            if not lines:
                note(f"the {item.kind} has moved before: nothing to do")
            parts += lines
    finally:
        tables.print_rows([part.as_row() for part in parts], ["part", "found", "carried", "already"], as_json=as_json)
    for part in parts:
        for lacking in part.lacking:
            note(f"gateway: {part.part}: {lacking}")
    if not all(part.is_whole for part in parts):
        note("gateway: not all came along; see above, then run it again")
        raise typer.Exit(EXIT_NO)
    note("all is there" if moves else "nothing to move: data_dir holds nothing that the settings have elsewhere")


class _Progress:
    """Says on stderr how far a part is, every other second."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def __call__(self, part: str, done: int, total: int) -> None:
        if time.monotonic() - self._told_at >= _TOLD_SECONDS:
            self._told_at = time.monotonic()
            note(f"{part}: {done} of {total}")
