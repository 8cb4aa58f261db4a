"""Names of units: how ours are built, and how one is taken apart again.

``understudy-<service>@<run>-<number>.service`` is parsed from the right, because a service's
name may hold dashes and a run's id may not.
"""

from __future__ import annotations

import re

from understudy.model import OURS

RESERVED = frozenset(
    {
        *("guard", "clean", "command", "network", "publish", "through"),
        *("shared", "hold", "linger", "making", "lease"),
    }
)
"""Names no service may have: the units of a run and of its networks are called so."""

_SERVICE = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_RUN = re.compile(r"[a-z][a-z0-9]{0,15}")
_UNIT = re.compile(
    rf"{OURS}(?P<service>{_SERVICE.pattern})@(?P<run>{_RUN.pattern})-(?P<number>[1-9][0-9]*)"
    r"\.(?:service|socket)"
)

_NETWORK = re.compile(
    rf"{OURS}network@(?P<run>{_RUN.pattern})-(?P<network>{_SERVICE.pattern})\.service"
)


def valid_service_name(name: str) -> bool:
    """Whether a service may be called so: lower case, digits, single dashes; not reserved."""
    return _SERVICE.fullmatch(name) is not None and len(name) <= 64 and name not in RESERVED


def valid_port_name(name: str) -> bool:
    """Whether a port may be called so: lower case, digits, single dashes."""
    return _SERVICE.fullmatch(name) is not None


def valid_network_name(name: str) -> bool:
    """Whether a private network may be called so: lower case, digits, single dashes."""
    return _SERVICE.fullmatch(name) is not None and len(name) <= 64


def valid_run_id(run: str) -> bool:
    """Whether a run may be called so: a letter, then at most 15 letters and digits, lower case.

    It becomes part of a slice's name, where a dash would mean another level
    (systemd.slice(5)), and of a user name of at most 31 characters.
    """
    return _RUN.fullmatch(run) is not None


def instance_unit(service: str, run: str, number: int) -> str:
    """The service unit of a run's instance: ``understudy-mediamtx@r7k2mq-1.service``."""
    return f"{OURS}{service}@{run}-{number}.service"


def socket_unit(service: str, run: str, number: int) -> str:
    """The socket unit beside it: ``understudy-mediamtx@r7k2mq-1.socket``."""
    return f"{OURS}{service}@{run}-{number}.socket"


def guard_unit(run: str) -> str:
    """The unit whose end ends the run: ``understudy-guard@r7k2mq.service``."""
    return f"{OURS}guard@{run}.service"


def clean_unit(run: str) -> str:
    """The unit that removes a run's directories: ``understudy-clean@r7k2mq.service``."""
    return f"{OURS}clean@{run}.service"


def slice_unit(run: str) -> str:
    """The slice that holds all of a run: ``understudy-r7k2mq.slice``."""
    return f"{OURS}{run}.slice"


def guarded_slice_unit(run: str) -> str:
    """The slice in it whose members the kernel keeps from production's ports:
    ``understudy-r7k2mq-guarded.slice``.
    """
    return f"{OURS}{run}-guarded.slice"


def shared_unit(key: str, run: str) -> str:
    """The unit whose end ends a shared run: ``understudy-shared@KEY-r7k2mq.service``.

    Args:
        key: What those who share it find it by; it has no dash.
        run: The shared run's id.
    """
    return f"{OURS}shared@{key}-{run}.service"


def making_unit(key: str) -> str:
    """The unit of whoever is making what is shared under this key, there once at a time."""
    return f"{OURS}making@{key}.service"


def hold_unit(user: str, run: str) -> str:
    """A run's hold on a shared run: ``understudy-hold@USER-r7k2mq.service``.

    Args:
        user: The id of the run that uses it.
        run: The shared run's id.
    """
    return f"{OURS}hold@{user}-{run}.service"


def linger_unit(run: str, user: str) -> str:
    """What holds a shared run for a while after that user's end; a file of the shared run."""
    return f"{OURS}linger@{run}-{user}.service"


def lease_unit(lease: str) -> str:
    """The unit whose process keeps a lease: ``understudy-lease@r7k2mq.service``."""
    return f"{OURS}lease@{lease}.service"


def through_unit(run: str, number: int) -> str:
    """What lets a port into a private network: ``understudy-through@r7k2mq-1.service``.

    Args:
        run: The run's id.
        number: Which it is of the run's.
    """
    return f"{OURS}through@{run}-{number}.service"


def network_unit(run: str, network: str) -> str:
    """What holds a private network that has a name: ``understudy-network@r7k2mq-lab.service``.

    Args:
        run: The id of the run that made it.
        network: Its name; "*" as the run, and this is a pattern for those of all runs.
    """
    return f"{OURS}network@{run}-{network}.service"


def parse_network(unit: str) -> tuple[str, str] | None:
    """Run and name of the network that a unit holds; None for any other unit."""
    match = _NETWORK.fullmatch(unit)
    return None if match is None else (match["run"], match["network"])


def command_unit(run: str) -> str:
    """The scope of a command that is a member of a run: ``understudy-command-r7k2mq.scope``.

    A scope has no instances, so there is no ``@`` in its name.
    """
    return f"{OURS}command-{run}.scope"


def publish_unit(run: str, number: int, port: str) -> str:
    """The proxy of a private instance's port: ``understudy-publish@r7k2mq-1-http.service``."""
    return f"{OURS}publish@{run}-{number}-{port}.service"


def run_directory(runtime_dir: str, run: str) -> str:
    """Everything a run keeps in files: ``/run/understudy/r7k2mq``.

    Args:
        runtime_dir: The manager's ``%t``.
        run: The run's id.
    """
    return f"{runtime_dir}/understudy/{run}"


def instance_directory(runtime_dir: str, service: str, run: str, number: int) -> str:
    """An instance's own directory: ``/run/understudy/r7k2mq/mediamtx-1``."""
    return f"{run_directory(runtime_dir, run)}/{service}-{number}"


def files_directory(directory: str) -> str:
    """Where an instance's rendered files lie: beside its directory, which systemd empties.

    Args:
        directory: What `instance_directory` gives.
    """
    return f"{directory}.files"


def secrets_path(files: str) -> str:
    """The file of an instance's variables that nobody but its manager may read.

    Args:
        files: What `files_directory` gives.
    """
    return f"{files}/secrets.env"


def confided_path(files: str) -> str:
    """The file of an instance's values, secret ones included, for its owner alone.

    Args:
        files: What `files_directory` gives.
    """
    return f"{files}/confided.json"


def parse(unit: str) -> tuple[str, str, int] | None:
    """Take an instance's unit name apart.

    Args:
        unit: A service's or a socket's unit name.

    Returns:
        Service, run and number; None for a unit that is no instance (a run's guard, say).
    """
    match = _UNIT.fullmatch(unit)
    if match is None or match["service"] in RESERVED:
        return None
    return match["service"], match["run"], int(match["number"])
