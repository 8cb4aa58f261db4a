"""Cgroups as far as ports need them: the unit behind a cgroup's id, and an instance's ids.

Paths are as systemd gives them (``ControlGroup=``): ``/system.slice/nginx.service``. A cgroup's id
is the inode of its folder in the unified hierarchy (kernel: cgroup-v2.rst, kernfs).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from understudy.errors import PortError

_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_UNIT_SUFFIXES = (".service", ".socket", ".scope")


def mount() -> str:
    """Where the unified hierarchy is mounted: alone, or beside the old ones (hybrid).

    Raises:
        PortError: It is mounted at neither place that systemd knows.
    """
    for root in _ROOTS:
        if Path(root, "cgroup.procs").exists():
            return root
    raise PortError(
        "Cannot find the unified cgroup hierarchy (cgroup2)",
        hint="It belongs at /sys/fs/cgroup; boot without systemd.unified_cgroup_hierarchy=0",
    )


def cgroup_ids(path: str) -> frozenset[int]:
    """The ids of a cgroup and all below it; none if it is gone.

    Args:
        path: The unit's ``ControlGroup=``.

    Raises:
        PortError: There is no unified hierarchy.
    """
    return frozenset(inode for inode, _ in _walk(_folder(path)))


def cgroup_paths(ids: Collection[int]) -> dict[int, str]:
    """The paths of these cgroups, by id; those that are gone are left out.

    It walks the whole tree: for reports.

    Raises:
        PortError: There is no unified hierarchy.
    """
    root = mount()
    wanted = set(ids)
    found: dict[int, str] = {}
    for inode, folder in _walk(root):
        if inode in wanted:
            found[inode] = folder.removeprefix(root) or "/"
            if len(found) == len(wanted):
                break
    return found


def units_of(path: str) -> tuple[str, ...]:
    """The units that a cgroup lies in, the innermost first.

    ``/user.slice/user-1000.slice/user@1000.service/app.slice/x.service`` lies in ``x.service``,
    which a user manager runs, which ``user@1000.service`` is; a container's units lie in the
    container's. Slices only group and are left out.
    """
    units = []
    for segment in reversed(path.split("/")):
        # systemd puts "_" before a name that the kernel could take for one of its own files.
        name = segment.removeprefix("_")
        if name.endswith(_UNIT_SUFFIXES):
            units.append(name)
    return tuple(units)


def unit_of(path: str) -> str | None:
    """The innermost unit that a cgroup lies in; None if it lies in none."""
    return next(iter(units_of(path)), None)


def unit_of_process(pid: int) -> str | None:
    """The innermost unit that a process runs in; None if it is gone or runs in none."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
            if line.startswith("0::"):
                return unit_of(line.removeprefix("0::"))
    return None


def processes(path: str) -> list[int]:
    """The processes of a cgroup and of all below it; none if it is gone.

    Raises:
        PortError: There is no unified hierarchy.
    """
    pids = []
    for _, folder in _walk(_folder(path)):
        with contextlib.suppress(OSError):  # gone, or threaded
            pids += [int(line) for line in Path(folder, "cgroup.procs").read_text().split()]
    return pids


def socket_inodes(path: str) -> frozenset[int]:
    """The inodes of all sockets that the processes of a cgroup have open.

    Sockets that a manager passed to a service were made in another cgroup (the ``.socket``'s, or
    the manager's own), so only this shows whose they are. Processes of other users are passed
    over, unless root asks.

    Raises:
        PortError: There is no unified hierarchy.
    """
    return frozenset(inode for pid in processes(path) for inode in inodes_of_process(pid))


def inodes_of_process(pid: int) -> set[int]:
    """The inodes of the sockets that a process has open; none if it may not be seen."""
    inodes = set()
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                kind, _, number = str(link.readlink()).partition(":")
                if kind == "socket":
                    inodes.add(int(number.strip("[]")))
    return inodes


def _folder(path: str) -> str:
    return f"{mount()}{path}"


def _walk(folder: str) -> Iterator[tuple[int, str]]:
    """Give inode and path of a folder and of all below it."""
    try:
        status = Path(folder).stat()
        yield status.st_ino, folder
        if status.st_nlink == 2:  # kernfs: two, and one more for each folder in it
            return
        with os.scandir(folder) as entries:
            children = [one.path for one in entries if one.is_dir(follow_symlinks=False)]
    except OSError:  # gone meanwhile
        return
    for child in children:
        yield from _walk(child)
