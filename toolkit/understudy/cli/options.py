"""Options and output that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from understudy.manager import Manager

_F = TypeVar("_F", bound=Callable[..., object])


def manager_option(function: _F) -> _F:
    """``--manager``: whose systemd."""
    return click.option(
        "--manager",
        type=click.Choice(["auto", "system", "user"]),
        default="auto",
        show_default=True,
        envvar="UNDERSTUDY_MANAGER",
        help="Whose systemd manager: auto is the system's for root, else your own.",
    )(function)


def units_option(function: _F) -> _F:
    """``--units``: where definitions are looked for first."""
    return click.option(
        "--units",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="UNDERSTUDY_UNITS",
        help="A folder of service definitions to look in before all others.",
    )(function)


def background_option(function: _F) -> _F:
    """``--background``: in nobody's way."""
    return click.option(
        "--background",
        is_flag=True,
        help="Instances and CMD get only what nobody else wants of processors and disks.",
    )(function)


def json_option(function: _F) -> _F:
    """``--json``: for programs."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON: an array of objects (docs/json.md)."
    )(function)


def connected(manager: str) -> Manager:
    """The manager that ``--manager`` names; says once, on stderr, what makes it slow."""
    found = _connect(manager)
    if found.note:
        click.echo(f"note: {found.note}", err=True)
    return found


def _connect(manager: str) -> Manager:
    from understudy.manager import connect
    from understudy.model import ManagerKind

    return connect(None if manager == "auto" else ManagerKind(manager))


def print_json(rows: Sequence[object]) -> None:
    """Print an array of objects."""
    import json

    click.echo(json.dumps(list(rows), indent=2))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns as wide as they need; the last is never padded."""
    table = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for number, row in enumerate(table):
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        line = "  ".join([*cells, row[-1]]).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


def ports_text(ports: Mapping[str, int]) -> str:
    """Ports in one cell of a table: ``http=20016 status=20017``."""
    return " ".join(f"{name}={number}" for name, number in ports.items()) or "-"


def parse_pairs(
    _ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """``NAME=VALUE`` options as a mapping, whatever they call the two; the last of a name wins."""
    pairs: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name:
            form = parameter.metavar or "NAME=VALUE"
            raise click.BadParameter(f"'{text}' is not {form}", param=parameter)
        pairs[name] = value
    return pairs


def with_secrets(values: Mapping[str, str], secrets: Iterable[str]) -> dict[str, str]:
    """Values of ``--set``, of which ``NAME=@FILE`` is a secret that stands in a file.

    Args:
        values: The values; ``SERVICE.NAME`` is one of a certain service.
        secrets: The names of those that are secret. ``@-`` asks for it, or reads stdin.

    Raises:
        click.BadParameter: The file cannot be read.
    """
    known = {*secrets}
    read = dict(values)
    for key, text in values.items():
        if key.rpartition(".")[2] in known and text.startswith("@"):
            read[key] = _secret(key, text[1:])
    return read


def _secret(name: str, file: str) -> str:
    if file == "-" and sys.stdin.isatty():
        answer: str = click.prompt(name, hide_input=True, err=True)
        return answer
    try:
        with click.open_file(file, encoding="utf-8") as opened:
            content: str = opened.read()
            return content.removesuffix("\n")
    except (OSError, UnicodeDecodeError) as exc:
        said = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise click.BadParameter(f"{name}=@{file}: {said}", param_hint="'--set'") from exc


def env_options(function: _F) -> _F:
    """``--env`` and ``--env-file``: variables, in the order in which they are given."""
    function = click.option(
        "--env-file",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        help="A file of them, as EnvironmentFile= reads it; --env wins over it.",
    )(function)
    return click.option(
        "--env",
        multiple=True,
        callback=_variables,
        metavar="NAME[=VALUE]",
        help="Further environment; without a value as it is in your own, which keeps it from the "
        "list of processes.",
    )(function)


def _variables(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """What ``--env-file`` and ``--env`` set."""
    from understudy import envfile

    variables: dict[str, str] = {}
    for file in ctx.params.pop("env_file", ()):
        try:
            variables |= envfile.read(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as exc:
            said = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            raise click.BadParameter(f"'{file}': {said}", param_hint="'--env-file'") from exc
    for text in values:
        name, equals, value = text.partition("=")
        if not name:
            raise click.BadParameter(f"'{text}' is not NAME or NAME=VALUE", param=parameter)
        if not equals and name not in os.environ:
            raise click.BadParameter(
                f"'{name}' is not set in your own environment", param=parameter
            )
        variables[name] = value if equals else os.environ[name]
    return variables


def complete_service(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of services."""
    from understudy import services

    units = ctx.params.get("units")
    found = services.folders(units=Path(units) if units else None)
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in found if name.startswith(incomplete)]


def complete_instance(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of live runs and instances; none where no manager is in reach."""
    from understudy import listing
    from understudy.errors import UnderstudyError

    try:
        found = listing.instances(_connect(ctx.params.get("manager") or "auto"))
    except UnderstudyError:
        return []
    words = {one.run for one in found} | {f"{one.run}-{one.number}" for one in found}
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in sorted(words) if word.startswith(incomplete)]


def complete_network(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Kinds of networks."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in ("host", "private") if word.startswith(incomplete)]


class Progress:
    """One line on stderr, if that is a terminal, that goes again."""

    def __init__(self) -> None:
        self._shown = False
        self._on = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the text away."""
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._shown = False

    def show(self, text: str) -> None:
        """Show this text in the place of the last."""
        if self._on:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
            self._shown = True
