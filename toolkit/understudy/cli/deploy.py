"""``understudy deploy`` and ``understudy withdraw``: production, by the host's administrator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from understudy.cli.options import complete_service, json_option, parse_pairs

if TYPE_CHECKING:
    from understudy.model import HostFile

_services = click.argument(
    "services", nargs=-1, metavar="SERVICE...", shell_complete=complete_service
)


@click.command()
@_services
@click.option(
    "--set",
    "values",
    metavar="NAME=VALUE",
    multiple=True,
    callback=parse_pairs,
    help="Set a value of the definition, for good; SERVICE.NAME where several have it. Repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Print all files and steps, and change nothing.")
@json_option
def deploy(
    services: tuple[str, ...], values: Mapping[str, str], dry_run: bool, as_json: bool
) -> int:
    """Put production on this host: its units, its configuration, its user.

    \b
    Examples:
      sudo understudy deploy mediamtx --set program=/opt/mediamtx/mediamtx
      sudo understudy deploy mediamtx camera-service --dry-run
    """
    from understudy import deploy as deploying

    if not services:
        raise click.UsageError("Missing argument 'SERVICE...'.")
    deploying.check_root("deploy", services)
    found = deploying.wanted(services, values)
    click.echo("\n".join(_shown(file) for one in found for file in one.files), nl=False)
    return 0


def _shown(file: HostFile) -> str:
    return f"# {file.path}\n" + ("" if file.secret else file.text)


@click.command()
@_services
@json_option
def withdraw(services: tuple[str, ...], as_json: bool) -> int:
    """Take away what deploy has put on this host, and nothing else.

    \b
    Examples:
      sudo understudy withdraw mediamtx
    """
    from understudy import deploy as deploying

    if not services:
        raise click.UsageError("Missing argument 'SERVICE...'.")
    deploying.check_root("withdraw", services)
    return 0
