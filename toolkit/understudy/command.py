"""A command as a member of a run: in a scope of its own, in the caller's terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence

from understudy import names
from understudy.derive import urls_of
from understudy.foreground import Forwarding
from understudy.manager import Manager, bus_variables
from understudy.model import HOST, ManagerKind, Service

NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNALLED = 128


def environment(run: str, instances: Iterable[tuple[Service, Mapping[str, int]]]) -> dict[str, str]:
    """What a command is told of the instances it runs beside.

    ``UNDERSTUDY_<SERVICE>_<PORT>_PORT`` and ``…_URL``, upper case, dashes as underscores, for
    the first instance of each service; ``UNDERSTUDY_<SERVICE>_2_<PORT>_PORT`` for its second.

    Args:
        run: The run's id.
        instances: The definition and the port numbers, by name, of each.
    """
    variables = {"UNDERSTUDY_RUN": run, "UNDERSTUDY_HOST": HOST}
    counts: dict[str, int] = {}
    for service, ports in instances:
        count = counts[service.name] = counts.get(service.name, 0) + 1
        stem = _variable(service.name) + (f"_{count}" if count > 1 else "")
        for port, number in ports.items():
            variables[f"UNDERSTUDY_{stem}_{_variable(port)}_PORT"] = str(number)
        for port, url in urls_of(service, ports).items():
            variables[f"UNDERSTUDY_{stem}_{_variable(port)}_URL"] = url
    return variables


def scope_argv(manager: Manager, run: str, command: Sequence[str]) -> list[str]:
    """The command line that runs a command in a scope of the run.

    Args:
        manager: The run's manager.
        run: The run's id.
        command: The command's argv.
    """
    guard = names.guard_unit(run)
    user = ["--user"] if manager.kind is ManagerKind.USER else []
    return [
        *("systemd-run", *user, "--scope", "--quiet", "--collect"),
        f"--unit={names.command_unit(run)}",
        f"--slice={names.slice_unit(run)}",
        *("-p", f"BindsTo={guard}", "-p", f"After={guard}", "-p", "TimeoutStopSec=5"),
        *("--", *command),
    ]


def program_fault(program: str) -> int:
    """The exit code of a shell for a program that cannot be run; 0 for one that can.

    Args:
        program: Its path, or a name to look for in PATH.

    Returns:
        0; 127 if there is none; 126 if it may not be executed.
    """
    if shutil.which(program) is not None:
        return 0
    # which(1) passes folders by; the kernel says of them that they may not be executed.
    folder = os.sep in program and os.path.isdir(program)  # noqa: PTH112 - no error, ever
    there = folder or shutil.which(program, mode=os.F_OK) is not None
    return NOT_EXECUTABLE if there else NOT_FOUND


def run_command(
    manager: Manager, run: str, command: Sequence[str], variables: Mapping[str, str]
) -> int:
    """Run a command as a member of a run, and give its exit code as a shell would.

    It has the caller's directory, environment, standard streams and terminal. A signal from the
    terminal reaches it directly; one that was sent to this process alone is passed on.

    Args:
        manager: The run's manager.
        run: The run's id.
        command: Its argv; `program_fault` has nothing against it.
        variables: Added to its environment.

    Returns:
        Its exit code; 128+n for an end by signal n.
    """
    whole = {**os.environ, **bus_variables(manager), **variables}
    with Forwarding() as forwarding:
        child = subprocess.Popen(scope_argv(manager, run, command), env=whole)
        forwarding.to(child.pid)
        code = child.wait()
    return SIGNALLED - code if code < 0 else code


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")
