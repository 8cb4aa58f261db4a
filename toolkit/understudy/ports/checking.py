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
class PortCheck:
    """What was found on one declared port.

    Attributes:
        port: The declared port.
        number: The instance's number for it.
        hold: How the instance stands to it.
        others: The sockets of others on it.
    """

    port: Port
    number: int
    hold: Hold
    others: tuple[Socket, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found on all ports of an instance.

    Attributes:
        ports: By the port's name.
        undeclared: Sockets of the instance that listen on ports nobody declared.
    """

    ports: Mapping[str, PortCheck]
    undeclared: tuple[Socket, ...] = ()

    @property
    def held(self) -> bool:
        """Whether the instance, and nobody else, holds each port that is not optional."""
        return not self.missing and not self.disputed

    @property
    def missing(self) -> list[PortCheck]:
        """The ports that are not bound yet, without the optional ones."""
        return [
            one for one in self.ports.values() if one.hold is Hold.MISSING and not one.port.optional
        ]

    @property
    def disputed(self) -> list[PortCheck]:
        """The ports that somebody else holds, alone or as well."""
        return [one for one in self.ports.values() if one.others]


def check(
    ports: Iterable[Port],
    numbers: Mapping[str, int],
    sockets: Sockets,
    *,
    cgroups: Collection[int],
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
        cgroups: The ids of the instance's cgroups (`cgroup_ids`).
        inodes: The sockets that a manager bound for the instance, where it did
            (`socket_inodes`): their cgroup is the manager's.
        ephemeral: The ports that the kernel gives to clients (`ephemeral_ports`). A UDP socket
            there is taken for a client's: it looks like a server's.
    """
    ids, passed = frozenset(cgroups), frozenset(inodes)
    found = {}
    declared: set[tuple[Transport, int]] = set()
    for port in ports:
        if port.name not in numbers:
            continue
        number = numbers[port.name]
        declared.add((port.transport, number))
        bound = sockets.bound(port.transport, number)
        others = tuple(one for one in bound if one.cgroup not in ids and one.inode not in passed)
        if not bound:
            hold = Hold.MISSING
        elif not others:
            hold = Hold.HELD
        else:
            hold = Hold.SHARED if len(others) < len(bound) else Hold.TAKEN
        found[port.name] = PortCheck(port=port, number=number, hold=hold, others=others)
    undeclared = tuple(
        one
        for one in sockets.of_cgroup(ids)
        if one.listening
        and (one.transport, one.port) not in declared
        and not (one.transport is Transport.UDP and one.port in ephemeral)
    )
    return Check(ports=found, undeclared=undeclared)
