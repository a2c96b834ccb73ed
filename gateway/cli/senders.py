"""Who may write to us, and for whom we take mail: registered people, their secret addresses, the table for Postfix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.terminal import AsJson, Context, no, note, print_list, settings_of, wait_for

people = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Registered people: who may write to mailboxes for members."
)
address = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Secret addresses: who has one may write there."
)
recipients = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Whom we take mail for.")


@people.command("add")
def people_add(
    context: Context, address: str, name: Annotated[str, typer.Option(help="How the person is called.")] = ""
) -> None:
    """Registers a person by address."""
    from gateway import commands

    wait_for(commands.add_person(settings_of(context), address, name))


@people.command("list")
def people_list(context: Context, as_json: AsJson = False) -> None:
    """Lists registered people."""
    print_list(context, "people", ["address", "name"], {}, as_json)


@people.command("remove")
def people_remove(context: Context, address: str) -> None:
    """Takes a person out; their secret addresses are void."""
    from gateway import commands

    if not wait_for(commands.remove_person(settings_of(context), address)):
        raise no(f"{address} is not registered")


@address.command("new")
def address_new(
    context: Context,
    person: Annotated[str, typer.Argument(metavar="PERSON", help="A registered person's address.")],
    mailbox: Annotated[str, typer.Argument(metavar="MAILBOX", help='An address of a mailbox with who = "secret".')],
    days: Annotated[int | None, typer.Option(min=1, max=36500, help="Good for so many days; default: no end.")] = None,
) -> None:
    """Prints a secret address for one person and one mailbox."""
    from gateway import commands

    print(wait_for(commands.new_address(settings_of(context), person, mailbox, days=days)))  # noqa: T201


@address.command("rotate")
def address_rotate(context: Context, person: Annotated[str, typer.Argument(metavar="PERSON")]) -> None:
    """Makes all secret addresses of a person void; make new ones with `address new`."""
    from gateway import commands

    if not wait_for(commands.rotate_addresses(settings_of(context), person)):
        raise no(f"{person} is not registered")


@recipients.command("export")
def recipients_export(
    context: Context, file: Annotated[str, typer.Argument(help="Where Postfix reads them (texthash:); - is stdout.")]
) -> None:
    """Writes our recipients as a Postfix table; a file that is right already is left alone."""
    from gateway import commands

    text, is_new = commands.export_recipients(settings_of(context), None if file == "-" else Path(file))
    if file == "-":
        print(text, end="")  # noqa: T201
    else:
        note(f"{file}: {text.count(chr(10))} recipients, {'written' if is_new else 'unchanged'}")
