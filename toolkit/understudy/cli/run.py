"""``understudy run``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.cli import show_error
from understudy.cli.options import (
    Progress,
    background_option,
    complete_instance,
    complete_network,
    complete_service,
    connected,
    env_options,
    manager_option,
    ports_text,
    units_option,
)
from understudy.cli.spawn import COMMAND, BeforeDashes, command_fault
from understudy.errors import UnderstudyError

if TYPE_CHECKING:
    from understudy.command import Place
    from understudy.instance import Instance
    from understudy.manager import Manager
    from understudy.model import PrivateNetwork
    from understudy.netns import Namespace
    from understudy.run import Listening, Run

_OUR_FAILURE = 125  # as env(1) and timeout(1) have it; 126 and up are the command's


@click.command(cls=BeforeDashes)
@click.option(
    "--network",
    metavar="host|private[:NAME]",
    help="Run CMD in a private network; one with a NAME is shared with whatever else names it.",
    shell_complete=complete_network,
)
@click.option(
    "--through",
    multiple=True,
    metavar="SERVICE[:PORT]",
    help="Let production's TCP ports into the private network, on their own numbers.",
    shell_complete=complete_service,
)
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME",
    help="Start an instance for CMD, in CMD's network.",
    shell_complete=complete_service,
)
@click.option(
    "--join",
    metavar="INSTANCE",
    help="Run CMD in the network of that instance.",
    shell_complete=complete_instance,
)
@env_options
@background_option
@manager_option
@units_option
@click.pass_context
def run(
    ctx: click.Context,
    network: str | None,
    through: tuple[str, ...],
    services: tuple[str, ...],
    join: str | None,
    env: dict[str, str],
    background: bool,
    manager: str,
    units: Path | None,
) -> int:
    """Run a command as if by itself; what it leaves behind ends with it.

    It has your directory, environment and terminal. In a private network every port is free, and
    production is reached on its own ports where it is let in (--through implies --network
    private). Under sudo the command runs as you, and only its network is made by root.

    The exit code is the command's own, 128+n for an end by signal n, 126 or 127 for a command
    that cannot be executed or found, and 125 for a failure of ours.

    \b
    Examples:
      understudy run --through mediamtx -- pytest tests/
      understudy run --network private --service mediamtx -- pytest tests/
      understudy run --network private:lab -- python3 server.py
      understudy run --join r7k2mq-1 -- ffprobe rtsp://127.0.0.1:8554/cam0
      understudy run -- make test
    """
    command: list[str] = ctx.meta.get(COMMAND, [])
    if not command:
        raise click.UsageError("Name the command to run: understudy run -- CMD…")
    if join is not None and (network is not None or through or services):
        raise click.UsageError("--join goes without --network, --through and --service.")
    if through and network == "host":
        raise click.UsageError("--through goes with --network private: outside all is in reach.")
    try:
        if network is None:
            network = "private" if through else "host"
        return _run(command, network, through, services, join, env, background, manager, units)
    except UnderstudyError as exc:
        show_error(exc)
    except BaseExceptionGroup as group:
        for error in group.exceptions:
            show_error(error)
    return _OUR_FAILURE


def _run(
    command: Sequence[str],
    network: str,
    through: Sequence[str],
    services: Sequence[str],
    join: str | None,
    env: Mapping[str, str],
    background: bool,
    manager: str,
    units: Path | None,
) -> int:
    from understudy.command import Place, calling_user, run_alone, run_in_private_network
    from understudy.network import network_name

    name = network_name(network)
    place = Place(caller=calling_user(), background=background)
    if "PATH" not in env and (code := command_fault(list(command))):
        return code
    targets = _targets(through, units)
    connection = connected(manager)
    if services or name or join is not None:
        return _run_among_others(
            connection, command, env, name=name, targets=targets, services=services, join=join,
            place=place, units=units,
        )  # fmt: skip
    if name is None:
        return run_alone(connection, command, env, place=place)
    return run_in_private_network(connection, command, env, targets=targets, place=place)


def _run_among_others(
    connection: Manager,
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    name: str | None,
    targets: Mapping[int, str],
    services: Sequence[str],
    join: str | None,
    place: Place,
    units: Path | None,
) -> int:
    """Run a command beside instances, or in a network that was there or stays for others."""
    from understudy.command import environment, own_network, run_command
    from understudy.model import HOST, PrivateNetwork
    from understudy.network import Network, let_in
    from understudy.run import Run

    made = Run(manager=connection, units=units, background=place.background)
    with made as run, contextlib.ExitStack() as undo:
        namespace: Namespace | None = None
        called = ""
        holder = ""
        if join is not None:
            namespace, called = _network_of(connection, join)
        elif name:
            shared = Network.find_or_make(connection, run.id, name)
            namespace, called = shared.namespace(), f"private:{name}"
            holder = shared.unit if shared.run == run.id else ""
        elif name is not None:
            namespace, called = own_network(targets), "private"
        private: PrivateNetwork | None = None
        if namespace is not None:
            undo.enter_context(namespace)
            net, user = namespace.net_path, namespace.user_path
            place = replace(place, network=called, net_path=net, user_path=user)
            private = PrivateNetwork(name=name or "", holder=holder, net_path=net, user_path=user)
            if targets:
                let_in(connection, run.id, namespace, targets)
        found: list[Instance] = []
        with Progress() as progress:
            for service in in_order(services, run.units):
                progress.show(f"starting {service}")
                found.append(_spawn(run, service, found, private))
        for one in found:
            # Sockets of its own that systemd bound outside are let in as production's are.
            outside = _tcp_numbers(one) if namespace is not None and not one.inside_ports else []
            if namespace is not None and outside:
                targets = {number: f"{HOST}:{number}" for number in outside}
                let_in(connection, run.id, namespace, targets)
        ports = [(one.definition, one.inside_ports or one.ports) for one in found]
        variables = {**environment(run.id, ports), **env}
        return run_command(connection, run.id, command, variables, place=place)


def in_order(names: Sequence[str], units: Path | None) -> list[str]:
    """Services in the order of their start: what others use comes before these.

    Else these would talk to production, or have let it in on a port that is another's.

    Args:
        names: The services as they were named; one may be there more than once.
        units: A folder of definitions to look in first.

    Raises:
        DefinitionError: There is none of that name.
    """
    from understudy import services

    uses = {name: services.find(name, units=units).uses for name in names}
    waiting = list(names)
    ordered: list[str] = []
    while waiting:
        due = [one for one in waiting if not uses[one].keys() & set(waiting) - {one}]
        due = due or waiting  # they use each other
        ordered += due
        waiting = [one for one in waiting if one not in due]
    return ordered


def _spawn(
    run: Run, name: str, before: Sequence[Instance], network: PrivateNetwork | None
) -> Instance:
    """Start an instance that talks to those that were started before it, where it uses them."""
    from understudy import services

    used = services.find(name, units=run.units).uses
    uses: dict[str, Listening] = {one.service: one for one in before if one.service in used}
    if network is None:
        return run.spawn(name, uses=uses)
    return run.spawn(name, uses=uses, network=network)


def _tcp_numbers(instance: Instance) -> list[int]:
    from understudy.model import Transport

    declared = instance.definition.ports
    return [
        number
        for name, number in instance.ports.items()
        if declared[name].transport is Transport.TCP
    ]


def _network_of(connection: Manager, text: str) -> tuple[Namespace, str]:
    """The network of an instance, and what it is called."""
    from understudy import listing
    from understudy.errors import NetworkError
    from understudy.netns import Namespace

    one = listing.find(listing.instances(connection), text)
    status = connection.status([one.unit])[one.unit]
    if not status.main_pid:
        raise NetworkError(f"Cannot join '{one.unit}': it does not run ({status.active_state})")
    namespace = Namespace.of(status.main_pid)
    if namespace.is_ours():
        namespace.close()
        raise NetworkError(
            f"Cannot join '{one.unit}': it has no network of its own",
            hint=f"its ports are on this host: {ports_text(one.ports)}; one of its own: "
            f"understudy spawn {one.service} --network private",
        )
    namespace.allow_ping()
    return namespace, "private"


def _targets(through: Sequence[str], units: Path | None) -> dict[int, str]:
    """Where the ports lead that are to be let in."""
    if not through:
        return {}
    from understudy.network import production_targets
    from understudy.ports import snapshot
    from understudy.services import find

    sockets = snapshot()
    targets: dict[int, str] = {}
    for text in through:
        service, _, port = text.partition(":")
        targets |= production_targets(find(service, units=units), port, sockets)
    return targets
