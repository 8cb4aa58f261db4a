"""Try a service definition: read it, derive it, run two of it at once, and report what is wrong.

Two, because what a definition forgets shows when there is a second one: a port that is not told,
a file that both write, a name that both take. docs/check.md lists the rules.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from understudy import effects, names, ports, services, traces, unitfile
from understudy.errors import (
    DefinitionError,
    InstanceError,
    ManagerError,
    PortError,
    ReadyTimeoutError,
    RenderError,
    RunError,
    StartError,
    UsageError,
)
from understudy.instance import Instance
from understudy.manager import Manager, bus_variables
from understudy.model import Derived, ManagerKind, Service
from understudy.plan import Plan
from understudy.procfs import Process
from understudy.run import Run

COPIES: Final = 2
TIMEOUT_S: Final = 30.0
GONE_TIMEOUT_S: Final = 2.0
FILES_SHOWN: Final = 5

DIRECTORIES: Final[Mapping[str, str]] = {
    "CacheDirectory": "/var/cache",
    "ConfigurationDirectory": "/etc",
    "LogsDirectory": "/var/log",
    "RuntimeDirectory": "/run",
    "StateDirectory": "/var/lib",
}
"""Where the system manager makes a service's own folders (systemd.exec(5), table 2)."""


STATE: Final = tuple(
    f"/var/{name}/"
    for name in ("cache", "db", "games", "lib", "lock", "log", "mail", "run", "spool")
)
"""Where what a service writes lies (hier(7)); /var/www, say, is read."""


class Level(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with a definition.

    Attributes:
        level: Whether instances of it can be relied upon (a warning), or not (an error).
        rule: The rule's id, as in docs/check.md.
        text: What was seen.
        hint: What to write or do instead; "" where there is nothing to say.
        log: The last lines that the service wrote, where they explain it.
    """

    level: Level
    rule: str
    text: str
    hint: str = ""
    log: str = ""

    def to_json(self) -> dict[str, object]:
        """The documented shape (docs/check.md); keys are only ever added."""
        return {
            "level": self.level.value,
            "rule": self.rule,
            "text": self.text,
            "hint": self.hint,
            "log": self.log,
        }


def check(
    folder: Path,
    manager: Manager,
    *,
    values: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> list[Finding]:
    """Try a definition, with two instances in a run of its own that is gone afterwards.

    Args:
        folder: The definition's folder.
        manager: Where to run them.
        values: Values that override the definition's (``--set``).
        timeout_s: Seconds until both must be ready.

    Returns:
        What was found, in the order in which it was; empty if all is well.

    Raises:
        ManagerError: The manager cannot be reached, or refuses the run itself.
        PortError: The range of ports is exhausted or wrong.
    """
    run = Run(manager=manager, units=folder.resolve().parent, timeout_s=timeout_s)
    try:
        service = services.load(folder.resolve(), str(folder.parent))
        request = run.request(service, values=values)
        plan = run.plan([request])[0]
    except (DefinitionError, RenderError, UsageError) as exc:
        return [_error("definition", exc.message, exc.hint or "")]
    found = [*_verified(plan.derived, manager), *_production_paths(service, plan.derived)]
    places = _places(plan.derived)
    runs = str(Path(plan.derived.directory).parents[1])
    before = traces.look(places, without={runs})
    owners: set[int] = set()
    run.start()
    try:
        instances = run.spawn_many([request] * COPIES)
        owners = _owners(instances)
        found += _sockets(service, instances)
        found += _stopped(manager, plan, instances[0])
    except (InstanceError, PortError) as exc:
        found.append(_did_not_start(exc))
    finally:
        found += _ended(manager, run)
    changed = traces.changes(before, traces.look(places, without={runs}), owners=owners)
    return [*found, *_left_files(changed)]


def _error(rule: str, text: str, hint: str = "", log: str = "") -> Finding:
    return Finding(level=Level.ERROR, rule=rule, text=text, hint=hint, log=log)


def _warning(rule: str, text: str, hint: str = "") -> Finding:
    return Finding(level=Level.WARNING, rule=rule, text=text, hint=hint)


# What the text says, before anything runs.


def _verified(derived: Derived, manager: Manager) -> Iterator[Finding]:
    """What systemd itself says of the instance's files (systemd-analyze(1), verify)."""
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    if manager.kind is ManagerKind.USER:
        command.append("--user")
    with tempfile.TemporaryDirectory(prefix="understudy-check-") as folder:
        for name, text in derived.units.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        units = [unit for unit in (derived.unit, derived.socket) if unit]
        done = subprocess.run(
            [*command, *(f"{folder}/{unit}" for unit in units)],
            env={**os.environ, **bus_variables(manager)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
        )
        for line in dict.fromkeys(done.stderr.splitlines()):
            # Its own files are only written when it is started.
            if line and derived.directory not in line:
                yield _error("verify", line.replace(f"{folder}/", ""))


def _production_paths(service: Service, derived: Derived) -> Iterator[Finding]:
    """Where the instance still names what is production's own."""
    base = effects.settings(unitfile.parse(derived.units[derived.unit]))
    # What stands before the command in a private network says nothing of production.
    own = [text for name, text in derived.units.items() if not name.endswith("/95-private.conf")]
    merged = effects.settings(unitfile.parse("\n".join(own)))
    folder = merged.get("WorkingDirectory", [""])[-1]
    bound = {file.over for file in service.files}
    telling = ("ExecStart", "Environment", "EnvironmentFile", "WorkingDirectory")
    texts = {f"{name}={value}": value for name in telling for value in merged.get(name, [])}
    texts |= {f"file '{Path(path).name}'": text for path, text in derived.files.items()}
    for path in _own_paths(base):
        mention = re.compile(rf"(?<![\w./-]){re.escape(path)}(?![\w.-])")
        if folder and path.startswith(f"{folder}/"):
            continue  # where the definition says that it is read from
        for where, text in texts.items():
            if path not in bound and mention.search(text):
                reads = path.startswith("/etc/")
                yield (_warning if reads else _error)(
                    "production-path",
                    f"an instance uses production's own '{path}': {where}",
                    "give it a file of its own: [instance.files], and instance.conf to name it"
                    if reads
                    else "leave it relative: it lands in the instance's own directory",
                )
                break
    for name in DIRECTORIES:
        if shared := set(base.get(name, [])) & set(merged.get(name, [])):
            yield _error(
                "production-path",
                f"an instance uses production's {name}={' '.join(sorted(shared))}",
                "leave it out of instance.conf; what is relative lands in its own directory",
            )


def _own_paths(base: Mapping[str, Sequence[str]]) -> list[str]:
    """What production has for itself: its folders, and the configuration it is started with."""
    paths = [
        f"{root}/{word.partition(':')[0]}"
        for name, root in DIRECTORIES.items()
        for value in base.get(name, [])
        for word in value.split()
    ]
    arguments = [word for value in base.get("ExecStart", []) for word in unitfile.split(value)[1:]]
    files = [value.removeprefix("-") for value in base.get("EnvironmentFile", [])]
    words = [word for word in (*arguments, *files) if word.startswith(("/etc/", *STATE))]
    return list(dict.fromkeys(paths + words))


# What two of them do.


def _did_not_start(error: InstanceError | PortError) -> Finding:
    hint = error.hint or ""
    if isinstance(error, ReadyTimeoutError):
        return _error("ready", error.message, hint, error.journal)
    if isinstance(error, StartError):
        return _error("start", error.message, hint, error.journal)
    return _error("port", error.message, hint or "does it listen on the port that it is told?")


def _owners(instances: Iterable[Instance]) -> set[int]:
    """The user IDs that their main processes run under."""
    owners = set()
    for one in instances:
        with contextlib.suppress(OSError):  # it has died
            owners.add(int(Process(one.pid).status["Uid"].split()[1]))
    return owners


def _sockets(service: Service, instances: Sequence[Instance]) -> Iterator[Finding]:
    first = next((one for one in instances if one.undeclared), None)
    for socket in first.undeclared if first else ():
        yield _error(
            "undeclared-socket",
            f"an instance listens on {socket}, which [ports] does not declare",
            "declare it in [ports] with the way to tell it its number, or switch it off",
        )
    group = instances[0].status().control_group
    holds = ports.check(
        service.ports.values(),
        instances[0].ports,
        ports.snapshot(),
        ids=ports.cgroup_ids(group),
        inodes=ports.socket_inodes(group),
    ).holds
    for name, hold in holds.items():
        if hold is ports.Hold.MISSING and service.ports[name].optional:
            yield _warning(
                "optional-port",
                f"port '{name}' is declared optional, and an instance did not open it",
                "nothing to do if this version of the service has no such listener",
            )


def _stopped(manager: Manager, plan: Plan, instance: Instance) -> Iterator[Finding]:
    """Stop one of them as a run's end would, and see how it takes that."""
    status = instance.status()
    if status.active_state != "active":
        yield _error(
            "start",
            f"it was ready, and then it died ({status.result})",
            log=instance.journal(lines=20),
        )
        return
    socket = names.socket_unit(instance.service, instance.run, instance.number)
    limit_s = plan.part.stop_timeout_s
    began = time.monotonic()
    manager.stop([socket if plan.derived.socket else instance.unit], timeout_s=limit_s + TIMEOUT_S)
    took_s = time.monotonic() - began
    status = instance.status()
    if status.result == "timeout":
        yield _error(
            "slow-stop",
            f"it was killed because it had not stopped {limit_s:g} s after the stop signal",
            "handle SIGTERM, or name the signal that it handles: KillSignal=SIGINT",
        )
    elif took_s > limit_s / 2:
        yield _warning(
            "slow-stop",
            f"it took {took_s:.1f} s to stop, and would have been killed after {limit_s:g} s",
        )
    if status.result == "exit-code":
        yield _warning(
            "stop-status",
            f"it ended with exit code {status.exit_status} when it was stopped",
            f"end with 0, or say that this is success: SuccessExitStatus={status.exit_status}",
        )
    elif status.result in ("signal", "core-dump"):
        yield _error("stop-status", f"it died of signal {status.exit_status} when it was stopped")


# What is left.


def _ended(manager: Manager, run: Run) -> Iterator[Finding]:
    """End the run, and see that it is gone."""
    try:
        run.stop()
    except (ManagerError, RunError) as exc:
        yield _error("left-behind", exc.message, exc.hint or "")
    for unit in _units_left(manager, run.id):
        yield _error("left-behind", f"unit {unit} is left after the run's end")
    folder = Path(names.run_directory(str(manager.runtime_dir), run.id))
    if folder.exists():
        yield _error("left-behind", f"'{folder}' is left after the run's end")


def _units_left(manager: Manager, run: str) -> list[str]:
    """The run's units that are still loaded; systemd forgets units a moment after their end."""
    frame = [names.guard_unit(run), names.slice_unit(run), names.guarded_slice_unit(run)]
    patterns = [f"understudy-*@{run}-*", *frame]
    deadline = time.monotonic() + GONE_TIMEOUT_S
    pause_s = 0.001
    while (left := sorted(manager.list(patterns))) and time.monotonic() < deadline:
        time.sleep(pause_s)
        pause_s *= 2
    return left


def _places(derived: Derived) -> list[Path]:
    """The paths that its unit names, other than its own: where it could leave something."""
    base = effects.settings(unitfile.parse(derived.units[derived.unit]))
    merged = effects.settings(unitfile.parse("\n".join(derived.units.values())))
    named = [*_own_paths(base), *merged.get("WorkingDirectory", [])]
    for value in merged.get("Environment", []):
        named += [word.partition("=")[2] for word in unitfile.split(value)]
    for value in merged.get("ReadWritePaths", []):
        named += [word.lstrip("-+") for word in unitfile.split(value)]
    paths = {Path(os.path.realpath(text)) for text in named if text.startswith("/")}
    own = Path(derived.directory).parent
    # Below "/" and "/usr" there is nothing that says anything of this service.
    return sorted(path for path in paths if not path.is_relative_to(own) and len(path.parts) > 2)


def _left_files(changed: Sequence[str]) -> Iterator[Finding]:
    if changed:
        more = len(changed) - FILES_SHOWN
        shown = ", ".join(changed[:FILES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        yield _warning(
            "files-left",
            f"files outside an instance's own directory changed while two of them ran: {shown}",
            "write relative to the working directory, or to {{ directory }} by name",
        )
