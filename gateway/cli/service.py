"""The gateway itself: it runs, it shows itself at work, it says how it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.terminal import EXIT_NO, AsJson, Context, no, note, options_of, settings_of, wait_for
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.settings import Settings

_EXTRA = "notices, published by an app itself on RabbitMQ, taken in by another host, or older than 8 days"

alarm = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Alarms: how admins are told.")


def run(
    context: Context,
    services: Annotated[
        list[str] | None,
        typer.Argument(help="smtp lmtp ingest photos send events web sweep people notices alarms suspects; none: all."),
    ] = None,
    demo: Annotated[
        bool, typer.Option(help="Say where everything is; on a new data_dir show the gateway at work first.")
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="How many processes of these services share the work: one a core.")
    ] = 1,
) -> None:
    """Starts the gateway (or only the services named) and serves until Ctrl-C."""
    from gateway import app, commands

    settings = settings_of(context)
    if processes > 1 and demo:
        raise typer.BadParameter("the demo is shown by one process: leave out --demo or --processes")
    if processes > 1:
        raise typer.Exit(app.start_many(settings, services or (), processes, options=options_of(context)))
    extra = None
    if demo and not services:
        extra = _introduction(settings, at_work=commands.is_new(settings))
    raise typer.Exit(app.start(settings, services or (), extra=extra))


def _introduction(settings: Settings, *, at_work: bool) -> Any:
    """A service beside the others: shows them at work where that is new, and says where everything is."""
    from gateway import demo

    async def service(stop: Any) -> None:
        if at_work:
            try:
                await demo.demonstrate(settings)
            except (GatewayError, OSError) as error:
                note(f"gateway: the demo did not come to its end: {error}")  # the gateway itself goes on
        demo.introduce(settings)
        await stop.wait()

    return service


def demo(context: Context) -> None:
    """Shows the running gateway at work: email out, mail in, what became of each."""
    from gateway import demo as demo_

    wait_for(demo_.demonstrate(settings_of(context)))


def show_settings(context: Context, as_json: AsJson = False) -> None:
    """Prints the settings as they come out of all places, secrets masked."""
    from gateway import tables

    tables.print_object(settings_of(context).masked(), as_json=as_json)


def doctor(context: Context, as_json: AsJson = False) -> None:
    """Checks what the gateway stands on and says what to do; exit 1 when something is wrong."""
    from gateway import commands, tables

    findings = wait_for(commands.doctor(settings_of(context)))
    tables.print_rows([item.as_row() for item in findings], ["level", "what", "finding", "next_step"], as_json=as_json)
    if any(item.level == "wrong" for item in findings):
        raise typer.Exit(EXIT_NO)


def reconcile(context: Context, as_json: AsJson = False) -> None:
    """Proves by counting that everything accepted is there; exit 1 and the ids when something is missing."""
    from gateway import commands, tables

    balance = wait_for(commands.reconcile(settings_of(context)))
    tables.print_object(balance.as_row(), as_json=as_json)
    for item in balance.missing:
        note(f"gateway: {item.kind} {item.id}, kept {item.kept_at}: {item.finding}")
    if balance.extra:
        note(f"gateway: {balance.extra} extra, without a receipt of this host: {_EXTRA}; nothing is lost by it")
    if not balance.is_balanced:
        raise typer.Exit(EXIT_NO)


@alarm.command("test")
def alarm_test(context: Context, as_json: AsJson = False) -> None:
    """Sends a test to each of admin_urls; exit 1 when one cannot be reached."""
    from gateway import commands, tables

    rows = wait_for(commands.alarm_test(settings_of(context)))
    if not rows:
        raise no("admin_urls is empty: alarms are logged and shown, nobody is told")
    tables.print_rows(rows, ["admin", "service", "outcome", "why"], as_json=as_json)
    if any(row["outcome"] == "failed" for row in rows):
        raise typer.Exit(EXIT_NO)


def version() -> None:
    """Prints the version."""
    from gateway import __version__

    print(__version__)  # noqa: T201
