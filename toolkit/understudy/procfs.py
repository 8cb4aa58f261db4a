"""What the kernel says of one process: ``/proc/PID``, read when it is asked for (proc(5)).

Some files anybody may read (status, limits, mountinfo), others only the process's own user and
root (its namespaces): those raise PermissionError.
"""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final

_IOPRIO_GET = {"x86_64": 252, "aarch64": 31}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_SHIFT = 13

_OCTAL = re.compile(r"\\([0-7]{3})")

CAPABILITIES: Final = (
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
)
"""The names of capabilities(7) without ``CAP_`` and in lower case, by number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of mountinfo.

    Attributes:
        number: The mount's id.
        parent: The id of the mount that it lies on.
        device: ``major:minor`` of its file system.
        root: What of that file system is mounted.
        point: Where.
        options: Of this mount: ``ro``, ``nosuid``, …
        kind: The file system's type.
        super_options: Of the file system.
    """

    number: int
    parent: int
    device: str
    root: str
    point: str
    options: frozenset[str]
    kind: str
    super_options: frozenset[str]

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written through it."""
        return "ro" in self.options or "ro" in self.super_options


class Mounts:
    """The mounts that a process sees.

    Args:
        text: The content of its ``mountinfo``.
    """

    def __init__(self, text: str) -> None:
        self._mounts = [_mount(line) for line in text.splitlines()]
        self._by_place = {(one.parent, one.point): one for one in self._mounts}

    def __iter__(self) -> Iterator[Mount]:
        return iter(self._mounts)

    def at(self, path: str) -> Mount:
        """The mount through which the process sees a path.

        Mounts hide one another, so their order tells little: this goes down from the root, as
        the kernel does.

        Args:
            path: An absolute path without symbolic links.
        """
        numbers = {one.number for one in self._mounts}
        found = next(one for one in self._mounts if one.parent not in numbers)
        place = PurePosixPath(path)
        for step in [*reversed(place.parents), place]:
            while (upper := self._by_place.get((found.number, str(step)))) is not None:
                found = upper
        return found

    def identity(self, path: str) -> tuple[str, str]:
        """What a path is, whatever it is called: its file system's device, and the path in that.

        Args:
            path: An absolute path without symbolic links.
        """
        mount = self.at(path)
        return mount.device, str(
            PurePosixPath(mount.root) / PurePosixPath(path).relative_to(mount.point)
        )


class Process:
    """A process, by its PID.

    What is read is kept, so one object is one look.

    Args:
        pid: Its number.
        proc: Where the proc file system is mounted.
    """

    def __init__(self, pid: int, *, proc: Path = Path("/proc")) -> None:
        self.pid = pid
        self._folder = proc / str(pid)

    @cached_property
    def status(self) -> Mapping[str, str]:
        """The fields of ``status``, by name."""
        lines = self._read("status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @cached_property
    def limits(self) -> Mapping[str, tuple[str, str]]:
        """Soft and hard limit by name (``Max open files``), as numbers or ``unlimited``."""
        rows = (re.split(r"\s{2,}", line) for line in self._read("limits").splitlines()[1:])
        return {row[0]: (row[1], row[2]) for row in rows}

    @cached_property
    def mounts(self) -> Mounts:
        """The mounts it sees."""
        return Mounts(self._read("mountinfo"))

    @property
    def parent(self) -> int:
        """Its parent's PID, 0 if that is in another PID namespace."""
        return int(self.status["PPid"])

    @property
    def nice(self) -> int:
        """Its nice value."""
        return int(self._stat(19))

    @property
    def scheduling_policy(self) -> int:
        """How it is scheduled: ``os.SCHED_OTHER``, ``os.SCHED_IDLE``, … (sched(7))."""
        return int(self._stat(41))

    @property
    def io_class(self) -> int:
        """How its input and output is scheduled, as ioprio_get(2) numbers it: 3 is idle.

        Raises:
            PermissionError: This kind of machine has no known number for the call.
            ProcessLookupError: It is gone.
        """
        call = _IOPRIO_GET.get(platform.machine())
        if call is None:
            raise PermissionError(f"ioprio_get(2) has no known number on {platform.machine()}")
        libc = ctypes.CDLL(None, use_errno=True)
        found = libc.syscall(call, _IOPRIO_WHO_PROCESS, self.pid)
        if found < 0:
            raise OSError(ctypes.get_errno(), "ioprio_get(2)")
        return int(found) >> _IOPRIO_CLASS_SHIFT

    @property
    def oom_score_adjust(self) -> int:
        """How much sooner it is killed when memory runs short, -1000 to 1000."""
        return int(self._read("oom_score_adj"))

    @property
    def cgroup(self) -> str:
        """Its path in the unified hierarchy; "" if it is in none."""
        lines = self._read("cgroup").splitlines()
        return next((line[3:] for line in lines if line.startswith("0::")), "")

    def capabilities(self, which: str) -> frozenset[str]:
        """The capabilities of one of its sets, as in `CAPABILITIES`.

        Args:
            which: ``CapBnd``, ``CapAmb``, ``CapEff``, …
        """
        mask = int(self.status[which], 16)
        return frozenset(name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1)

    def namespace(self, kind: str) -> str:
        """The namespace it is in; two processes in one give the same text.

        Args:
            kind: ``net``, ``mnt``, ``user``, ``ipc``, ``uts``, ``pid``, ``cgroup``.

        Raises:
            PermissionError: It is another user's.
        """
        return str((self._folder / "ns" / kind).readlink())

    def _stat(self, number: int) -> str:
        """A field of ``stat``, numbered as in proc(5)."""
        # The second is the name, which may hold anything, spaces and brackets too.
        return self._read("stat").rpartition(")")[2].split()[number - 3]

    def _read(self, name: str) -> str:
        return (self._folder / name).read_text(encoding="utf-8", errors="replace")


def _mount(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    number, parent, device, root, point, options = before.split(" ")[:6]
    kind, _source, super_options = after.split(" ", 2)
    return Mount(
        number=int(number),
        parent=int(parent),
        device=device,
        root=_unescaped(root),
        point=_unescaped(point),
        options=frozenset(options.split(",")),
        kind=kind,
        super_options=frozenset(super_options.split(",")),
    )


def _unescaped(text: str) -> str:
    """Undo proc(5)'s octal escapes of space, tab, newline and backslash."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
