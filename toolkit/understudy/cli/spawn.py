"""``understudy spawn``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.cli.options import (
    Progress,
    background_option,
    complete_instance,
    complete_network,
    complete_service,
    connected,
    env_options,
    json_option,
    manager_option,
    parse_pairs,
    ports_text,
    print_json,
    print_table,
    units_option,
    with_secrets,
)

if TYPE_CHECKING:
    from understudy.instance import Instance
    from understudy.listing import Found
    from understudy.run import Run

COMMAND = "understudy.command"


class BeforeDashes(click.Command):
    """A command whose arguments end at ``--``; what follows is another command's line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Cut the other command's line off; it is in ``ctx.meta`` afterwards."""
        if "--" in args:
            position = args.index("--")
            ctx.meta[COMMAND] = args[position + 1 :]
            if not ctx.meta[COMMAND] and not ctx.resilient_parsing:
                ctx.fail("After '--' comes the command to run.")
            args = args[:position]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Say in the usage line what may follow."""
        return [*super().collect_usage_pieces(ctx), "[-- CMD…]"]


@click.command(cls=BeforeDashes)
@click.argument("service", required=False, shell_complete=complete_service)
@click.option("--exec", "exec_", metavar="'CMD…'", help="An ad hoc service's command line.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many.")
@click.option(
    "--port",
    "ports",
    multiple=True,
    metavar="NAME[=NUMBER]",
    help="A port that is closed unless asked for, an exact number for any; a port of --exec "
    "(NAME/udp for UDP, NAME:8003 for its number in a private network).",
)
@click.option(
    "--set",
    "values",
    multiple=True,
    callback=parse_pairs,
    metavar="NAME=VALUE",
    help="A value of the definition: --set root=$PWD runs the checkout. A secret can stand in a "
    "file: --set api_password=@FILE; @- asks for it.",
)
@env_options
@click.option(
    "--uses",
    multiple=True,
    callback=parse_pairs,
    metavar="SERVICE=INSTANCE",
    help="Which instance it talks to; production's by default.",
    shell_complete=complete_instance,
)
@click.option(
    "--from",
    "source",
    type=click.Choice(["definition", "installed"]),
    default="definition",
    show_default=True,
    help="Derive from the definition's unit, or from the one installed on this host.",
)
@click.option(
    "--network",
    metavar="host|private[:NAME]",
    help="In a private network it has production's own ports; they are published on others. "
    "Instances can share one by its NAME.  [default: as defined, else host]",
    shell_complete=complete_network,
)
@background_option
@click.option("--lazy", is_flag=True, help="Start a socket-activated service at its first use.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
    metavar="S", help="Seconds until all are ready.",
)  # fmt: skip
@click.option(
    "--lifetime", type=click.FloatRange(min=0, min_open=True), metavar="S",
    help="Seconds after which the run ends whatever happens.  [default: 3600; none with CMD]",
)  # fmt: skip
@click.option(
    "--engine",
    type=click.Choice(["files", "systemd-run"]),
    help="How to hand them to systemd.  [default: files; systemd-run with --exec]",
)
@click.option("--ports-from", "port_range", metavar="FIRST-LAST", help="The range of ports.")
@manager_option
@units_option
@click.option("--dry-run", is_flag=True, help="Print the commands that would do it; do nothing.")
@click.option("--names", is_flag=True, help="Print the units' names alone, for a script.")
@json_option
@click.pass_context
def spawn(
    ctx: click.Context,
    service: str | None,
    exec_: str | None,
    count: int,
    ports: tuple[str, ...],
    values: dict[str, str],
    env: dict[str, str],
    uses: dict[str, str],
    source: str,
    network: str | None,
    background: bool,
    lazy: bool,
    timeout: float,
    lifetime: float | None,
    engine: str | None,
    port_range: str | None,
    manager: str,
    units: Path | None,
    dry_run: bool,
    names: bool,
    as_json: bool,
) -> int:
    """Start instances of a service, on ports of their own, and wait until they are ready.

    Without CMD they live until 'understudy stop', an hour at most. With CMD they live as long as
    it runs: it is told their ports in UNDERSTUDY_<SERVICE>_<PORT>_PORT and …_URL, and its exit
    code is returned.

    \b
    Examples:
      understudy spawn mediamtx
      understudy spawn camera-service --count 8 --set root=$PWD -- pytest
      understudy spawn camera-service --uses mediamtx=r7k2mq-1
      understudy spawn camera-service --uses mediamtx="$(understudy spawn mediamtx --names)"
      understudy spawn --exec 'python3 -m http.server {port.http}' --port http
      understudy spawn camera-service --network private
    """
    command: list[str] = ctx.meta.get(COMMAND, [])
    if (service is None) == (exec_ is None):
        raise click.UsageError("Name a service, or give --exec 'CMD…' (one of the two).")
    if as_json and command:
        raise click.UsageError("--json goes without CMD: its output is the command's.")
    if as_json and dry_run:
        raise click.UsageError("--json goes without --dry-run: that prints a script.")
    if names and (command or dry_run or as_json):
        raise click.UsageError("--names goes without CMD, --dry-run and --json.")
    from understudy import listing, services
    from understudy.command import Place, environment, run_command
    from understudy.model import Engine
    from understudy.ports import configured_range
    from understudy.run import LIFETIME_S, Run

    connection = connected(manager)
    run = Run(
        manager=connection,
        engine=Engine(engine) if engine else None,
        port_range=configured_range(port_range),
        units=units,
        lifetime_s=lifetime or (None if command else LIFETIME_S),
        timeout_s=timeout,
        background=background,
    )
    talks_to = {}
    if uses:
        live = listing.instances(connection)
        talks_to = {name: listing.find(live, text) for name, text in uses.items()}
    if service is not None and any(text.startswith("@") for text in values.values()):
        values = with_secrets(values, services.find(service, units=units).secrets)
    asked, numbers = _ports(ports)
    request = run.request(
        service,
        exec=_split(exec_) if exec_ is not None else (),
        ports={name: numbers.get(name, 0) for name in [*asked, *numbers]},
        values=values,
        env=env,
        uses=talks_to,
        installed=source == "installed",
        lazy=lazy,
        network=network,
    )
    if dry_run:
        from understudy.script import script

        plans = run.plan([request] * count)
        click.echo(script(connection, plans, command, lifetime_s=lifetime), nl=False)
        return 0
    if command and (code := command_fault(command)):
        return code
    with run:
        with Progress() as progress:
            what = service or "the command"

            def show(ready: int, total: int) -> None:
                progress.show(f"starting {what}: {ready} of {total} ready")

            show(0, count)
            instances = run.spawn_many([request] * count, progress=show)
        for instance in instances:
            for socket in instance.undeclared:
                click.echo(
                    f"warning: {instance.unit} listens on {socket}, which its definition does "
                    "not declare",
                    err=True,
                )
        if command:
            variables = environment(run.id, [(one.definition, one.ports) for one in instances])
            place = Place(background=background)
            return run_command(connection, run.id, command, variables, place=place)
        found = listing.instances(connection) if as_json else []
        run.detach()
    _report(run, instances, found, names=names, as_json=as_json)
    return 0


def command_fault(command: list[str]) -> int:
    """Say why a command cannot be run at all.

    Args:
        command: Its argv.

    Returns:
        0 if it can be, else the exit code of a shell.
    """
    from understudy.command import NOT_EXECUTABLE, NOT_FOUND, program_fault

    code = program_fault(command[0])
    if code == NOT_FOUND:
        click.echo(f"error: Cannot run '{command[0]}': command not found", err=True)
    elif code == NOT_EXECUTABLE:
        click.echo(f"error: Cannot run '{command[0]}': permission denied", err=True)
    return code


def _report(
    run: Run, instances: list[Instance], found: list[Found], *, names: bool, as_json: bool
) -> None:
    if as_json:
        took = {one.unit: round(one.started_in_s, 4) for one in instances}
        own = (one for one in found if one.unit in took)
        print_json([{**one.to_json(), "started_in_s": took[one.unit]} for one in own])
        return
    if names:
        click.echo("\n".join(one.unit for one in instances))
    else:
        print_table(
            ["UNIT", "READY IN", "PORTS"],
            [
                (one.unit, f"{one.started_in_s * 1000:.0f} ms", ports_text(one.ports))
                for one in instances
            ],
        )
    assert run.lifetime_s is not None
    click.echo(
        f"Ends in {_duration(run.lifetime_s)}, or now with: understudy stop {run.id}", err=True
    )


def _duration(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def _ports(specs: tuple[str, ...]) -> tuple[list[str], dict[str, int]]:
    names: list[str] = []
    numbers: dict[str, int] = {}
    for spec in specs:
        name, equals, text = spec.partition("=")
        if not equals:
            names.append(name)
        elif text.isdecimal() and 0 < int(text) < 65536:
            numbers[name] = int(text)
        else:
            raise click.BadParameter(
                f"'{text}' is no port number (1 to 65535)", param_hint="'--port'"
            )
    return names, numbers


def _split(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as exc:
        raise click.BadParameter(f"{exc} in: {text}", param_hint="'--exec'") from exc
    if not words:
        raise click.BadParameter("the command line is empty", param_hint="'--exec'")
    return words
