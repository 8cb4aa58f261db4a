"""``understudy production``, ``understudy lease`` and ``understudy clean``."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.cli import show_error
from understudy.cli.options import (
    Progress,
    complete_service,
    json_option,
    print_json,
    units_option,
)
from understudy.cli.spawn import COMMAND, BeforeDashes, command_fault
from understudy.errors import UnderstudyError

if TYPE_CHECKING:
    from understudy.leases import Holder
    from understudy.model import ManagerKind

_OUR_FAILURE = 125


def _kind(name: str) -> ManagerKind | None:
    from understudy.model import ManagerKind

    return None if name == "auto" else ManagerKind(name)


_service = click.argument("service", shell_complete=complete_service)
_unit = click.option(
    "--unit", metavar="NAME", help="Its unit, where that is not called as its definition says."
)
_manager = click.option(
    "--manager",
    type=click.Choice(["auto", "system", "user"]),
    default="auto",
    show_default=True,
    envvar="UNDERSTUDY_MANAGER",
    help="Whose manager runs it: auto is the system's, or your own if that does not know it.",
)
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds to wait for those who have it.",
)


class _Waiting:
    """Shows who is waited for: in one line on a terminal, else whenever it is somebody else."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, text: str, news: bool) -> None:
        import sys

        if sys.stderr.isatty():
            self._progress.show(text)
        elif news:
            click.echo(text, err=True)


@click.command()
@_service
@_unit
@_manager
@units_option
@json_option
def production(
    service: str, unit: str | None, manager: str, units: Path | None, as_json: bool
) -> int:
    """Show the host's own copy of a service: state, ports, URLs, who has a lease, fingerprint.

    The exit code is 1 if it is not there, not active or not ready.

    \b
    Examples:
      understudy production mediamtx
      understudy production mediamtx --json
    """
    from understudy import lead as leading
    from understudy import leases

    lead = leading.production(service, unit=unit, manager=_kind(manager), units=units)
    status = lead.status()
    found = leases.holders(lead.lease_key)
    mark = lead.fingerprint()
    if as_json:
        print_json([
            {
                "service": lead.service,
                "unit": lead.unit,
                "manager": str(lead.manager),
                "state": status.active_state,
                "pid": lead.pid,
                "ports": lead.ports,
                "urls": lead.urls,
                "leases": [_row(one) for one in found],
                "fingerprint": mark.to_json(),
            }
        ])  # fmt: skip
        return 0
    click.echo(f"{lead.unit}  {status.active_state} on the {lead.manager} manager, PID {lead.pid}")
    click.echo(f"since      {mark.active_since or '-'}")
    for name, number in lead.ports.items():
        click.echo(f"{name:<15}  {number:>5}  {lead.urls.get(name, '')}".rstrip())
    for one in found:
        click.echo(f"lease      {one}")
    for aspect, rows in mark.values.items():
        for key, value in sorted(rows.items()):
            click.echo(f"{aspect:<15}  {' '.join(word for word in (key, value) if word)}")
    for text in mark.unseen:
        click.echo(f"not seen   {text}")
    return 0


@click.command(cls=BeforeDashes)
@_service
@click.option("--exclusive", is_flag=True, help="Alone: wait until nobody else has one.")
@_timeout
@_unit
@_manager
@units_option
@click.pass_context
def lease(
    ctx: click.Context,
    service: str,
    exclusive: bool,
    timeout: float,
    unit: str | None,
    manager: str,
    units: Path | None,
) -> int:
    """Run a command with a lease on production: shared, or alone.

    This process becomes the command, so signals, terminal and exit code are the command's own; the
    lease is free when it ends, however it ends. What the command starts is under the same lease.

    Exit codes of ours: 125 a failure, such as a lease that is not to be had in time, 126 and 127 a
    command that cannot be executed or found.

    \b
    Examples:
      understudy lease mediamtx -- pytest tests/
      understudy lease mediamtx --exclusive --timeout 300 -- sudo systemctl restart mediamtx
    """
    command: list[str] = ctx.meta.get(COMMAND, [])
    if not command:
        raise click.UsageError("Name the command to run: understudy lease SERVICE -- CMD…")
    if code := command_fault(command):
        return code
    from understudy import lead as leading
    from understudy import leases

    try:
        definition, found, where = leading.find(
            service, unit=unit, manager=_kind(manager), units=units
        )
        key = leases.key_of(found, where.kind)
        with Progress() as progress:
            had = leases.lease(
                key,
                service=definition.name,
                exclusive=exclusive,
                timeout_s=timeout,
                who=Path(command[0]).name,
                waiting=_Waiting(progress),
            )
    except UnderstudyError as exc:
        show_error(exc)
        return _OUR_FAILURE
    try:
        os.execvpe(command[0], command, {**os.environ, **leases.variable(key, had)})
    except OSError as exc:
        show_error(UnderstudyError(f"Cannot run '{command[0]}': {exc.strerror}"))
        return 127 if exc.errno == errno.ENOENT else 126


@click.command()
@_service
@_unit
@_manager
@units_option
@json_option
@click.option(
    "--path",
    "names",
    multiple=True,
    metavar="NAME",
    help="Remove this path in their place, whoever has added it; one of a live run stays. "
    "Repeatable.",
)
def clean(
    service: str,
    unit: str | None,
    manager: str,
    units: Path | None,
    as_json: bool,
    names: tuple[str, ...],
) -> int:
    """Remove what runs that are no more have left on production.

    Only what says that it is a run's, and whose run does not live: what live runs of any user have
    stays, and so does all else. What a test's service has added under a name of nobody's is known
    to nobody: that is removed by its name.

    \b
    Examples:
      understudy clean mediamtx
      understudy clean mediamtx --path camera0
    """
    from understudy import lead as leading

    lead = leading.production(service, unit=unit, manager=_kind(manager), units=units)
    with Progress() as progress:
        waiting = _Waiting(progress)
        for name in names:
            lead.remove_path(name, waiting=waiting)
        removed = [] if names else lead.clean(waiting=waiting)
    if names:
        removed_names = [{"path": name, "run": None, "uid": None} for name in names]
        print_json(removed_names) if as_json else click.echo(
            "\n".join(f"removed {name}" for name in names)
        )
        return 0
    if as_json:
        print_json([{"path": one.name, "run": one.owner, "uid": one.uid} for one in removed])
        return 0
    for one in removed:
        click.echo(f"removed {one.name}, of run {one.owner}")
    if not removed:
        click.echo("Nothing is left of runs that are no more.", err=True)
    return 0


def _row(one: Holder) -> dict[str, object]:
    return {
        "who": one.who,
        "pid": one.pid,
        "user": one.user,
        "exclusive": one.exclusive,
        "holds": one.holds,
        "since_s": one.since_s,
    }
