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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from understudy import names, unitfile
from understudy.errors import InstanceError
from understudy.listing import Found
from understudy.manager import Manager, UnitStatus
from understudy.ports import cgroups
from understudy.procfs import CAPABILITIES, Process
from understudy.seen import CHECKERS, Look, bounding_set

UNSEEN = "cannot be seen by this user"
"""The reason where the kernel does not let the caller look."""

CONCESSIONS = ("50-", "60-")
"""How the drop-ins begin that say what the manager cannot do; they ask for nothing themselves."""

PRECEDENCE = ("OOMScoreAdjust", "CPUWeight", "IOWeight", "MemoryMin", "MemoryLow", "Nice")
"""By what one unit comes before others where something is short."""

_OFF: Final = frozenset({"no", "false", "off", "0", "n", "f"})
_ON: Final = frozenset({"yes", "true", "on", "1", "y", "t"})
_SWITCH = re.compile(r"(Private|Protect|Restrict)\w+|LockPersonality|NoNewPrivileges|DynamicUser")
_FILE_HEADER = re.compile(r"# (/\S.*\.(?:service|slice|conf))")


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


class File(NamedTuple):
    """One file of a unit.

    Attributes:
        name: Its name, without the folder: ``50-user.conf``.
        lines: Those of its ``[Service]`` section, or of its ``[Slice]`` section.
    """

    name: str
    lines: list[unitfile.Line]


def not_in_force(manager: Manager, one: Found) -> list[Effect]:
    """Say which settings of an instance, and of the production it copies, are not in force.

    Args:
        manager: The manager that it runs on.
        one: The instance; its main process must run.

    Returns:
        First what the instance's drop-ins took back of production's settings, then what its
        merged unit sets and its main process does not show; each in the order of the unit; then
        the same of the slice that keeps it from production's ports. What the caller may not look
        at is among them, with the reason `UNSEEN`.

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
    files = read_files(manager.cat(one.unit))
    try:
        look = _look(manager, one.unit, one.status)
        effects = [*taken_back(files), *not_shown(look, _wanted(files))]
        guarded = names.guarded_slice_unit(one.run)
        if look.cgroup.parent.name == guarded:
            # What a slice sets holds for all that is in it, and shows at the slice alone. Of a
            # transient unit's list systemd 252 writes each entry with all that are before it.
            above = replace(look, cgroup=look.cgroup.parent)
            wanted = _wanted(read_files(manager.cat(guarded)))
            effects += not_shown(above, {key: [*dict.fromkeys(wanted[key])] for key in wanted})
        return effects
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise InstanceError(
            f"Cannot look at '{one.unit}': its main process ({pid}) is gone, or hidden by hidepid=",
            unit=one.unit,
            hint=f"understudy logs {one.run}-{one.number}",
        ) from exc


def precedence_not_in_force(manager: Manager, unit: str) -> list[Effect]:
    """Say which of the settings by which production comes before tests are not in force.

    Args:
        manager: The manager that it runs on.
        unit: Production's unit; its main process must run.

    Raises:
        FileNotFoundError: The process is gone, or hidden from the caller.
        ProcessLookupError: It is gone.
        ManagerError: The manager does not know it.
    """
    merged = settings(_lines(read_files(manager.cat(unit))))
    look = _look(manager, unit, manager.status([unit])[unit])
    return not_shown(look, {name: merged[name] for name in PRECEDENCE if name in merged})


def read_files(text: str) -> list[File]:
    """Take a unit's text apart.

    Args:
        text: As `Manager.cat` gives it: each file under a line with its path.
    """
    texts: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if header := _FILE_HEADER.fullmatch(line):
            texts.append((Path(header[1]).name, []))
        elif texts:
            texts[-1][1].append(line)
    return [
        File(
            name,
            [one for one in unitfile.parse("\n".join(text)) if one.section in ("Service", "Slice")],
        )
        for name, text in texts
    ]


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
    allowed = bounding_set(assigned)
    if len(allowed) == len(CAPABILITIES):
        merged.pop("CapabilityBoundingSet", None)
    else:
        merged["CapabilityBoundingSet"] = [" ".join(f"CAP_{name.upper()}" for name in allowed)]
    return merged


def taken_back(files: Sequence[File]) -> list[Effect]:
    """What production's unit sets and an instance's drop-ins undid or changed.

    Args:
        files: The instance's, in the order in which they are read; production's is the first.
    """
    final = settings(_lines(files))
    effects = []
    for name, values in settings(_lines(files[:1])).items():
        now = final.get(name, [])
        if name not in CHECKERS or set(values) <= set(now) or _is_off(name, values):
            continue
        if name in ("User", "Group") and _is_on(final.get("DynamicUser", [])):
            continue  # an instance has a user of its own by design
        changed = now and name not in unitfile.ACCUMULATING
        how = f"makes it '{now[0]}'" if changed else "undoes it"
        setter = _setter(files[1:], name)
        effects.append(Effect(setting=_setting(name, values), reason=f"{setter} {how}"))
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
        if checker is None or _is_off(name, values):
            continue
        try:
            reason = checker(look, values)
        except PermissionError:
            reason = UNSEEN
        if reason:
            effects.append(Effect(setting=_setting(name, values), reason=reason))
    return effects


def _setter(drop_ins: Sequence[File], name: str) -> str:
    """The drop-in that settled a directive: of a list the last that emptied it, if one did."""
    setters = [file for file in drop_ins if any(line.name == name for line in file.lines)]
    if name in unitfile.ACCUMULATING:
        empty = [file for file in setters if _empties(file, name)]
        setters = empty or setters
    return setters[-1].name


def _empties(file: File, name: str) -> bool:
    return any(line.name == name and not line.value for line in file.lines)


def _wanted(files: Sequence[File]) -> dict[str, list[str]]:
    """What is set in the end, without what nobody but the manager's own drop-in sets."""
    asking = [file for file in files if not file.name.startswith(CONCESSIONS)]
    asked_for = {line.name for line in _lines(asking)}
    return {name: values for name, values in settings(_lines(files)).items() if name in asked_for}


def _lines(files: Iterable[File]) -> list[unitfile.Line]:
    return [line for file in files for line in file.lines]


def _setting(name: str, values: Sequence[str]) -> str:
    return f"{name}={' '.join(values)}"


def _is_off(name: str, values: Sequence[str]) -> bool:
    return _SWITCH.fullmatch(name) is not None and values[0].lower() in _OFF


def _is_on(values: Sequence[str]) -> bool:
    return len(values) == 1 and values[0].lower() in _ON


def _look(manager: Manager, unit: str, status: UnitStatus) -> Look:
    process = Process(status.main_pid)
    return Look(
        process=process,
        manager=_starter(process, status.control_group),
        kind=manager.kind,
        cgroup=Path(f"{cgroups.mount()}{status.control_group}"),
        specifiers=_specifiers(unit, str(manager.runtime_dir)),
    )


def _starter(process: Process, control_group: str) -> Process:
    """The process that started a unit: the first one above that is not in its control group."""
    above = process
    while above.parent and _in_group(above, control_group):
        above = Process(above.parent)
    # Nothing above is in sight from within another PID namespace.
    return Process(os.getpid()) if _in_group(above, control_group) else above


def _in_group(process: Process, control_group: str) -> bool:
    return f"{process.cgroup}/".startswith(f"{control_group}/")


def _specifiers(unit: str, runtime_dir: str) -> dict[str, str]:
    stem = unit.removesuffix(".service")
    return {
        **{"%": "%", "t": runtime_dir, "n": unit, "N": stem},
        **{"p": stem.partition("@")[0], "i": stem.partition("@")[2], "I": stem.partition("@")[2]},
        **({"S": "/var/lib", "C": "/var/cache", "L": "/var/log"} if os.geteuid() == 0 else {}),
    }
