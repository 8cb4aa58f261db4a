"""How the effect of each directive is seen: at the process, by the kernel's own account of it.

One small checker for each kind of setting, and the table `CHECKERS` of which directive has which.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from understudy import autogroup, bpf, unitfile
from understudy.model import ManagerKind
from understudy.procfs import CAPABILITIES, Process

DYNAMIC_USERS: Final = range(61184, 65520)
"""The user IDs of ``DynamicUser=`` (systemd: UIDS-GIDS.md)."""

_POLICIES: Final = {
    "other": os.SCHED_OTHER,
    "batch": os.SCHED_BATCH,
    "idle": os.SCHED_IDLE,
    "fifo": os.SCHED_FIFO,
    "rr": os.SCHED_RR,
}
_IO_CLASSES: Final = {"none": 0, "realtime": 1, "best-effort": 2, "idle": 3}

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTPE]?)B?")
_SPECIFIER = re.compile(r"%(.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Where a checker looks.

    Attributes:
        process: The instance's main process.
        manager: The manager that started it, to compare with.
        kind: Which manager that is.
        cgroup: The folder of the unit's control group.
        specifiers: What ``%t`` and the like mean, by letter.
    """

    process: Process
    manager: Process
    kind: ManagerKind
    cgroup: Path
    specifiers: Mapping[str, str]


Checker: TypeAlias = Callable[[Look, Sequence[str]], str]
"""Takes where to look and what is assigned; gives what is wrong, or "" if it is in force."""


def _expand(look: Look, text: str) -> str:
    return _SPECIFIER.sub(lambda match: look.specifiers.get(match[1], match[0]), text)


def _no_new_privileges(look: Look, _values: Sequence[str]) -> str:
    return "" if look.process.status["NoNewPrivs"] == "1" else "the process has NoNewPrivs: 0"


def _seccomp(look: Look, _values: Sequence[str]) -> str:
    """Filters cannot be told apart from outside; at least one must have come with the unit."""
    own = int(look.process.status.get("Seccomp_filters", 0))
    inherited = int(look.manager.status.get("Seccomp_filters", 0))
    return "" if own > inherited else "the process has no seccomp filter of its own"


def _namespace(kind: str, what: str) -> Checker:
    def check(look: Look, _values: Sequence[str]) -> str:
        shared = look.process.namespace(kind) == look.manager.namespace(kind)
        return f"the process shares the manager's {what}" if shared else ""

    return check


def _private(*places: str) -> Checker:
    """The places are something else to the process than to its manager."""

    def check(look: Look, _values: Sequence[str]) -> str:
        for place in places:
            if os.path.lexists(place) and _same(look, place):
                return f"'{place}' is the manager's own"
        return ""

    return check


def _same(look: Look, place: str) -> bool:
    path = os.path.realpath(place)
    return look.process.mounts.identity(path) == look.manager.mounts.identity(path)


def _read_only(look: Look, places: Iterable[str]) -> str:
    for place in places:
        if os.path.lexists(place) and not look.process.mounts.at(os.path.realpath(place)).read_only:
            return f"'{place}' is writable"
    return ""


def _protect_system(look: Look, values: Sequence[str]) -> str:
    places = {"strict": ["/", "/usr"], "full": ["/usr", "/etc"]}
    return _read_only(look, places.get(values[0], ["/usr"]))


def _protect_home(look: Look, values: Sequence[str]) -> str:
    homes = ("/home", "/root", "/run/user")
    return _read_only(look, homes) if values[0] == "read-only" else _private(*homes)(look, values)


def _protect_control_groups(look: Look, values: Sequence[str]) -> str:
    if values[0] == "private":
        return _namespace("cgroup", "cgroup namespace")(look, values)
    return _read_only(look, ["/sys/fs/cgroup"])


def _protect_kernel_tunables(look: Look, _values: Sequence[str]) -> str:
    # Where /proc shows processes alone it has no sys.
    return "" if _proc_subset(look, ["pid"]) == "" else _read_only(look, ["/proc/sys"])


def _protect_proc(look: Look, values: Sequence[str]) -> str:
    number = {"noaccess": "1", "invisible": "2", "ptraceable": "4"}.get(values[0])
    if number is None:  # "default" hides nothing
        return ""
    options = look.process.mounts.at("/proc").super_options
    hidden = options & {f"hidepid={values[0]}", f"hidepid={number}"}
    return "" if hidden else "/proc shows the processes of all users"


def _proc_subset(look: Look, values: Sequence[str]) -> str:
    if values[0] != "pid" or "subset=pid" in look.process.mounts.at("/proc").super_options:
        return ""
    return "/proc shows more than processes"


def _read_only_paths(look: Look, values: Sequence[str]) -> str:
    return _read_only(look, _paths(look, values))


def _inaccessible_paths(look: Look, values: Sequence[str]) -> str:
    return _private(*_paths(look, values))(look, values)


def _temporary_file_system(look: Look, values: Sequence[str]) -> str:
    for path in _paths(look, values):
        mount = look.process.mounts.at(os.path.realpath(path))
        if mount.kind != "tmpfs" or _same(look, path):
            return f"'{path}' is not a tmpfs of its own"
    return ""


def _bind_paths(look: Look, values: Sequence[str]) -> str:
    for target in _bound(look, values):
        path = os.path.realpath(target)
        if look.process.mounts.at(path).point != path:
            return f"nothing is bound over '{target}'"
    return ""


def _bind_read_only_paths(look: Look, values: Sequence[str]) -> str:
    return _bind_paths(look, values) or _read_only(look, _bound(look, values))


def _bound(look: Look, values: Sequence[str]) -> list[str]:
    """Where ``SOURCE[:TARGET[:OPTIONS]]`` binds to; without what may be missing and is."""
    targets = []
    for word in (word for value in values for word in _words(look, value)):
        source, _, rest = word.removeprefix("-").partition(":")
        if os.path.lexists(source) or not word.startswith("-"):
            targets.append(rest.partition(":")[0] or source)
    return targets


def _paths(look: Look, values: Sequence[str]) -> list[str]:
    """The paths of a list such as ``-/srv +/opt:ro``, without prefixes and options."""
    words = [word for value in values for word in _words(look, value)]
    return [word.lstrip("-+").partition(":")[0] for word in words]


def _words(look: Look, value: str) -> list[str]:
    return unitfile.split(_expand(look, value))


def bounding_set(values: Iterable[str]) -> list[str]:
    """The capabilities that ``CapabilityBoundingSet=`` leaves, after all of its assignments.

    An empty one empties it; ``~`` takes away (systemd.exec(5)).
    """
    everything = set(CAPABILITIES)
    allowed = everything
    for value in values:
        named = {word.lower().removeprefix("cap_") for word in value.removeprefix("~").split()}
        inverted = value.startswith("~")
        if not named or allowed == everything:
            allowed = everything - named if inverted else named
        else:
            allowed = allowed - named if inverted else allowed | named
    return [name for name in CAPABILITIES if name in allowed]


def _capability_bounding_set(look: Look, values: Sequence[str]) -> str:
    more = look.process.capabilities("CapBnd") - set(bounding_set(values))
    return f"the process can still get {_named(more)}" if more else ""


def _without(*names: str) -> Checker:
    """The process can never get these capabilities."""

    def check(look: Look, _values: Sequence[str]) -> str:
        more = look.process.capabilities("CapBnd") & set(names)
        return f"the process can still get {_named(more)}" if more else ""

    return check


def _ambient_capabilities(look: Look, values: Sequence[str]) -> str:
    wanted = {word.lower().removeprefix("cap_") for value in values for word in value.split()}
    missing = wanted - look.process.capabilities("CapAmb")
    return f"the process lacks {_named(missing)}" if missing else ""


def _named(capabilities: Iterable[str]) -> str:
    names = [f"CAP_{name.upper()}" for name in CAPABILITIES if name in set(capabilities)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _user(look: Look, values: Sequence[str]) -> str:
    uid = int(look.process.status["Uid"].split()[1])
    name = _expand(look, values[0])
    try:
        wanted = int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:  # a dynamic user whom this host's name service does not know
        return "" if uid in DYNAMIC_USERS else f"the process runs as user {uid}"
    return "" if uid == wanted else f"the process runs as user {uid}"


def _dynamic_user(look: Look, _values: Sequence[str]) -> str:
    uid = int(look.process.status["Uid"].split()[1])
    starter = int(look.manager.status["Uid"].split()[1])
    # A static user of its name is used where there is one, so another one is all that is certain.
    return f"the process runs as its manager's user {uid}" if uid == starter else ""


def _group(look: Look, values: Sequence[str]) -> str:
    gid = look.process.status["Gid"].split()[1]
    return "" if gid in _group_ids(look, values) else f"the process runs in group {gid}"


def _supplementary_groups(look: Look, values: Sequence[str]) -> str:
    missing = _group_ids(look, values) - set(look.process.status["Groups"].split())
    return f"the process is not in group {', '.join(sorted(missing))}" if missing else ""


def _group_ids(look: Look, values: Sequence[str]) -> set[str]:
    names = [word for value in values for word in _words(look, value)]
    return {name if name.isdecimal() else _group_id(name) for name in names}


def _group_id(name: str) -> str:
    try:
        return str(grp.getgrnam(name).gr_gid)
    except KeyError:
        return name


def _umask(look: Look, values: Sequence[str]) -> str:
    now = look.process.status["Umask"]
    return "" if int(now, 8) == int(values[0], 8) else f"the process has {now}"


def _oom_score_adjust(look: Look, values: Sequence[str]) -> str:
    now = look.process.oom_score_adjust
    return "" if now == int(values[0]) else f"the process has {now}"


def _nice(look: Look, values: Sequence[str]) -> str:
    now = look.process.nice
    return "" if now == int(values[0]) else f"the process has {now}"


def _one_of(numbers: Mapping[str, int], now: Callable[[Process], int]) -> Checker:
    """A choice that the kernel has a number for."""
    names = {number: name for name, number in numbers.items()}

    def check(look: Look, values: Sequence[str]) -> str:
        found = now(look.process)
        return "" if found == numbers.get(values[0], found) else f"the process has {names[found]}"

    return check


def _scheduling_policy(look: Look, values: Sequence[str]) -> str:
    reason = _one_of(_POLICIES, lambda process: process.scheduling_policy)(look, values)
    if reason or values[0] != "idle" or not autogroup.are_on():
        return reason
    if (look.cgroup / "cpu.weight").exists():
        return ""  # what is in a group of a controller is in no autogroup
    now = autogroup.nice(look.process.pid)
    return "" if now in (None, autogroup.NICE) else f"its autogroup has nice {now} (sched(7))"


def _limit(label: str) -> Checker:
    """The hard limit: a process may raise its soft one up to that."""

    def check(look: Look, values: Sequence[str]) -> str:
        now = look.process.limits[label][1]
        wanted = _size(values[0].rpartition(":")[2])
        same = now == "unlimited" if wanted is None else now == str(wanted)
        return "" if same else f"the process's hard limit is {now}"

    return check


def _size(text: str) -> int | None:
    """A size in bytes, or a plain number; None for ``infinity``."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    return int(float(match[1]) * 1024 ** (" KMGTPE".index(match[2]) if match[2] else 0))


def _attribute(name: str, shown: Callable[[str, str], bool]) -> Checker:
    """The controller is there, and says what the unit says.

    Args:
        name: The controller's file in the unit's control group: ``memory.max``.
        shown: Whether that file's content is what was set.
    """

    def check(look: Look, values: Sequence[str]) -> str:
        if values[0] == "infinity":
            return ""
        try:
            now = (look.cgroup / name).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            if not look.cgroup.is_dir():
                raise
            controller = name.partition(".")[0]
            return f"the {controller} controller is not on for this unit: no {name}"
        return "" if shown(values[0], now) else f"{name} is '{now}'"

    return check


def _protected(name: str) -> Checker:
    """Memory that is kept for the unit: as much as each slice above it is kept, too."""
    attribute = _attribute(name, _same_size)

    def check(look: Look, values: Sequence[str]) -> str:
        reason = attribute(look, values)
        for above in look.cgroup.parents:
            if reason or not (above / name).exists():
                break
            if (above / name).read_text(encoding="utf-8").strip() == "0":
                reason = f"{name} of {above.name} is 0, which bounds what is below"
        return reason

    return check


def _same_size(wanted: str, now: str) -> bool:
    """Whether a limit is there, of that many bytes where the number does not depend on the host."""
    size = _size(wanted)
    if size is None:  # a percentage
        return now != "max"
    pages = size // os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PAGE_SIZE")
    return now in (str(size), str(pages))


def _same_quota(wanted: str, now: str) -> bool:
    quota, period = now.split()
    return quota != "max" and abs(int(quota) / int(period) - float(wanted.rstrip("%")) / 100) < 0.01


def _same_weight(wanted: str, now: str) -> bool:
    return wanted == "idle" or wanted == now.removeprefix("default ").split("\n")[0]


def _some(_wanted: str, now: str) -> bool:
    return bool(now)


def _bpf(*attach_types: int, not_of: str = "") -> Checker:
    """BPF programs of these types are attached to the unit's control group (uapi/linux/bpf.h).

    A user's manager has not the right to load any, whatever the unit says.

    Args:
        attach_types: The types, all of which must be there.
        not_of: How the names of programs begin that systemd attaches there for another directive.
    """

    def check(look: Look, _values: Sequence[str]) -> str:
        if look.kind is ManagerKind.USER:
            return "a user manager cannot load BPF programs"
        for attach_type in attach_types:
            names = bpf.programs(look.cgroup, attach_type)
            if all(not_of and name.startswith(not_of) for name in names):
                return "no BPF program is attached to the unit's control group"
        return ""

    return check


def _exception(_look: Look, _values: Sequence[str]) -> str:
    """What is allowed is so in any case: if nothing else, then nothing denies it."""
    return ""


CHECKERS: Final[Mapping[str, Checker]] = {
    "NoNewPrivileges": _no_new_privileges,
    **dict.fromkeys(
        (
            "LockPersonality",
            "RestrictAddressFamilies",
            "RestrictNamespaces",
            "RestrictRealtime",
            "RestrictSUIDSGID",
            "SystemCallArchitectures",
            "SystemCallFilter",
        ),
        _seccomp,
    ),
    "PrivateIPC": _namespace("ipc", "IPC namespace"),
    "PrivateMounts": _namespace("mnt", "mount namespace"),
    "PrivateNetwork": _namespace("net", "network"),
    "PrivatePIDs": _namespace("pid", "PID namespace"),
    "PrivateUsers": _namespace("user", "user namespace"),
    "ProtectHostname": _namespace("uts", "host name"),
    "PrivateDevices": _private("/dev"),
    "PrivateTmp": _private("/tmp", "/var/tmp"),
    "RootDirectory": _private("/"),
    "RootImage": _private("/"),
    "ProtectSystem": _protect_system,
    "ProtectHome": _protect_home,
    "ProtectControlGroups": _protect_control_groups,
    "ProtectKernelTunables": _protect_kernel_tunables,
    "ProtectProc": _protect_proc,
    "ProcSubset": _proc_subset,
    "ReadOnlyPaths": _read_only_paths,
    "InaccessiblePaths": _inaccessible_paths,
    "TemporaryFileSystem": _temporary_file_system,
    "BindPaths": _bind_paths,
    "BindReadOnlyPaths": _bind_read_only_paths,
    "ProtectClock": _without("sys_time", "wake_alarm"),
    "ProtectKernelLogs": _without("syslog"),
    "ProtectKernelModules": _without("sys_module"),
    "CapabilityBoundingSet": _capability_bounding_set,
    "AmbientCapabilities": _ambient_capabilities,
    "User": _user,
    "DynamicUser": _dynamic_user,
    "Group": _group,
    "SupplementaryGroups": _supplementary_groups,
    "UMask": _umask,
    "Nice": _nice,
    "CPUSchedulingPolicy": _scheduling_policy,
    "IOSchedulingClass": _one_of(_IO_CLASSES, lambda process: process.io_class),
    "OOMScoreAdjust": _oom_score_adjust,
    "LimitAS": _limit("Max address space"),
    "LimitCORE": _limit("Max core file size"),
    "LimitDATA": _limit("Max data size"),
    "LimitFSIZE": _limit("Max file size"),
    "LimitMEMLOCK": _limit("Max locked memory"),
    "LimitMSGQUEUE": _limit("Max msgqueue size"),
    "LimitNOFILE": _limit("Max open files"),
    "LimitNPROC": _limit("Max processes"),
    "LimitRSS": _limit("Max resident set"),
    "LimitRTPRIO": _limit("Max realtime priority"),
    "LimitSIGPENDING": _limit("Max pending signals"),
    "LimitSTACK": _limit("Max stack size"),
    "AllowedCPUs": _attribute("cpuset.cpus", _some),
    "AllowedMemoryNodes": _attribute("cpuset.mems", _some),
    "CPUQuota": _attribute("cpu.max", _same_quota),
    "CPUWeight": _attribute("cpu.weight", _same_weight),
    "IOWeight": _attribute("io.weight", _same_weight),
    "MemoryHigh": _attribute("memory.high", _same_size),
    "MemoryLow": _protected("memory.low"),
    "MemoryMax": _attribute("memory.max", _same_size),
    "MemoryMin": _protected("memory.min"),
    "MemorySwapMax": _attribute("memory.swap.max", _same_size),
    "TasksMax": _attribute("pids.max", _same_size),
    "DeviceAllow": _bpf(bpf.DEVICE),
    "DevicePolicy": _bpf(bpf.DEVICE),
    "IPAddressAllow": _exception,
    "IPAddressDeny": _bpf(bpf.INGRESS, bpf.EGRESS, not_of="sd_restrictif"),
    "RestrictNetworkInterfaces": _bpf(bpf.INGRESS, bpf.EGRESS, not_of="sd_fw_"),
    "SocketBindAllow": _exception,
    "SocketBindDeny": _bpf(bpf.INET4_BIND, bpf.INET6_BIND),
}
"""How each directive's effect is looked for. ``RuntimeMaxSec=`` is always in force and has none."""
