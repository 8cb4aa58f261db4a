"""``understudy services`` and ``understudy render``: what is defined, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.cli.options import (
    complete_service,
    json_option,
    manager_option,
    parse_pairs,
    print_json,
    print_table,
    units_option,
)

if TYPE_CHECKING:
    from understudy.model import Derived, Service

SHOWN_PORTS = 4

EXAMPLE_RUN = "r00000"
"""The run of an instance that is only shown."""


@click.command()
@units_option
@json_option
def services(units: Path | None, as_json: bool) -> int:
    """List the service definitions, and where each comes from.

    Of two with one name the first found counts: --units DIR, ./units and
    ~/.config/understudy/units (not as root), /etc/understudy/units, those shipped. A definition
    that is wrong is reported, and the exit code is 1.

    \b
    Examples:
      understudy services
      understudy services --units tests/units --json
    """
    from understudy import services as definitions
    from understudy.cli import EXIT_ERROR, show_error
    from understudy.errors import DefinitionError

    found: list[Service] = []
    code = 0
    for _name, (folder, origin) in sorted(definitions.folders(units=units).items()):
        try:
            found.append(definitions.load(folder, origin))
        except DefinitionError as exc:
            show_error(exc)
            code = EXIT_ERROR
    if as_json:
        print_json([_object(service) for service in found])
    else:
        print_table(("SERVICE", "ORIGIN", "PRODUCTION", "DESCRIPTION", "PORTS"), map(_cells, found))
    return code


def _object(service: Service) -> dict[str, object]:
    return {
        "service": service.name,
        "description": service.description,
        "origin": service.origin,
        "folder": str(service.folder),
        "production": service.production,
        "singleton": service.singleton,
        "values": dict(service.values),
        "secrets": list(service.secrets),
        "ports": {
            port.name: {"transport": port.transport.value, "number": port.number, "url": port.url}
            for port in service.ports.values()
        },
        "uses": sorted(service.uses),
        "activation": service.instance_activation.value,
    }


def _cells(service: Service) -> tuple[str, ...]:
    # Those that every instance opens come first.
    known = sorted(service.ports.values(), key=lambda port: port.optional or bool(port.switch))
    ports = ", ".join(f"{port.name} {port.number}" for port in known[:SHOWN_PORTS])
    if len(known) > SHOWN_PORTS:
        ports += f" and {len(known) - SHOWN_PORTS} more"
    return (
        service.name,
        service.origin,
        service.production or "-",
        service.description,
        ports or "-",
    )


@click.command()
@click.argument("service", shell_complete=complete_service)
@click.option("--instance", is_flag=True, help="An example instance in the place of production.")
@click.option("--all", "whole", is_flag=True, help="With the other files that deploy would write.")
@click.option(
    "--set",
    "values",
    metavar="NAME=VALUE",
    multiple=True,
    callback=parse_pairs,
    help="Set a value of the definition. Repeatable.",
)
@manager_option
@units_option
def render(
    service: str,
    instance: bool,
    whole: bool,
    values: Mapping[str, str],
    manager: str,
    units: Path | None,
) -> None:
    """Print the unit files of a service, or those of an instance of it.

    Nothing is started, claimed or written, and no manager is needed. The example instance is
    number 1 of run r00000, with ports from the start of the range. A file that only its owner
    may read is named, and its content is left out.

    \b
    Examples:
      understudy render mediamtx
      understudy render mediamtx --all
      understudy render mediamtx --instance --manager user
      understudy render camera-service --instance --set root=$PWD
    """
    from understudy import derive
    from understudy import services as definitions

    found = definitions.find(service, units=units)
    if instance and whole:
        raise click.UsageError("--all is of production, --instance of an instance")
    if whole:
        used = definitions.used_numbers(found, units=units)
        files = derive.production_files(found, values, used=used)
        texts = {file.path: "" if file.secret else file.text for file in files}
    elif not instance:
        rendered = derive.render_production(found, values)
        texts = {f"{derive.SYSTEM_UNIT_DIR}/{name}": text for name, text in rendered.items()}
    else:
        texts = _example(found, values, manager, units)
    click.echo("\n".join(f"# {path}\n{text}" for path, text in texts.items()), nl=False)


def _example(
    service: Service, values: Mapping[str, str], manager: str, units: Path | None
) -> dict[str, str]:
    import os

    from understudy import derive
    from understudy import services as definitions
    from understudy.model import ManagerKind, Part

    service = definitions.opened(service)
    if manager == "auto":
        manager = "user" if os.geteuid() else "system"
    kind = ManagerKind(manager)
    runtime_dir = "/run" if kind is ManagerKind.SYSTEM else f"/run/user/{os.geteuid()}"
    part = Part(
        run=EXAMPLE_RUN,
        number=1,
        kind=kind,
        runtime_dir=runtime_dir,
        ports=_example_ports(service),
        values=values,
        used=definitions.used_numbers(service, units=units),
        denied=definitions.production_ports(units=units),
    )
    return _paths(derive.derive(service, part), f"{runtime_dir}/systemd/{kind}")


def _paths(derived: Derived, unit_dir: str) -> dict[str, str]:
    return {f"{unit_dir}/{path}": text for path, text in derived.units.items()} | dict(
        derived.files
    )


def _example_ports(service: Service) -> dict[str, int]:
    """Numbers from the start of the range, whether they are free or not."""
    from understudy.ports import configured_range
    from understudy.ports.numbering import assign, group

    found = configured_range()
    groups = group(service.ports.values())
    return assign(groups, range(found.first, found.last + 1), ()) or {}
