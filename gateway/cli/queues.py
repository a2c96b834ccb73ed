"""`gateway queues`: what waits where; with RabbitMQ also who may do what, and the way from one declaration to the next."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from gateway.cli.terminal import AsJson, Context, note, print_list, settings_of, wait_for

queues = typer.Typer(rich_markup_mode=None, invoke_without_command=True)


@queues.callback()
def list_queues(context: Context, as_json: AsJson = False) -> None:
    """Shows every queue: what is ready, leased, delayed, dead, and how old the oldest ticket is."""
    if context.invoked_subcommand is None:
        columns = ["name", "ready", "leased", "delayed", "dead", "oldest_seconds"]
        print_list(context, "queues", columns, {}, as_json)


@queues.command()
def migrate(context: Context) -> None:
    """Declares anew what RabbitMQ has declared otherwise, and moves its tickets; the gateway stands still meanwhile."""
    from gateway import commands

    changed = wait_for(commands.migrate_queues(settings_of(context)))
    for line in changed:
        print(line)  # noqa: T201
    note(f"{len(changed)} changes" if changed else "everything is declared as this version has it")


@queues.command()
def grants(
    context: Context, app: Annotated[str, typer.Argument(help="The app's user on RabbitMQ.")], vhost: str = "/"
) -> None:
    """Prints the rabbitmqctl command that lets an app publish commands and read its events, and nothing else."""
    from gateway import commands

    words = ["rabbitmqctl", *commands.queue_grants(app, vhost)]
    print(shlex.join(words))  # noqa: T201
