"""What `spawn --dry-run` prints: a shell script that does the same, and runs as it is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from understudy import autogroup, derive, gate, guard, names
from understudy.command import environment, scope_argv
from understudy.manager import Manager, Transient
from understudy.model import Engine
from understudy.plan import Plan
from understudy.run import LIFETIME_S

_UNIT_SECTION = frozenset(
    {"After", "BindsTo", "CollectMode", "Description", "Documentation", "Wants"}
)
_END_OF_FILE = "UNDERSTUDY-END-OF-FILE"
QUOTING = r"""# What nobody else may read is taken from this script's own environment.
variable() {
    printf '%s="' "$1"
    printf %s "$2" | sed 's/[\\"`$]/\\&/g'
    echo '"'
}"""


def script(
    manager: Manager,
    plans: Sequence[Plan],
    command: Sequence[str] = (),
    *,
    lifetime_s: float | None = None,
) -> str:
    """Write the shell script that starts these instances.

    Its guard is no watcher of an owner but a sleep: the run ends with its lifetime, with the
    command, or with the command in the script's last comment. No secret is in it: it takes them
    from its own environment.

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
        *_demands(plans),
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
    denied = derive.bind_rules(plans[0].part.denied)
    frame = guard.frame(manager, run, denied)
    for each in [known for one in frame for known in (*one.known, one)]:
        lines += _file(f"{manager.unit_dir}/{each.unit}", _unit_text(each))
    lines += [f"{systemctl} start {names.clean_unit(run)}", "", "# The instances."]
    to_start = []
    private = [plan for plan in plans if plan.derived.gate is not None]
    for plan in plans:
        for path, text in plan.derived.files.items():
            lines += _file(path, text)
        if plan.derived.secrets:
            lines += _secrets(plan)
        if plan.engine is Engine.SYSTEMD_RUN:
            lines.append(shlex.join(plan.systemd_run()))
        else:
            for path, text in plan.derived.units.items():
                lines += _file(f"{manager.unit_dir}/{path}", text)
            if plan not in private:
                to_start.append(plan.to_start)
    if to_start:
        lines.append(shlex.join([*systemctl.split(), "start", *to_start]))
    stop = f"{systemctl} stop {names.guard_unit(run)}"
    for plan in private:
        lines += _passage(plan, systemctl, stop)
    behind = [plan.derived.unit for plan in plans if plan.request.background]
    if behind:
        lines += [
            "",
            "# In the background: beside other sessions too, where these share (sched(7)).",
        ]
    for unit in behind:
        pid = f"$({systemctl} show --property=MainPID --value {unit})"
        # The kernel takes one each tenth of a second.
        say = f'echo {autogroup.NICE} > "/proc/{pid}/autogroup" && break'
        lines.append(f"for _ in 1 2 3 4 5; do {say}; sleep 0.1; done 2> /dev/null")
    if command:
        variables = environment(run, [(plan.request.service, plan.part.outside) for plan in plans])
        assignments = [f"{name}={value}" for name, value in variables.items()]
        member = shlex.join(["env", *assignments, *scope_argv(manager, run, command)])
        lines += ["", "# The command, and the end.", "code=0", f"{member} || code=$?"]
        lines += [stop, 'exit "$code"']
    else:
        lines += ["", f"# The end: {stop}"]
    return "\n".join(lines) + "\n"


def _passage(plan: Plan, systemctl: str, stop: str) -> list[str]:
    """The lines that take a private instance through its gate, and publish its ports."""
    derived, unit = plan.derived, plan.derived.unit
    assert derived.gate is not None
    waiting = shlex.quote(derived.gate)
    pid_file = shlex.quote(gate.pid_path(names.files_directory(derived.directory)))
    alive = f"if {systemctl} is-failed --quiet {unit}; then {stop}; exit 1; fi; sleep 0.05"
    lines = [
        "",
        f"# {unit} waits at a gate until its network was looked at.",
        f"mkfifo -m 644 {waiting}",
        f"exec 9<> {waiting}",
        f"{systemctl} start --no-block {unit}",
        "pid=0",
        'until [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = sh ]; do',
        f"    {alive}",
        f"    pid=$({systemctl} show --property=MainPID --value {unit})",
        "done",
        'if [ "$(readlink "/proc/$pid/ns/net")" = "$(readlink /proc/self/ns/net)" ]; then',
        f"    echo '{unit} is not isolated: it was not run' >&2",
        f"    {stop}",
        "    exit 1",
        "fi",
        f'echo "{gate.PID_VARIABLE}=$pid" > {pid_file}',
    ]
    if plan.request.let_in:
        numbers = ", ".join(map(str, plan.request.let_in))
        lines.append(f"# No script can let in what it uses (ports {numbers}): that is spawn's.")
    lines += ["echo >&9", "exec 9>&-"]
    if derived.proxies:
        lines += ["# Its ports are published when it listens inside: proc_net_tcp(5), state 0A."]
    for name in derived.proxies:
        listens = f"':{plan.part.ports[name]:04X} [0-9A-F]+:0000 0A '"
        lines += [
            f'until grep -qsE {listens} "/proc/$pid/net/tcp" "/proc/$pid/net/tcp6"; do',
            f"    {alive}",
            "done",
        ]
    if derived.proxies:
        lines.append(shlex.join([*systemctl.split(), "start", *derived.proxies.values()]))
    return lines


def _unit_text(unit: Transient) -> str:
    own = "Slice" if unit.unit.endswith(".slice") else "Service"
    sections: Mapping[str, list[str]] = {"Unit": [], own: []}
    for name, value in unit.properties:
        section = "Unit" if name in _UNIT_SECTION else own
        # In a transient unit a percent sign is one; in a file it begins a specifier.
        sections[section].append(f"{name}={value.replace('%', '%%')}")
    return "".join(
        f"[{section}]\n" + "".join(f"{row}\n" for row in rows)
        for section, rows in sections.items()
        if rows
    )


def _demands(plans: Sequence[Plan]) -> list[str]:
    secrets = dict.fromkeys(name for plan in plans for name in plan.derived.secrets)
    return [QUOTING, *(f': "${{{name}?}}"' for name in secrets), ""] if secrets else []


def _secrets(plan: Plan) -> list[str]:
    path = names.secrets_path(names.files_directory(plan.derived.directory))
    return [
        f"mkdir -p {shlex.quote(path.rpartition('/')[0])}",
        "(",
        "    umask 077; set -C",
        "    {",
        *(f'        variable {name} "${name}"' for name in plan.derived.secrets),
        f"    }} > {shlex.quote(path)}",
        ")",
    ]


def _file(path: str, text: str) -> list[str]:
    folder = path.rpartition("/")[0]
    return [
        f"mkdir -p {shlex.quote(folder)}",
        f"cat > {shlex.quote(path)} << '{_END_OF_FILE}'",
        text.removesuffix("\n"),
        _END_OF_FILE,
    ]
