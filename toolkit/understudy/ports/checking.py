"""Whether an instance holds its ports, it alone, and no others. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from understudy.model import Port, Transport
from understudy.ports.sock_diag import Socket, Sockets

LINUX_EPHEMERAL = range(32768, 61000)
"""The ports that Linux gives to clients unless it is told otherwise (ip-sysctl.rst)."""


class Hold(StrEnum):
    """How an instance stands to one of its ports."""

    HELD = "held"
    """It has bound it, and nobody else has."""
    MISSING = "missing"
    """Nobody has bound it (yet)."""
    SHARED = "shared"
    """It has bound it, and so has somebody else (SO_REUSEPORT, SO_REUSEADDR)."""
    TAKEN = "taken"
    """Somebody else has bound it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A declared port that somebody else holds.

    Attributes:
        port: The port.
        number: The instance's number for it.
        others: The sockets of others on it.
        shared: Whether the instance holds it as well.
    """

    port: Port
    number: int
    others: tuple[Socket, ...]
    shared: bool

    def __str__(self) -> str:
        how = "shared with" if self.shared else "taken by"
        who = ", ".join(map(str, self.others))
        return f"port {self.number} ('{self.port.name}') is {how} another process's socket ({who})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How an instance stands to its ports.

    Attributes:
        holds: How it stands to each, by the port's name.
        missing: The ports that nobody has bound yet, with their numbers; without optional ones.
        conflicts: The ports that somebody else holds, alone or as well.
        undeclared: Sockets of the instance that listen on ports nobody declared.
    """

    holds: Mapping[str, Hold]
    missing: tuple[tuple[Port, int], ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    undeclared: tuple[Socket, ...] = ()

    @property
    def held(self) -> bool:
        """Whether it holds every port that is not optional, and nobody else holds any."""
        return not self.missing and not self.conflicts


def check(
    ports: Iterable[Port],
    numbers: Mapping[str, int],
    sockets: Sockets,
    *,
    ids: Collection[int],
    inodes: Collection[int] = frozenset(),
    ephemeral: range = LINUX_EPHEMERAL,
) -> Check:
    """Look whether an instance holds its ports.

    A service may bind a port more than once, on IPv4 and IPv6 or in several workers: that is
    still held by it alone. On which address it binds is its own affair. Whoever else has bound
    the same number, on whatever address, counts as another.

    Args:
        ports: The declared listeners.
        numbers: The instance's numbers by port name; a port without one is passed over.
        sockets: What is bound now (`snapshot`).
        ids: The ids of the instance's cgroups (`cgroup_ids`).
        inodes: The sockets that a manager bound for the instance, where it did
            (`socket_inodes`): their cgroup is the manager's.
        ephemeral: The ports that the kernel gives to clients (`ephemeral_ports`). A UDP socket
            there is taken for a client's: it looks like a server's.
    """
    cgroups, passed = frozenset(ids), frozenset(inodes)
    holds: dict[str, Hold] = {}
    missing = []
    conflicts = []
    declared: set[tuple[Transport, int]] = set()
    for port in ports:
        if port.name not in numbers:
            continue
        number = numbers[port.name]
        declared.add((port.transport, number))
        bound = sockets.bound(port.transport, number)
        others = tuple(
            one for one in bound if one.cgroup not in cgroups and one.inode not in passed
        )
        shared = len(others) < len(bound)
        if others:
            holds[port.name] = Hold.SHARED if shared else Hold.TAKEN
            conflicts.append(Conflict(port=port, number=number, others=others, shared=shared))
        elif bound:
            holds[port.name] = Hold.HELD
        else:
            holds[port.name] = Hold.MISSING
            if not port.optional:
                missing.append((port, number))
    undeclared = tuple(
        one
        for one in sockets.of_cgroup(cgroups)
        if one.listening
        and (one.transport, one.port) not in declared
        and not (one.transport is Transport.UDP and one.port in ephemeral)
    )
    return Check(
        holds=holds, missing=tuple(missing), conflicts=tuple(conflicts), undeclared=undeclared
    )
