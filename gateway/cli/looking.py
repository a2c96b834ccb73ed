"""What there is and what became of it: lists, stories, and what would become of a mail.  Nothing here changes anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.terminal import AsJson, Context, no, print_list, settings_of, wait_for


def show(context: Context, item: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Tells the whole story of one mail, email or post."""
    from gateway import commands, tables

    found = wait_for(commands.show(settings_of(context), item))
    if not found:
        raise no(f"nothing is known of {item}")
    if len(found) > 1:
        raise no(f"{item} is not unique: {', '.join(sorted(found))}")
    story = next(iter(found.values()))
    tables.print_object(story if as_json else tables.in_words(story), as_json=as_json)


def emails(
    context: Context,
    disposition: Annotated[str | None, typer.Option()] = None,
    recipient: Annotated[str | None, typer.Option()] = None,
    id_: Annotated[str | None, typer.Option("--id")] = None,
    limit: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Lists emails, one line per recipient, oldest first."""
    columns = ["id", "recipient", "disposition", "template", "attempts", "relay", "reply", "next_attempt_at", "reason"]
    filters = {"disposition": disposition, "recipient": recipient, "id": id_, "limit": limit}
    print_list(context, "emails", columns, filters, as_json)


def mails(
    context: Context,
    disposition: Annotated[str | None, typer.Option()] = None,
    rcpt_to: Annotated[str | None, typer.Option()] = None,
    id_: Annotated[str | None, typer.Option("--id")] = None,
    limit: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Lists mails, one line per recipient, oldest first."""
    columns = ["id", "received_at", "mail_from", "rcpt_to", "mailbox", "disposition", "reason", "size", "subject"]
    filters = {"disposition": disposition, "rcpt_to": rcpt_to, "id": id_, "limit": limit}
    print_list(context, "mails", columns, filters, as_json)


def posts(
    context: Context,
    mailbox: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Lists posts, oldest first."""
    print_list(
        context,
        "posts",
        ["id", "mailbox", "author", "title", "created_at"],
        {"mailbox": mailbox, "limit": limit},
        as_json,
    )


def explain(
    context: Context,
    file: Annotated[str, typer.Argument(metavar="FILE.eml", help="A mail; - is stdin.")],
    to: Annotated[list[str], typer.Option(help="A recipient; repeat for more.")],
    from_: Annotated[str, typer.Option("--from", help="The envelope's sender.")] = "",
    client: Annotated[str, typer.Option(help="The address of the host that brings it, for SPF.")] = "",
    helo: Annotated[str, typer.Option(help="What that host calls itself.")] = "",
    as_json: AsJson = False,
) -> None:
    """Says what would become of a mail, and why: the decision of the real thing, and nothing written."""
    from gateway import commands, tables

    try:
        octets = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise no(f"{file}: {error.strerror}") from None
    for item in wait_for(commands.explain(settings_of(context), octets, to, from_, client=client, helo=helo)):
        tables.print_object(item if as_json else tables.in_words(item), as_json=as_json)
