"""Who may come in: users for the pages, keys for apps, and who may do what in the store."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gateway.cli.terminal import AsJson, Context, no, note, print_list, settings_of, wait_for

users = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="People who may log in to the pages.")
keys = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Keys of apps for the API.")
db = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="The store's schema and who may do what in it.")


@users.command("add")
def users_add(context: Context, name: str) -> None:
    """Makes a user; the password is asked for, or read from stdin. The first one closes the gateway to everybody else."""
    from gateway import commands

    if not wait_for(commands.add_user(settings_of(context), name, _password())):
        raise no(f"there is a user {name} already; gateway users password {name}")


@users.command("invite")
def users_invite(context: Context, name: str) -> None:
    """Prints a link with which somebody becomes this user: good once, for a day."""
    from gateway import commands

    print(wait_for(commands.invite(settings_of(context), name)))  # noqa: T201


@users.command("list")
def users_list(context: Context, as_json: AsJson = False) -> None:
    """Lists users."""
    print_list(context, "users", ["name", "created_at", "sessions"], {}, as_json)


@users.command("password")
def users_password(context: Context, name: str) -> None:
    """Gives a user another password and ends all his sessions."""
    from gateway import commands

    if not wait_for(commands.set_password(settings_of(context), name, _password())):
        raise no(f"no user {name}")


@users.command("remove")
def users_remove(context: Context, name: str) -> None:
    """Removes a user with all his sessions."""
    from gateway import commands

    if not wait_for(commands.remove_user(settings_of(context), name)):
        raise no(f"no user {name}")


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

    print(wait_for(commands.add_key(settings_of(context), app, scope or ["send"])))  # noqa: T201


@keys.command("list")
def keys_list(context: Context, as_json: AsJson = False) -> None:
    """Lists keys by their beginnings; revoked ones stay listed."""
    print_list(context, "keys", ["prefix", "app", "scopes", "created_at", "revoked_at"], {}, as_json)


@keys.command("revoke")
def keys_revoke(context: Context, prefix: str) -> None:
    """Ends a key at once."""
    from gateway import commands

    if not wait_for(commands.revoke_key(settings_of(context), prefix)):
        raise no(f"no key {prefix.rpartition('_')[0] if len(prefix) > 20 else prefix} that is good")


@db.command("upgrade")
def db_upgrade(context: Context) -> None:
    """Brings the store's schema to this version, as `run` does, but however long it takes."""
    from gateway import commands

    had, has = wait_for(commands.upgrade_store(settings_of(context)))
    note(f"schema {has}, as it was" if had == has else f"schema {has}, it was {had or 'not made yet'}")


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
            settings_of(context), app_role=app_role, worker_role=worker_role, schema=schema
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    for statement in ("BEGIN", *statements, "COMMIT"):  # who works meanwhile is never without his rights
        print(f"{statement};")  # noqa: T201
