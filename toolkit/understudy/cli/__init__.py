"""The ``understudy`` command. Only the modules of this package print or exit."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn, TextIO

import click

from understudy.errors import UnderstudyError

# Name -> module, attribute and short help: --help and completion import no command.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "spawn": ("spawn", "spawn", "Start instances of a service, on ports of their own."),
    "run": ("run", "run", "Run a command in a run, or a private network, of its own."),
    "list": ("runs", "list_", "List live instances."),
    "show": ("runs", "show", "Show an instance, and what is not in force for it."),
    "logs": ("runs", "logs", "Print what an instance or a run has written."),
    "stop": ("runs", "stop", "Stop an instance, a run, or all of your runs."),
    "network": ("network", "network", "Cut off or delay the private network of an instance."),
    "services": ("services", "services", "List the service definitions and their origin."),
    "render": ("services", "render", "Print the unit files of a service or of an instance."),
    "ports": ("ports", "ports", "Say who holds which port."),
    "production": ("production", "production", "Show the host's own copy of a service."),
    "lease": ("production", "lease", "Run a command with a lease on production."),
    "clean": ("production", "clean", "Remove what dead runs left on production."),
    "deploy": ("deploy", "deploy", "Put production on this host: its units and their files."),
    "withdraw": ("deploy", "withdraw", "Take away what deploy has put there."),
    "define": ("define", "define", "Write a service definition from an installed unit."),
    "check": ("check", "check", "Try a service definition and report what is wrong with it."),
    "audit": ("audit", "audit", "Report what of a test suite will collide with production."),
    "doctor": ("doctor", "doctor", "Say whether this host is fit, and what helps where it is not."),
    "bed": ("bed", "bed", "Boot this machine's OS tree under a real systemd, to throw away."),
    "demo": ("demo", "demo", "Show production and twelve instances beside it, on one screen."),
}

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help text."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _help = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"understudy.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; for an unknown one, say which may have been meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            fail_unknown(ctx, args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help text's list, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in COMMANDS.items()])


def fail_unknown(ctx: click.Context, name: str, known: Iterable[str]) -> NoReturn:
    """End with a usage error that names the command that may have been meant.

    Args:
        ctx: The group's context.
        name: What was typed.
        known: The group's commands.
    """
    import difflib  # only mistakes need it

    near = difflib.get_close_matches(name, list(known), n=1)
    better = f" Did you mean '{near[0]}'?" if near else ""
    ctx.fail(f"No such command '{name}'.{better}")


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"understudy {version('understudy')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Print the version and exit.",
)
def cli() -> None:
    """Short-lived systemd services for tests, beside production and never in its way.

    \b
    Examples:
      understudy spawn mediamtx              an instance on ports of its own
      understudy spawn mediamtx -- pytest    … for as long as a command runs
      understudy list                        what is running
      understudy stop --all                  end all of it
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: Without the program's name; those of the process by default.
    """
    code: int
    _fill_standard_streams()
    try:
        result = cli.main(
            list(arguments) if arguments is not None else None,
            prog_name="understudy",
            standalone_mode=False,
            color=_color(),
        )
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        _drop_output(sys.stdout)
        code = EXIT_ERROR
    except UnderstudyError as exc:
        show_error(exc)
        code = EXIT_ERROR
    except OSError as exc:
        # A full disk, a working directory that is gone: what no command of ours can mend.
        place = f"'{exc.filename}': " if exc.filename else ""
        show_error(UnderstudyError(f"Cannot go on: {place}{exc.strerror or exc}"))
        _drop_output(sys.stdout)
        code = EXIT_ERROR
    except BaseExceptionGroup as group:
        for error in group.exceptions:
            show_error(error)
        code = EXIT_ERROR
    sys.exit(code)


def _fill_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed (``>&-``): else the next file would be it.

    To a command of the user's it stays closed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number; closed on exec
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - to the very end


def _drop_output(stream: TextIO) -> None:
    """Give up what cannot be written any more: Python would complain again at exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _color() -> bool | None:
    """Never where the user (no-color.org) or the terminal says so, else on a terminal."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return False if plain else None


def show_error(error: BaseException) -> None:
    """Print an error for people: message, log, hint.

    Args:
        error: What was raised; its notes are printed as well.
    """
    label = click.style("error:", fg="red", bold=True)
    try:
        click.echo(f"{label} {error}", err=True, color=_color())
        for note in getattr(error, "__notes__", ()):
            click.echo(f"  {note}", err=True)
    except OSError:
        # On a terminal that has gone away the exit code still tells it.
        _drop_output(sys.stderr)


if __name__ == "__main__":
    main()
