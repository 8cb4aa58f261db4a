"""Who holds a port: the unit, the user, and the process where it may be seen."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from understudy.errors import PortError
from understudy.model import Transport
from understudy.ports import cgroups
from understudy.ports.claiming import Claimed, claims, user_name
from understudy.ports.ranges import block_of
from understudy.ports.sock_diag import Socket, snapshot


class State(StrEnum):
    """In what way a port is held."""

    LISTENING = "listening"
    """Bound, and reachable for everybody: TCP that listens, UDP without a peer."""
    BOUND = "bound"
    """Bound, and not reachable: TCP that does not listen (yet), UDP with a peer."""
    CLAIMED = "claimed"
    """In a block that is claimed for an instance, and not necessarily bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a port.

    Attributes:
        state: In what way it is held.
        transport: TCP or UDP; None for a claim, which is on both.
        port: The port's number.
        address: The address it is bound to; "" for a claim.
        unit: The innermost systemd unit it belongs to; None if it belongs to none. A ``.socket``,
            or ``init.scope``, holds ports for the services it activates.
        within: The unit around that one: a container, or a user's manager; None if none.
        cgroup: Its cgroup's path; "" if that is gone or unknown.
        uid: The user who made it.
        user: That user's name, or the number of one that has none.
        pid: A process that has it open; None where that may not be seen.
        command: That process's command line; "" where it may not be seen.
    """

    state: State
    transport: Transport | None
    port: int
    address: str = ""
    unit: str | None = None
    within: str | None = None
    cgroup: str = ""
    uid: int
    user: str
    pid: int | None = None
    command: str = ""

    def __str__(self) -> str:
        """``camera-service.service (user camera, PID 812)``."""
        program = self.command.split()[:1] or ["a process"]
        who = self.unit or Path(program[0]).name
        if self.unit == "init.scope":
            who = "a .socket unit"  # which one, only the manager knows
        if self.within:
            who += f" in {self.within}"
        if self.state is State.CLAIMED:
            who = f"claimed by {who}"
        details = [f"user {self.user}"]
        if self.pid is not None:
            details.append(f"PID {self.pid}")
        return f"{who} ({', '.join(details)})"


def holders(transport: Transport, port: int) -> list[Holder]:
    """Who holds a port: whoever bound it, and whoever claimed it.

    Args:
        transport: TCP or UDP.
        port: The number.

    Raises:
        PortError: The kernel denies it.
    """
    found = describe(snapshot(idle=True).bound(transport, port))
    return found + [describe_claim(one, port) for one in claims([block_of(port)])]


def holder(transport: Transport, port: int) -> Holder | None:
    """The first of `holders`, one who bound it before one who claimed it; None if it is free."""
    return next(iter(holders(transport, port)), None)


def describe(sockets: Iterable[Socket]) -> list[Holder]:
    """Say whose these sockets are, in their order.

    Where there is no unified cgroup hierarchy, no unit is named.
    """
    sockets = list(sockets)
    paths: dict[int, str] = {}
    with contextlib.suppress(PortError):
        paths = cgroups.cgroup_paths({one.cgroup for one in sockets})
    openers = _openers({one.inode for one in sockets})
    answers = []
    for one in sockets:
        path = paths.get(one.cgroup, "")
        unit, within, *_ = (*cgroups.units_of(path), None, None)
        pid = _choose(openers.get(one.inode, []), path)
        answers.append(
            Holder(
                state=State.LISTENING if one.listening else State.BOUND,
                transport=one.transport,
                port=one.port,
                address=one.address,
                unit=unit,
                within=within,
                cgroup=path,
                uid=one.uid,
                user=user_name(one.uid),
                pid=pid,
                command=_command(pid),
            )
        )
    return answers


def describe_claim(claimed: Claimed, port: int) -> Holder:
    """Say whose a claim is, as the holder of one of its ports."""
    return Holder(
        state=State.CLAIMED,
        transport=None,
        port=port,
        unit=claimed.unit,
        uid=claimed.uid,
        user=claimed.user,
        pid=claimed.pid,
        command=_command(claimed.pid),
    )


def _openers(inodes: Collection[int]) -> dict[int, list[int]]:
    """The processes that have these sockets open, as far as they may be seen."""
    found: dict[int, list[int]] = {}
    if inodes:
        for pid in sorted(int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()):
            for inode in cgroups.inodes_of_process(pid).intersection(inodes):
                found.setdefault(inode, []).append(pid)
    return found


def _choose(openers: list[int], path: str) -> int | None:
    """The process to name: one of the socket's own cgroup before one that was handed a copy."""
    members = cgroups.processes(path) if path else []
    for pid in openers:
        if pid in members:
            return pid
    if openers:
        return openers[0]
    # Another user's process: which are in the cgroup is no secret, which of them has it open is.
    return members[0] if len(members) == 1 else None


def _command(pid: int | None) -> str:
    if pid is None:
        return ""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(word.decode(errors="replace") for word in words if word)
