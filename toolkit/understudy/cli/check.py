"""``understudy check``: try a definition."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.cli.options import (
    Progress,
    connected,
    json_option,
    manager_option,
    parse_pairs,
    print_json,
)

if TYPE_CHECKING:
    from understudy.check import Finding


@click.command()
@click.argument(
    "folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--set",
    "values",
    multiple=True,
    callback=parse_pairs,
    metavar="NAME=VALUE",
    help="A value of the definition, as for spawn.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="S",
    help="Seconds until both instances must be ready.",
)
@manager_option
@json_option
def check(folder: Path, values: dict[str, str], timeout: float, manager: str, as_json: bool) -> int:
    """Try a service definition and report what is wrong with it.

    DIR is the definition's folder, the one with service.toml in it. Two instances are started at
    once, one is stopped and the run is ended; nothing of it stays. The exit code is 1 if there is
    a finding of level error.

    \b
    Examples:
      understudy check units/mediamtx
      understudy check units/camera-service --set root=$PWD --json
    """
    from understudy import check as checking
    from understudy.cli import EXIT_ERROR

    connection = connected(manager)
    with Progress() as progress:
        progress.show(f"trying two instances of {folder.name}")
        found = checking.check(folder, connection, values=values, timeout_s=timeout)
    errors = sum(one.level is checking.Level.ERROR for one in found)
    if as_json:
        print_json([one.to_json() for one in found])
    else:
        for one in found:
            _show(one)
        click.echo(_summary(folder, errors, len(found) - errors))
    return EXIT_ERROR if errors else 0


def _show(one: Finding) -> None:
    colour = "red" if one.level == "error" else "yellow"
    level = click.style(f"{one.level.value + ':':<9}", fg=colour, bold=True)
    hint = f" ({one.hint})" if one.hint else ""
    click.echo(f"{level}{one.rule}: {one.text}{hint}")
    for line in one.log.splitlines():
        click.echo(f"  | {line}")


def _summary(folder: Path, errors: int, warnings: int) -> str:
    counts = [
        f"{count} {noun}{'' if count == 1 else 's'}"
        for count, noun in ((errors, "error"), (warnings, "warning"))
        if count
    ]
    return f"{folder.resolve().name}: {', '.join(counts) or 'nothing wrong'}"
