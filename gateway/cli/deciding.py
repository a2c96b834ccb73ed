"""What a person decides: hold, release, discard, cancel, replay, and what becomes of dead letters."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.terminal import EXIT_NO, AsJson, Context, no, note, print_list, settings_of, wait_for

dead = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Dead letters: what we gave up on.")


def replay(
    context: Context, items: Annotated[list[str], typer.Argument(metavar="ID...")], as_json: AsJson = False
) -> None:
    """Has held, failed or dead mails processed anew; what was delivered is left alone."""
    from gateway import commands, tables

    rows = wait_for(commands.replay(settings_of(context), items))
    tables.print_rows(rows, ["id", "rcpt_to", "disposition", "action"], as_json=as_json)


def hold(context: Context, items: Annotated[list[str], typer.Argument(metavar="ID...")]) -> None:
    """Holds what is not yet sent of emails; `gateway release` lets it go on."""
    from gateway import commands

    counts = wait_for(commands.hold(settings_of(context), items))
    for item, count in counts.items():
        note(f"{item}: {count} held" if count else f"{item}: nothing of it waits to be sent")
    if not all(counts.values()):
        raise typer.Exit(EXIT_NO)


def release(context: Context, item: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Lets a held email or mail go on."""
    from gateway import commands

    count = wait_for(commands.release(settings_of(context), item))
    if not count:
        raise no(f"no held recipient of {item}")
    note(f"{count} released")


def discard(context: Context, item: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Throws away what is held of a mail or an email; the mail's octets stay."""
    from gateway import commands

    count = wait_for(commands.discard(settings_of(context), item))
    if not count:
        raise no(f"no held recipient of {item}")
    note(f"{count} discarded")


def cancel(context: Context, email_id: str) -> None:
    """Cancels what is not yet sent of an email."""
    from gateway import commands

    count = wait_for(commands.cancel(settings_of(context), email_id))
    if not count:
        raise no(f"nothing of {email_id} can be cancelled any more")
    note(f"{count} cancelled")


def recover(
    context: Context,
    resend: Annotated[bool, typer.Option("--resend", help="Send them; some may come twice.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Never send them.")] = False,
    hold: Annotated[
        bool, typer.Option("--hold", help="All of data_dir was restored: hold what is open, before the first start.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """After a restored backup: lists the emails it held, for they may have been sent since; then --resend or --cancel."""
    from gateway import commands, tables

    if resend + cancel + hold > 1:
        raise typer.BadParameter("either --hold, --resend or --cancel")
    if hold:
        note(f"{wait_for(commands.hold_restored(settings_of(context)))} held")
    elif resend or cancel:
        count = wait_for(commands.recover(settings_of(context), is_resend=resend))
        note(f"{count} {'released' if resend else 'cancelled'}")
    else:
        columns = ["id", "recipient", "disposition", "template", "subject", "accepted_at", "attempts"]
        tables.print_rows(wait_for(commands.held_back(settings_of(context))), columns, as_json=as_json)


@dead.command("list")
def dead_list(context: Context, limit: Annotated[int, typer.Option(min=1)] = 1000, as_json: AsJson = False) -> None:
    """Lists dead letters, oldest first."""
    print_list(context, "dead", ["number", "id", "queue", "died_at", "reason"], {"limit": limit}, as_json)


@dead.command("show")
def dead_show(context: Context, number: str, as_json: AsJson = False) -> None:
    """Shows one dead letter with its ticket."""
    from gateway import commands, tables

    found = wait_for(commands.dead_one(settings_of(context), number))
    if found is None:
        raise no(f"no dead letter {number}")
    tables.print_object(found, as_json=as_json)


@dead.command("retry")
def dead_retry(context: Context, number: str) -> None:
    """Puts a dead letter back into its queue."""
    from gateway import commands

    if not wait_for(commands.retry_dead(settings_of(context), number)):
        raise no(f"no dead letter {number}")


@dead.command("drop")
def dead_drop(context: Context, number: str) -> None:
    """Throws a dead letter away."""
    from gateway import commands

    if not wait_for(commands.drop_dead(settings_of(context), number)):
        raise no(f"no dead letter {number}")
