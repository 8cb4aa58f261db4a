"""``understudy list``, ``show``, ``logs`` and ``stop``: what lives, and ending it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from understudy.cli.options import (
    complete_instance,
    connected,
    json_option,
    manager_option,
    ports_text,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from understudy.listing import Found


@click.command("list")
@manager_option
@json_option
def list_(manager: str, as_json: bool) -> None:
    """List live instances, and those of a live run that have failed.

    \b
    Examples:
      understudy list
      understudy list --json | jq -r '.[].urls.api'
    """
    from understudy import listing

    found = listing.instances(connected(manager))
    if as_json:
        print_json([one.to_json() for one in found])
    elif not found:
        click.echo("No instances. Start one: understudy spawn SERVICE", err=True)
    else:
        print_table(
            ["UNIT", "STATE", "PID", "PORTS"],
            [
                (one.unit, one.state, str(one.status.main_pid or "-"), ports_text(one.ports))
                for one in found
            ],
        )


@click.command()
@click.argument("instance", shell_complete=complete_instance)
@manager_option
@json_option
def show(instance: str, manager: str, as_json: bool) -> None:
    """Show an instance: its state, its ports, and what is not in force for it.

    systemd ignores some settings without a word, on a user manager above all. What is listed as
    not in force was looked for at the running process, and was not there.

    \b
    Examples:
      understudy show r7k2mq-1
      understudy show mediamtx --json
    """
    from understudy import effects, listing

    connection = connected(manager)
    one = listing.find(listing.instances(connection), instance)
    missing = effects.not_in_force(connection, one) if one.status.main_pid else []
    if as_json:
        print_json([{**one.to_json(), "not_in_force": [effect.to_json() for effect in missing]}])
        return
    user = " --user" if connection.kind == "user" else ""
    rows = [
        ("unit", one.unit),
        ("service", one.service),
        ("run", one.run),
        ("network", one.network),
        ("state", f"{one.state} ({one.status.sub_state})"),
        ("result", one.status.result or "-"),
        ("pid", str(one.status.main_pid or "-")),
        ("cpu", "-" if one.status.cpu_usage_nsec is None
         else f"{one.status.cpu_usage_nsec / 1e6:.0f} ms"),
    ]  # fmt: skip
    for label, text in rows:
        click.echo(f"{label:<9}{text}")
    for name, number in one.ports.items():
        click.echo(f"{'port':<9}{name} {number}  {one.urls.get(name, '')}".rstrip())
    for name, number in one.inside_ports.items():
        click.echo(f"{'inside':<9}{name} {number}")
    click.echo(f"{'text':<9}systemctl{user} cat {one.unit}")
    click.echo(f"{'log':<9}understudy logs {one.run}-{one.number}")
    if not one.status.main_pid:
        click.echo("not in force on this manager: it does not run, so nothing can be seen")
    elif missing:
        click.echo("not in force on this manager:")
        for effect in missing:
            click.echo(f"  {effect.setting:<28}{effect.reason}")
    else:
        click.echo("not in force on this manager: nothing")


@click.command()
@click.argument("name", metavar="INSTANCE|RUN", shell_complete=complete_instance)
@click.option("--follow", "-f", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option(
    "--lines", "-n", type=click.IntRange(min=0), metavar="N", help="The last N lines.  [all]"
)
@manager_option
def logs(name: str, follow: bool, lines: int | None, manager: str) -> int:
    """Print what an instance or a whole run has written, also after its end.

    \b
    Examples:
      understudy logs r7k2mq-1 -f
      understudy logs r7k2mq -n 50
    """
    from understudy import journal, listing
    from understudy.errors import UnderstudyError

    try:
        found = listing.instances(connected(manager))
    except UnderstudyError:
        # The journal outlives managers.
        found = []
    units = sorted({one.unit for one in found if one.run == name}.union(journal.writers(name)))
    if units:
        command = journal.journalctl(units, run=name, follow=follow, lines=lines)
    else:
        unit = _unit(found, name)
        command = journal.journalctl([unit], follow=follow, lines=lines)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.wait()
            return 0


@click.command()
@click.argument("names_", metavar="[INSTANCE|RUN]…", nargs=-1, shell_complete=complete_instance)
@click.option("--all", "everything", is_flag=True, help="All of this manager's runs.")
@manager_option
def stop(names_: tuple[str, ...], everything: bool, manager: str) -> None:
    """Stop instances, or end whole runs with all that is theirs.

    Nothing but units of understudy's is ever stopped.

    \b
    Examples:
      understudy stop r7k2mq-1
      understudy stop r7k2mq
      understudy stop --all
    """
    if everything == bool(names_):
        raise click.UsageError("Name instances or runs, or give --all (one of the two).")
    from understudy import listing
    from understudy.run import end, stop_instance

    connection = connected(manager)
    live = listing.runs(connection)
    found = listing.instances(connection)
    wanted = live if everything else list(names_)
    chosen = [(name, None if name in live else listing.find(found, name)) for name in wanted]
    for name, instance in chosen:
        if instance is None:
            end(connection, name)
            count = sum(one.run == name for one in found)
            click.echo(f"Ended run {name} with {count} instance{'' if count == 1 else 's'}.")
        else:
            stop_instance(connection, instance)
            click.echo(f"Stopped {instance.unit}.")
    if everything and not live:
        click.echo("No runs.", err=True)


def _unit(found: Sequence[Found], name: str) -> str:
    """The instance whose log is wanted: one that lives, or one that has written something."""
    from understudy import journal, listing
    from understudy.errors import UsageError
    from understudy.model import OURS

    try:
        return listing.find(found, name).unit
    except UsageError:
        text = name.removesuffix(".service").removeprefix(OURS)
        run = text.rpartition("@")[2].rpartition("-")[0]
        for unit in journal.writers(run):
            if unit == f"{OURS}{text}.service" or unit.endswith(f"@{text}.service"):
                return unit
        raise
