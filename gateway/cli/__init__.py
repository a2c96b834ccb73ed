"""The command `gateway`: thin words over `commands`; data on stdout, all else on stderr, one clear line for every failure.

Exit codes: 0 done, 1 no (not found, not balanced), 2 usage or settings, 75 try again later.
A module by subject; their commands are put together here, in the order in which `--help` lists them.
Heavy modules are imported inside the commands: `gateway --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli import access, deciding, looking, moving, queues, senders, sending, service
from gateway.cli.terminal import EXIT_LATER, EXIT_NO, EXIT_USAGE, Context, fail, note
from gateway.errors import GatewayError, InvalidRequest, Problem, SettingsError, TransientFailure


def main() -> None:
    """The console script."""
    try:
        code = _put_together()(standalone_mode=False)
    except SettingsError as error:
        code = fail(EXIT_USAGE, error.problems)
    except InvalidRequest as error:
        code = fail(EXIT_USAGE, error.problems)
    except typer.TyperException as error:
        code = _misused(error.format_message())
    except TransientFailure as error:
        code = fail(EXIT_LATER, [Problem("", f"{error}; try again later")])
    except GatewayError as error:
        code = fail(EXIT_NO, [Problem("", str(error))])
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = EXIT_NO
    except OSError as error:
        code = fail(EXIT_LATER, [Problem("", str(error))])
    except (KeyboardInterrupt, typer.Abort):
        code = 128 + signal.SIGINT
    # Broad: a fault of ours is told in one line, too, with the place it came from.
    except Exception as error:  # noqa: BLE001
        from gateway.maillog import told

        code = fail(EXIT_NO, [Problem("", f"a fault of the gateway itself: {told(error)}")])
    sys.exit(code if isinstance(code, int) else 0)


def _misused(message: str) -> int:
    if message.startswith("Usage:"):  # a group of commands named without one of them: its help is the answer
        note(message)
        return EXIT_USAGE
    return fail(EXIT_USAGE, [Problem("", f"{message} (see gateway --help)")])


def options(
    context: Context,
    config: Annotated[Path | None, typer.Option(help="The settings file (default: gateway.toml here).")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, over every other place.")] = None,
) -> None:
    """The mail room of a company's applications: email out, mail in, nothing lost, everything explained."""
    context.obj = (config, tuple(set_ or ()))


def _put_together() -> typer.Typer:
    cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)
    cli.callback()(options)
    for command in _COMMANDS:
        cli.command()(command)
    cli.command("settings")(service.show_settings)
    for command in _COMMANDS_AFTER_SETTINGS:
        cli.command()(command)
    for name, group in _GROUPS.items():
        cli.add_typer(group, name=name)
    return cli


_COMMANDS: tuple[Callable[..., None], ...] = (
    service.run,
    service.demo,
    sending.send,
    looking.show,
    looking.emails,
    looking.mails,
    looking.posts,
    looking.explain,
    deciding.replay,
    deciding.hold,
    deciding.release,
    deciding.discard,
    deciding.cancel,
    deciding.recover,
    moving.move,
    sending.schema,
)
_COMMANDS_AFTER_SETTINGS: tuple[Callable[..., None], ...] = (service.doctor, service.reconcile, service.version)
_GROUPS = {
    "queues": queues.queues,
    "dead": deciding.dead,
    "people": senders.people,
    "address": senders.address,
    "alarm": service.alarm,
    "users": access.users,
    "keys": access.keys,
    "recipients": senders.recipients,
    "templates": sending.templates,
    "db": access.db,
}
