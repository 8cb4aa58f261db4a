"""``understudy doctor``: whether this host is fit, and what helps where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.cli.options import Progress, json_option, print_json, units_option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from understudy.doctor import Finding

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


def _complete_check(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from understudy.doctor import CHECKS

    return [CompletionItem(name) for name in CHECKS if name.startswith(incomplete)]


def _known(
    _ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    from understudy.doctor import CHECKS

    for name in value:
        if name not in CHECKS:
            text = f"there is no check '{name}'; there are: {', '.join(CHECKS)}"
            raise click.BadParameter(text, param=parameter)
    return value


@click.command()
@click.option(
    "--only",
    multiple=True,
    metavar="CHECK",
    callback=_known,
    shell_complete=_complete_check,
    help="Make only this check; may be given several times.",
)
@units_option
@json_option
def doctor(only: tuple[str, ...], units: Path | None, as_json: bool) -> int:
    """Say whether this host is fit for understudy, and what helps where it is not.

    Nothing is changed. Each line is ok, a warning (something does less than it could) or a
    problem (something must be done). The exit code is 1 if there is a problem.

    \b
    Examples:
      understudy doctor
      understudy doctor --only strays --only left-overs
      understudy doctor --json | jq '.[] | select(.level == "problem")'
    """
    from understudy import doctor as looking
    from understudy.cli import EXIT_ERROR

    with Progress() as progress:
        progress.show("looking at this host")
        found = looking.examine(
            looking.Host(units=units),
            only=only,
            progress=lambda name: progress.show(f"looked at {name}"),
        )
    if as_json:
        print_json([one.to_json() for one in found])
    else:
        width = max((len(one.check) for one in found), default=0)
        for one in found:
            _show(one, width)
        click.echo(_summary(found))
    return EXIT_ERROR if any(one.level is looking.Level.PROBLEM for one in found) else 0


def _show(one: Finding, width: int) -> None:
    level = click.style(f"{one.level.value:<7}", fg=COLOURS[one.level.value], bold=True)
    why = f": {one.why}" if one.why else ""
    click.echo(f"{level}  {one.check:<{width}}  {one.what}{why}")
    if one.help:
        click.echo(f"{'':{width + 11}}help: {one.help}")


def _summary(found: list[Finding]) -> str:
    counts = [
        f"{count} {level}{'' if count == 1 else 's'}"
        for level in ("problem", "warning")
        if (count := sum(one.level == level for one in found))
    ]
    return f"{', '.join(counts) or 'nothing to do'} in {len(found)} lines"
