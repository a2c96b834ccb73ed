"""What apps ask for, from a terminal: an email sent, its template checked, the contracts printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.terminal import EXIT_NO, AsJson, Context, fail, note, print_list, settings_of, wait_for
from gateway.errors import InvalidRequest, Problem

templates = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="The templates emails are made of.")


def send(
    context: Context,
    template: str,
    to: Annotated[list[str], typer.Option(help="A recipient; repeat for more.")],
    param: Annotated[list[str] | None, typer.Option(help="key=text, or key:=JSON.")] = None,
    params: Annotated[str | None, typer.Option(help="A JSON file of params; - is stdin.")] = None,
    attach: Annotated[list[Path] | None, typer.Option(help="A file to attach.")] = None,
    id_: Annotated[str | None, typer.Option("--id", help="The email's UUID: the idempotency key.")] = None,
    stream: Annotated[str | None, typer.Option(help="urgent, normal or bulk.")] = None,
    serial_key: Annotated[str | None, typer.Option(help="Emails of one key leave in order.")] = None,
) -> None:
    """Queues one email and prints its id."""
    from gateway import commands

    fields: dict[str, Any] = {"params": _params(params, param or ())}
    given = {"id": id_, "stream": stream, "serial_key": serial_key}
    fields |= {key: value for key, value in given.items() if value is not None}
    email_id = wait_for(commands.send(settings_of(context), template, to, attach or (), fields))
    try:
        print(email_id, flush=True)  # noqa: T201
    except OSError:  # it is queued all the same: who tries again must do so with this id
        note(f"gateway: queued as {email_id}")
        raise


def _params(source: str | None, words: Sequence[str]) -> dict[str, Any]:
    """The params of --params and --param together; the words win."""
    found: dict[str, Any] = {}
    if source is not None:
        try:
            found = json.loads(sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidRequest([Problem("--params", f"{source}: {error}")]) from None
        if not isinstance(found, dict):
            raise InvalidRequest([Problem("--params", f"{source} is not a JSON object")])
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.rstrip(":"):
            raise InvalidRequest([Problem(f"--param {word}", "is not key=text or key:=JSON")])
        try:
            found[key.removesuffix(":")] = json.loads(text) if key.endswith(":") else text
        except ValueError as error:
            raise InvalidRequest([Problem(f"--param {word}", f"is not JSON: {error}")]) from None
    return found


@templates.command("list")
def templates_list(context: Context, as_json: AsJson = False) -> None:
    """Lists the templates."""
    print_list(context, "templates", ["name", "folder"], {}, as_json)


@templates.command("check")
def templates_check(context: Context) -> None:
    """Renders every template with its sample; names what is wrong."""
    from gateway import commands

    problems = wait_for(commands.check_templates(settings_of(context)))
    if problems:
        raise typer.Exit(fail(EXIT_NO, problems))


def schema(
    context: Context, name: Annotated[str, typer.Argument(help="email.send, post.create, event, asyncapi or openapi.")]
) -> None:
    """Prints what a contract demands, as JSON Schema, AsyncAPI or OpenAPI."""
    from gateway import commands

    print(json.dumps(commands.schema(name), indent=2, ensure_ascii=False))  # noqa: T201
