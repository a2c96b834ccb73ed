"""The command `gateway`: thin words over `commands`; data on stdout, all else on stderr, one clear line for every failure.

Exit codes: 0 done, 1 no (not found, not balanced), 2 usage or settings, 75 try again later.
Heavy modules are imported inside the commands: `gateway --help` answers at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.errors import GatewayError, InvalidRequest, Problem, SettingsError, TransientFailure

if TYPE_CHECKING:
    from gateway.settings import Settings

EXIT_NO, EXIT_USAGE, EXIT_LATER = 1, 2, 75

cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)
dead = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Dead letters: what we gave up on.")
db = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="The store's schema and who may do what in it.")
templates = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="The templates emails are made of.")
recipients = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Whom we take mail for.")
people = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Registered people: who may write to mailboxes for members."
)
address = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Secret addresses: who has one may write there."
)
cli.add_typer(dead, name="dead")
cli.add_typer(people, name="people")
cli.add_typer(address, name="address")
alarm = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Alarms: how admins are told.")
users = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="People who may log in to the pages.")
keys = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Keys of apps for the API.")
cli.add_typer(alarm, name="alarm")
cli.add_typer(users, name="users")
cli.add_typer(keys, name="keys")
cli.add_typer(recipients, name="recipients")
cli.add_typer(templates, name="templates")
cli.add_typer(db, name="db")

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Context = typer.Context


def main() -> None:
    """The console script."""
    try:
        code = cli(standalone_mode=False)
    except SettingsError as error:
        code = _fail(EXIT_USAGE, error.problems)
    except InvalidRequest as error:
        code = _fail(EXIT_USAGE, error.problems)
    except typer.TyperException as error:
        code = _misused(error.format_message())
    except TransientFailure as error:
        code = _fail(EXIT_LATER, [Problem("", f"{error}; try again later")])
    except GatewayError as error:
        code = _fail(EXIT_NO, [Problem("", str(error))])
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = EXIT_NO
    except OSError as error:
        code = _fail(EXIT_LATER, [Problem("", str(error))])
    except (KeyboardInterrupt, typer.Abort):
        code = 128 + signal.SIGINT
    # Broad: a fault of ours is told in one line, too, with the place it came from.
    except Exception as error:  # noqa: BLE001
        from gateway.maillog import told

        code = _fail(EXIT_NO, [Problem("", f"a fault of the gateway itself: {told(error)}")])
    sys.exit(code if isinstance(code, int) else 0)


def _fail(code: int, problems: Sequence[Problem]) -> int:
    for item in problems:
        print(f"gateway: {' '.join(str(item).split())}", file=sys.stderr)  # noqa: T201
    return code


def _misused(message: str) -> int:
    if message.startswith("Usage:"):  # a group of commands named without one of them: its help is the answer
        _note(message)
        return EXIT_USAGE
    return _fail(EXIT_USAGE, [Problem("", f"{message} (see gateway --help)")])


def _no(text: str) -> typer.Exit:
    return typer.Exit(_fail(EXIT_NO, [Problem("", text)]))


def _note(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201


@cli.callback()
def options(
    context: Context,
    config: Annotated[Path | None, typer.Option(help="The settings file (default: gateway.toml here).")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, over every other place.")] = None,
) -> None:
    """The mail room of a company's applications: email out, mail in, nothing lost, everything explained."""
    context.obj = (config, tuple(set_ or ()))


def _settings(context: Context) -> Settings:
    from gateway import settings

    config, overrides = context.obj
    return settings.load(config=config, overrides=overrides)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


@cli.command()
def run(
    context: Context,
    services: Annotated[
        list[str] | None,
        typer.Argument(help="smtp lmtp ingest photos send events web sweep people notices alarms suspects; none: all."),
    ] = None,
    demo: Annotated[
        bool, typer.Option(help="Say where everything is; on a new data_dir show the gateway at work first.")
    ] = False,
) -> None:
    """Starts the gateway (or only the services named) and serves until Ctrl-C."""
    from gateway import app, commands

    settings = _settings(context)
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
                _note(f"gateway: the demo did not come to its end: {error}")  # the gateway itself goes on
        demo.introduce(settings)
        await stop.wait()

    return service


@cli.command()
def demo(context: Context) -> None:
    """Shows the running gateway at work: email out, mail in, what became of each."""
    from gateway import demo as demo_

    _run(demo_.demonstrate(_settings(context)))


@cli.command()
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
    email_id = _run(commands.send(_settings(context), template, to, attach or (), fields))
    try:
        print(email_id, flush=True)  # noqa: T201
    except OSError:  # it is queued all the same: who tries again must do so with this id
        _note(f"gateway: queued as {email_id}")
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


@cli.command()
def show(context: Context, item: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Tells the whole story of one mail, email or post."""
    from gateway import commands, tables

    found = _run(commands.show(_settings(context), item))
    if not found:
        raise _no(f"nothing is known of {item}")
    if len(found) > 1:
        raise _no(f"{item} is not unique: {', '.join(sorted(found))}")
    tables.print_object(next(iter(found.values())), as_json=as_json)


def _list(context: Context, kind: str, columns: Sequence[str], filters: dict[str, Any], as_json: bool) -> None:
    from gateway import commands, tables

    rows = _run(
        commands.rows(_settings(context), kind, {key: value for key, value in filters.items() if value is not None})
    )
    if not tables.print_rows(rows, columns, as_json=as_json):
        _note(f"no {kind}")


@cli.command()
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
    _list(context, "emails", columns, filters, as_json)


@cli.command()
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
    _list(context, "mails", columns, filters, as_json)


@cli.command()
def posts(
    context: Context,
    mailbox: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Lists posts, oldest first."""
    _list(
        context,
        "posts",
        ["id", "mailbox", "author", "title", "created_at"],
        {"mailbox": mailbox, "limit": limit},
        as_json,
    )


@cli.command()
def queues(context: Context, as_json: AsJson = False) -> None:
    """Shows every queue: what is ready, leased, delayed, dead, and how old the oldest ticket is."""
    _list(context, "queues", ["name", "ready", "leased", "delayed", "dead", "oldest_seconds"], {}, as_json)


@cli.command()
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
        raise _no(f"{file}: {error.strerror}") from None
    for item in _run(commands.explain(_settings(context), octets, to, from_, client=client, helo=helo)):
        tables.print_object(item, as_json=as_json)


@cli.command()
def replay(
    context: Context, items: Annotated[list[str], typer.Argument(metavar="ID...")], as_json: AsJson = False
) -> None:
    """Has held, failed or dead mails processed anew; what was delivered is left alone."""
    from gateway import commands, tables

    rows = _run(commands.replay(_settings(context), items))
    tables.print_rows(rows, ["id", "rcpt_to", "disposition", "action"], as_json=as_json)


@recipients.command("export")
def recipients_export(
    context: Context, file: Annotated[str, typer.Argument(help="Where Postfix reads them (texthash:); - is stdout.")]
) -> None:
    """Writes our recipients as a Postfix table; a file that is right already is left alone."""
    from gateway import commands

    text, is_new = commands.export_recipients(_settings(context), None if file == "-" else Path(file))
    if file == "-":
        print(text, end="")  # noqa: T201
    else:
        _note(f"{file}: {text.count(chr(10))} recipients, {'written' if is_new else 'unchanged'}")


@cli.command()
def release(context: Context, item: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Lets a held email or mail go on."""
    from gateway import commands

    count = _run(commands.release(_settings(context), item))
    if not count:
        raise _no(f"no held recipient of {item}")
    _note(f"{count} released")


@cli.command()
def discard(context: Context, item: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Throws away what is held of a mail or an email; the mail's octets stay."""
    from gateway import commands

    count = _run(commands.discard(_settings(context), item))
    if not count:
        raise _no(f"no held recipient of {item}")
    _note(f"{count} discarded")


@cli.command()
def cancel(context: Context, email_id: str) -> None:
    """Cancels what is not yet sent of an email."""
    from gateway import commands

    count = _run(commands.cancel(_settings(context), email_id))
    if not count:
        raise _no(f"nothing of {email_id} can be cancelled any more")
    _note(f"{count} cancelled")


@cli.command()
def recover(
    context: Context,
    resend: Annotated[bool, typer.Option("--resend", help="Send them; some may come twice.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Never send them.")] = False,
    as_json: AsJson = False,
) -> None:
    """After a restored backup: lists the emails it held, for they may have been sent since; then --resend or --cancel."""
    from gateway import commands, tables

    if resend and cancel:
        raise typer.BadParameter("either --resend or --cancel")
    if resend or cancel:
        count = _run(commands.recover(_settings(context), is_resend=resend))
        _note(f"{count} {'released' if resend else 'cancelled'}")
    else:
        columns = ["id", "recipient", "disposition", "template", "subject", "accepted_at", "attempts"]
        tables.print_rows(_run(commands.held_back(_settings(context))), columns, as_json=as_json)


@dead.command("list")
def dead_list(context: Context, limit: Annotated[int, typer.Option(min=1)] = 1000, as_json: AsJson = False) -> None:
    """Lists dead letters, oldest first."""
    _list(context, "dead", ["number", "id", "queue", "died_at", "reason"], {"limit": limit}, as_json)


@dead.command("show")
def dead_show(context: Context, number: str, as_json: AsJson = False) -> None:
    """Shows one dead letter with its ticket."""
    from gateway import commands, tables

    found = _run(commands.dead_one(_settings(context), number))
    if found is None:
        raise _no(f"no dead letter {number}")
    tables.print_object(found, as_json=as_json)


@dead.command("retry")
def dead_retry(context: Context, number: str) -> None:
    """Puts a dead letter back into its queue."""
    from gateway import commands

    if not _run(commands.retry_dead(_settings(context), number)):
        raise _no(f"no dead letter {number}")


@dead.command("drop")
def dead_drop(context: Context, number: str) -> None:
    """Throws a dead letter away."""
    from gateway import commands

    if not _run(commands.drop_dead(_settings(context), number)):
        raise _no(f"no dead letter {number}")


@alarm.command("test")
def alarm_test(context: Context, as_json: AsJson = False) -> None:
    """Sends a test to each of admin_urls; exit 1 when one cannot be reached."""
    from gateway import commands, tables

    rows = _run(commands.alarm_test(_settings(context)))
    if not rows:
        raise _no("admin_urls is empty: alarms are logged and shown, nobody is told")
    tables.print_rows(rows, ["admin", "service", "outcome", "why"], as_json=as_json)
    if any(row["outcome"] == "failed" for row in rows):
        raise typer.Exit(EXIT_NO)


@templates.command("list")
def templates_list(context: Context, as_json: AsJson = False) -> None:
    """Lists the templates."""
    _list(context, "templates", ["name", "folder"], {}, as_json)


@templates.command("check")
def templates_check(context: Context) -> None:
    """Renders every template with its sample; names what is wrong."""
    from gateway import commands

    problems = _run(commands.check_templates(_settings(context)))
    if problems:
        raise typer.Exit(_fail(EXIT_NO, problems))


@people.command("add")
def people_add(
    context: Context, address: str, name: Annotated[str, typer.Option(help="How the person is called.")] = ""
) -> None:
    """Registers a person by address."""
    from gateway import commands

    _run(commands.add_person(_settings(context), address, name))


@people.command("list")
def people_list(context: Context, as_json: AsJson = False) -> None:
    """Lists registered people."""
    _list(context, "people", ["address", "name"], {}, as_json)


@people.command("remove")
def people_remove(context: Context, address: str) -> None:
    """Takes a person out; their secret addresses are void."""
    from gateway import commands

    if not _run(commands.remove_person(_settings(context), address)):
        raise _no(f"{address} is not registered")


@address.command("new")
def address_new(
    context: Context,
    person: Annotated[str, typer.Argument(metavar="PERSON", help="A registered person's address.")],
    mailbox: Annotated[str, typer.Argument(metavar="MAILBOX", help='An address of a mailbox with who = "secret".')],
    days: Annotated[int | None, typer.Option(min=1, max=36500, help="Good for so many days; default: no end.")] = None,
) -> None:
    """Prints a secret address for one person and one mailbox."""
    from gateway import commands

    print(_run(commands.new_address(_settings(context), person, mailbox, days=days)))  # noqa: T201


@address.command("rotate")
def address_rotate(context: Context, person: Annotated[str, typer.Argument(metavar="PERSON")]) -> None:
    """Makes all secret addresses of a person void; make new ones with `address new`."""
    from gateway import commands

    if not _run(commands.rotate_addresses(_settings(context), person)):
        raise _no(f"{person} is not registered")


@users.command("add")
def users_add(context: Context, name: str) -> None:
    """Makes a user; the password is asked for, or read from stdin. The first one closes the gateway to everybody else."""
    from gateway import commands

    if not _run(commands.add_user(_settings(context), name, _password())):
        raise _no(f"there is a user {name} already; gateway users password {name}")


@users.command("invite")
def users_invite(context: Context, name: str) -> None:
    """Prints a link with which somebody becomes this user: good once, for a day."""
    from gateway import commands

    print(_run(commands.invite(_settings(context), name)))  # noqa: T201


@users.command("list")
def users_list(context: Context, as_json: AsJson = False) -> None:
    """Lists users."""
    _list(context, "users", ["name", "created_at", "sessions"], {}, as_json)


@users.command("password")
def users_password(context: Context, name: str) -> None:
    """Gives a user another password and ends all his sessions."""
    from gateway import commands

    if not _run(commands.set_password(_settings(context), name, _password())):
        raise _no(f"no user {name}")


@users.command("remove")
def users_remove(context: Context, name: str) -> None:
    """Removes a user with all his sessions."""
    from gateway import commands

    if not _run(commands.remove_user(_settings(context), name)):
        raise _no(f"no user {name}")


def _password() -> str:
    """A new password: asked for twice at a terminal, else the first line of stdin."""
    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    return sys.stdin.readline().rstrip("\r\n")


@keys.command("add")
def keys_add(
    context: Context,
    app: Annotated[str, typer.Argument(help="The app's name, told with everything it asks for.")],
    scope: Annotated[list[str] | None, typer.Option(help="send (default), read or admin; repeat for more.")] = None,
) -> None:
    """Makes a key for an app and prints it, this once. The first one closes the gateway to everybody else."""
    from gateway import commands

    print(_run(commands.add_key(_settings(context), app, scope or ["send"])))  # noqa: T201


@keys.command("list")
def keys_list(context: Context, as_json: AsJson = False) -> None:
    """Lists keys by their beginnings; revoked ones stay listed."""
    _list(context, "keys", ["prefix", "app", "scopes", "created_at", "revoked_at"], {}, as_json)


@keys.command("revoke")
def keys_revoke(context: Context, prefix: str) -> None:
    """Ends a key at once."""
    from gateway import commands

    if not _run(commands.revoke_key(_settings(context), prefix)):
        raise _no(f"no key {prefix.rpartition('_')[0] if len(prefix) > 20 else prefix} that is good")


@cli.command()
def schema(
    context: Context, name: Annotated[str, typer.Argument(help="email.send, post.create, event, asyncapi or openapi.")]
) -> None:
    """Prints what a contract demands, as JSON Schema, AsyncAPI or OpenAPI."""
    from gateway import commands

    print(json.dumps(commands.schema(name), indent=2, ensure_ascii=False))  # noqa: T201


@db.command("upgrade")
def db_upgrade(context: Context) -> None:
    """Brings the store's schema to this version, as `run` does, but however long it takes."""
    from gateway import commands

    had, has = _run(commands.upgrade_store(_settings(context)))
    _note(f"schema {has}, as it was" if had == has else f"schema {has}, it was {had or 'not made yet'}")


@db.command("grants")
def db_grants(
    context: Context,
    app_role: Annotated[str, typer.Option("--app", metavar="ROLE", help="Reads what is published.")] = "gateway_app",
    worker_role: Annotated[str, typer.Option("--worker", metavar="ROLE", help="Does the work.")] = "gateway_worker",
    schema: Annotated[str, typer.Option(metavar="SCHEMA")] = "public",
) -> None:
    """Prints the SQL for two roles that exist; the tables' owner runs it, again after each upgrade: … | psql URL."""
    from gateway import commands

    try:
        statements = commands.store_grants(
            _settings(context), app_role=app_role, worker_role=worker_role, schema=schema
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    for statement in statements:
        print(f"{statement};")  # noqa: T201


@cli.command("settings")
def show_settings(context: Context, as_json: AsJson = False) -> None:
    """Prints the settings as they come out of all places, secrets masked."""
    from gateway import tables

    tables.print_object(_settings(context).masked(), as_json=as_json)


@cli.command()
def doctor(context: Context, as_json: AsJson = False) -> None:
    """Checks what the gateway stands on and says what to do; exit 1 when something is wrong."""
    from gateway import commands, tables

    findings = _run(commands.doctor(_settings(context)))
    tables.print_rows([item.as_row() for item in findings], ["level", "what", "finding", "next_step"], as_json=as_json)
    if any(item.level == "wrong" for item in findings):
        raise typer.Exit(EXIT_NO)


@cli.command()
def reconcile(context: Context, as_json: AsJson = False) -> None:
    """Proves by counting that everything accepted is there; exit 1 and the ids when something is missing."""
    from gateway import commands, tables

    balance = _run(commands.reconcile(_settings(context)))
    tables.print_object(balance.as_row(), as_json=as_json)
    for item in balance.missing:
        _note(f"gateway: {item.kind} {item.id}, kept {item.kept_at}: {item.finding}")
    if not balance.is_balanced:
        raise typer.Exit(EXIT_NO)


@cli.command()
def version() -> None:
    """Prints the version."""
    from gateway import __version__

    print(__version__)  # noqa: T201


if __name__ == "__main__":
    main()
