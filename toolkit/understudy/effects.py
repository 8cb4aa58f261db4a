"""What an instance's unit says and its process does not show.

systemd ignores many settings without a word: on a user manager, without a controller, without
BPF (systemd.exec(5): "if … not available, this setting has no effect"). So no property is taken
for an effect here: for each setting that protects, limits or gives rights the running main process
is looked at, by the kernel's own account of it.

A setting without a checker is not reported; docs/not-in-force.md lists those that have one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from understudy import unitfile
from understudy.errors import InstanceError
from understudy.listing import Found
from understudy.manager import Manager
from understudy.ports import cgroups
from understudy.procfs import CAPABILITIES, Process
from understudy.seen import CHECKERS, Look, bounding_set

UNSEEN = "cannot be seen by this user"
"""The reason where the kernel does not let the caller look."""

_OFF: Final = frozenset({"no", "false", "off", "0", "n", "f"})
_ON: Final = frozenset({"yes", "true", "on", "1", "y", "t"})
_FILE_HEADER = re.compile(r"# (/\S.*\.(?:service|conf))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A setting that is not in force.

    Attributes:
        setting: As a line of a unit file: ``ProtectSystem=strict``.
        reason: What was seen instead, or which drop-in took it back.
    """

    setting: str
    reason: str

    def to_json(self) -> dict[str, object]:
        """The documented shape (docs/not-in-force.md); keys are only ever added."""
        return {"setting": self.setting, "reason": self.reason}


def not_in_force(manager: Manager, one: Found) -> list[Effect]:
    """Say which settings of an instance, and of the production it copies, are not in force.

    Args:
        manager: The manager that it runs on.
        one: The instance; its main process must run.

    Returns:
        First what the instance's drop-ins took back of production's settings, then what its
        merged unit sets and its main process does not show; each in the order of the unit. What
        the caller may not look at is among them, with the reason `UNSEEN`.

    Raises:
        InstanceError: Its main process does not run.
        ManagerError: The manager does not know it.
    """
    pid = one.status.main_pid
    if not pid:
        raise InstanceError(
            f"Cannot look at '{one.unit}': its main process does not run ({one.state})",
            unit=one.unit,
            hint=f"understudy logs {one.run}-{one.number}",
        )
    files = _files(manager.cat(one.unit))
    process = Process(pid)
    look = Look(
        process=process,
        manager=_starter(process, one.status.control_group),
        kind=manager.kind,
        cgroup=Path(f"{cgroups.mount()}{one.status.control_group}"),
        specifiers=_specifiers(one, str(manager.runtime_dir)),
    )
    try:
        return [*taken_back(files), *not_shown(look, settings(_lines(files)))]
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise InstanceError(
            f"Cannot look at '{one.unit}': its main process ({pid}) is gone, or hidden by hidepid=",
            unit=one.unit,
            hint=f"understudy logs {one.run}-{one.number}",
        ) from exc


def settings(lines: Iterable[unitfile.Line]) -> dict[str, list[str]]:
    """What is set after all assignments: the values of each directive, in order.

    An empty ``CapabilityBoundingSet=`` is a value, "no capability at all"; a lone ``~`` undoes it.

    Args:
        lines: Those of a unit's ``[Service]`` section, its drop-ins last.
    """
    lines = list(lines)
    merged: dict[str, list[str]] = {}
    for name, value in unitfile.effective(lines):
        merged.setdefault(name, []).append(value)
    assigned = [line.value for line in lines if line.name == "CapabilityBoundingSet"]
    if assigned:
        allowed = bounding_set(assigned)
        merged["CapabilityBoundingSet"] = [" ".join(f"CAP_{name.upper()}" for name in allowed)]
        if len(allowed) == len(CAPABILITIES):
            del merged["CapabilityBoundingSet"]
    return merged


def taken_back(files: Sequence[tuple[str, list[unitfile.Line]]]) -> list[Effect]:
    """What production's unit sets and an instance's drop-ins undid or changed.

    Args:
        files: The name of each file and its ``[Service]`` lines; production's is the first.
    """
    final = settings(_lines(files))
    effects = []
    for name, values in settings(_lines(files[:1])).items():
        now = final.get(name, [])
        if name not in CHECKERS or set(values) <= set(now) or _is_off(values):
            continue
        if name in ("User", "Group") and _is_on(final.get("DynamicUser", [])):
            continue  # an instance has a user of its own by design
        by = next(
            file for file, lines in reversed(files) if any(line.name == name for line in lines)
        )
        how = (
            f"makes it '{' '.join(now)}'"
            if now and name not in unitfile.ACCUMULATING
            else "undoes it"
        )
        effects.append(Effect(setting=_setting(name, values), reason=f"{by} {how}"))
    return effects


def not_shown(look: Look, merged: Mapping[str, Sequence[str]]) -> list[Effect]:
    """What a unit sets and its process does not show.

    Args:
        look: Where to look.
        merged: The values of each directive, as `settings` gives them.

    Raises:
        FileNotFoundError: The process is gone, or hidden from the caller.
        ProcessLookupError: It is gone.
    """
    effects = []
    for name, values in merged.items():
        checker = CHECKERS.get(name)
        if checker is None or _is_off(values):
            continue
        try:
            reason = checker(look, values)
        except PermissionError:
            reason = UNSEEN
        if reason:
            effects.append(Effect(setting=_setting(name, values), reason=reason))
    return effects


# Where to look, and what the unit says.


def _files(text: str) -> list[tuple[str, list[unitfile.Line]]]:
    """Take ``systemctl cat``'s output apart: each file's name and its ``[Service]`` lines."""
    files: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if header := _FILE_HEADER.fullmatch(line):
            files.append((Path(header[1]).name, []))
        elif files:
            files[-1][1].append(line)
    return [
        (name, [line for line in unitfile.parse("\n".join(lines)) if line.section == "Service"])
        for name, lines in files
    ]


def _lines(files: Iterable[tuple[str, list[unitfile.Line]]]) -> list[unitfile.Line]:
    return [line for _name, lines in files for line in lines]


def _setting(name: str, values: Sequence[str]) -> str:
    return f"{name}={' '.join(values)}"


def _is_off(values: Sequence[str]) -> bool:
    return len(values) == 1 and values[0].lower() in _OFF


def _is_on(values: Sequence[str]) -> bool:
    return len(values) == 1 and values[0].lower() in _ON


def _starter(process: Process, control_group: str) -> Process:
    """The process that started a unit: the first one above that is not in its control group."""
    above = process
    while above.parent and _in_group(above, control_group):
        above = Process(above.parent)
    # Nothing above is in sight from within another PID namespace.
    return Process(os.getpid()) if _in_group(above, control_group) else above


def _in_group(process: Process, control_group: str) -> bool:
    return f"{process.cgroup}/".startswith(f"{control_group}/")


def _specifiers(one: Found, runtime_dir: str) -> dict[str, str]:
    stem = one.unit.removesuffix(".service")
    return {
        **{"%": "%", "t": runtime_dir, "n": one.unit, "N": stem},
        **{"p": stem.partition("@")[0], "i": stem.partition("@")[2], "I": stem.partition("@")[2]},
        **({"S": "/var/lib", "C": "/var/cache", "L": "/var/log"} if os.geteuid() == 0 else {}),
    }
