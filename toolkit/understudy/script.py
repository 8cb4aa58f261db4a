"""What `spawn --dry-run` prints: a shell script that does the same, and runs as it is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from understudy import guard, names
from understudy.command import environment, scope_argv
from understudy.manager import Manager, Transient
from understudy.model import Engine
from understudy.plan import Plan
from understudy.run import LIFETIME_S

_UNIT_SECTION = frozenset({"After", "BindsTo", "CollectMode", "Description", "Wants"})
_END_OF_FILE = "UNDERSTUDY-END-OF-FILE"


def script(
    manager: Manager,
    plans: Sequence[Plan],
    command: Sequence[str] = (),
    *,
    lifetime_s: float | None = None,
) -> str:
    """Write the shell script that starts these instances.

    Its guard is no watcher of an owner but a sleep: the run ends with its lifetime, with the
    command, or with the command in the script's last comment.

    Args:
        manager: The manager they are for.
        plans: The instances, all of one run.
        command: A command to run beside them, whose end ends them; empty for none.
        lifetime_s: Seconds until the run ends by itself; None for an hour.
    """
    run = plans[0].part.run
    systemctl = f"systemctl --{manager.kind}"
    seconds = lifetime_s or LIFETIME_S
    lines = [
        "#!/bin/sh",
        f"# Run {run}: {len(plans)} instance{'s' * (len(plans) > 1)} on the {manager.kind} manager",
        "set -eu",
        "",
        "# The guard. Its end is the end of all that follows.",
        shlex.join(
            [
                *("systemd-run", f"--{manager.kind}", "--quiet", "--collect"),
                f"--unit={names.guard_unit(run)}",
                "--slice=understudy.slice",
                *("sleep", f"{seconds:g}"),
            ]
        ),
        "",
        "# What holds the run together, and what removes its files at the end.",
    ]
    for frame in guard.frame(manager, run):
        lines += _file(f"{manager.unit_dir}/{frame.unit}", _unit_text(frame))
    lines += [f"{systemctl} start {names.clean_unit(run)}", "", "# The instances."]
    to_start = []
    for plan in plans:
        for path, text in plan.derived.files.items():
            lines += _file(path, text)
        if plan.engine is Engine.SYSTEMD_RUN:
            lines.append(shlex.join(plan.systemd_run()))
        else:
            for path, text in plan.derived.units.items():
                lines += _file(f"{manager.unit_dir}/{path}", text)
            to_start.append(plan.to_start)
    if to_start:
        lines.append(shlex.join([*systemctl.split(), "start", *to_start]))
    stop = f"{systemctl} stop {names.guard_unit(run)}"
    if command:
        variables = environment(run, [(plan.request.service, plan.part.ports) for plan in plans])
        assignments = [f"{name}={value}" for name, value in variables.items()]
        member = shlex.join(["env", *assignments, *scope_argv(manager, run, command)])
        lines += ["", "# The command, and the end.", "code=0", f"{member} || code=$?"]
        lines += [stop, 'exit "$code"']
    else:
        lines += ["", f"# The end: {stop}"]
    return "\n".join(lines) + "\n"


def _unit_text(unit: Transient) -> str:
    sections: Mapping[str, list[str]] = {"Unit": [], "Service": []}
    for name, value in unit.properties:
        section = "Unit" if name in _UNIT_SECTION else "Service"
        # In a transient unit a percent sign is one; in a file it begins a specifier.
        sections[section].append(f"{name}={value.replace('%', '%%')}")
    return "".join(
        f"[{section}]\n" + "".join(f"{row}\n" for row in rows)
        for section, rows in sections.items()
        if rows
    )


def _file(path: str, text: str) -> list[str]:
    folder = path.rpartition("/")[0]
    return [
        f"mkdir -p {shlex.quote(folder)}",
        f"cat > {shlex.quote(path)} << '{_END_OF_FILE}'",
        text.removesuffix("\n"),
        _END_OF_FILE,
    ]
