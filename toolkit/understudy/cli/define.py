"""``understudy define``: a definition from a unit that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.cli.options import json_option, print_json

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from understudy.define import Definition, Facts
    from understudy.model import ManagerKind


def _complete_unit(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of installed services; none where no manager is in reach."""
    from click.shell_completion import CompletionItem

    from understudy.define import looking
    from understudy.errors import UnderstudyError

    names: list[str] = []
    try:
        for manager in looking.managers(_kind(ctx.params.get("manager") or "auto")):
            names += looking.unit_names(manager)
    except UnderstudyError:
        pass
    return [CompletionItem(name) for name in sorted(set(names)) if name.startswith(incomplete)]


@click.command()
@click.argument("unit", shell_complete=_complete_unit)
@click.option("--name", metavar="NAME", help="What the service is called; by default as its unit.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("units"),
    show_default=True,
    metavar="DIR",
    help="The folder of definitions in which NAME becomes one.",
)
@click.option(
    "--manager",
    type=click.Choice(["auto", "system", "user"]),
    default="auto",
    show_default=True,
    envvar="UNDERSTUDY_MANAGER",
    help="Whose manager has the unit: auto is the system's, or your own if that does not know it.",
)
@click.option(
    "--dry-run", "--stdout", "dry_run", is_flag=True, help="Print the files, and write nothing."
)
@click.option("--force", is_flag=True, help="Replace a definition of that name.")
@json_option
def define(
    unit: str,
    name: str | None,
    output: Path,
    manager: str,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write a service definition from UNIT as it is installed, and as it runs.

    The folder DIR/NAME gets service.toml, the unit as a template, a drop-in with what an instance
    needs different, and copies of the configuration files that name its ports or its folders. The
    unit is looked at, and neither changed nor started; if it runs its ports are known. Secrets
    are not taken. What could not be found out is said on stderr, line by line.

    \b
    Examples:
      sudo understudy define redis-server          units/redis-server, for understudy check
      understudy define my-server --name mine --output ~/.config/understudy/units
      understudy define nginx --dry-run
    """
    from understudy import define as defining
    from understudy import services
    from understudy.define.placing import try_out
    from understudy.errors import UsageError
    from understudy.names import valid_service_name

    found, owner = defining.find(unit, _kind(manager))
    called = name if name is not None else defining.service_name(found)
    if not valid_service_name(called):
        raise UsageError(
            f"Cannot define '{found}': '{called}' is no name for a service"
            if name is not None
            else f"Cannot define '{found}': its name is none for a service",
            hint="--name with lower case letters, digits and single dashes",
        )
    facts = defining.look(found, owner)
    definition = defining.define(facts, called)
    if dry_run:
        try_out(definition)
        folder = None
    else:
        folder = defining.place(definition, output, force=force)
    if as_json:
        print_json([_object(definition, facts, folder)])
    else:
        _show(definition, folder, output)
    asked = unit if unit.endswith(".service") else f"{unit}.service"
    if asked != found:
        click.echo(f"note: {asked} is an alias of {found}", err=True)
    for known in services.every():
        if known.production == found:
            click.echo(f"note: '{known.name}' is a definition of {found} already", err=True)
    for note in definition.notes:
        click.echo(f"note: {note}", err=True)


def _show(definition: Definition, folder: Path | None, output: Path) -> None:
    if folder is None:
        texts = (
            f"# {output / definition.name / name}\n{text}"
            for name, text in definition.files.items()
        )
        click.echo("\n".join(texts), nl=False)
        return
    for name in definition.files:
        click.echo(f"wrote {folder / name}")
    click.echo(f"next:  understudy check {folder}")
    click.echo(f"       understudy spawn {definition.name} --units {folder.parent}")


def _object(definition: Definition, facts: Facts, folder: Path | None) -> dict[str, object]:
    return {
        "service": definition.name,
        "unit": facts.unit,
        "manager": str(facts.kind),
        "running": facts.running,
        "folder": None if folder is None else str(folder),
        "files": dict(definition.files),
        "notes": [{"text": note.text, "hint": note.hint} for note in definition.notes],
    }


def _kind(name: str) -> ManagerKind | None:
    from understudy.model import ManagerKind

    return None if name == "auto" else ManagerKind(name)
