"""Names of units: how ours are built, and how one is taken apart again.

``understudy-<service>@<run>-<number>.service`` is parsed from the right, because a service's
name may hold dashes and a run's id may not.
"""

from __future__ import annotations

import re

from understudy.model import OURS

RESERVED = frozenset({"guard", "clean", "command", "network", "publish", "through"})
"""Names no service may have: the units of a run and of its networks are called so."""

_SERVICE = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_RUN = re.compile(r"[a-z][a-z0-9]{0,15}")
_UNIT = re.compile(
    rf"{OURS}(?P<service>{_SERVICE.pattern})@(?P<run>{_RUN.pattern})-(?P<number>[1-9][0-9]*)"
    r"\.(?:service|socket)"
)


def valid_service_name(name: str) -> bool:
    """Whether a service may be called so: lower case, digits, single dashes; not reserved."""
    return _SERVICE.fullmatch(name) is not None and len(name) <= 64 and name not in RESERVED


def valid_port_name(name: str) -> bool:
    """Whether a port may be called so: lower case, digits, single dashes."""
    return _SERVICE.fullmatch(name) is not None


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
