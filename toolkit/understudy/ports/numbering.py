"""Which port gets which number: pairs, even numbers, numbers that are asked for. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

from understudy.errors import DefinitionError, PortError, UsageError, nearest_hint
from understudy.model import Port, Transport

Numbered: TypeAlias = tuple[Transport, int]
"""A port number with its transport: TCP 8002 and UDP 8002 are two ports."""

Group: TypeAlias = tuple[Port, ...]
"""Ports that take consecutive numbers: RTP and RTCP."""


def group(ports: Iterable[Port]) -> list[Group]:
    """Put together what takes consecutive numbers, each port in one group.

    Raises:
        DefinitionError: A ``next_to`` names no port, one that another follows already, or runs
            in a circle; or a group has two even ports at an odd distance.
    """
    by_name = {port.name: port for port in ports}
    followers: dict[str, Port] = {}
    for port in by_name.values():
        if port.next_to is None:
            continue
        if port.next_to not in by_name:
            raise DefinitionError(
                f"Cannot put port '{port.name}' next to '{port.next_to}': there is no such port"
            )
        other = followers.setdefault(port.next_to, port)
        if other is not port:
            raise DefinitionError(
                f"Cannot put port '{port.name}' next to '{port.next_to}': '{other.name}' is there"
            )
    groups = []
    for port in by_name.values():
        if port.next_to is None:
            members = [port]
            while (follower := followers.pop(members[-1].name, None)) is not None:
                members.append(follower)
            if len({offset % 2 for offset, member in enumerate(members) if member.even}) > 1:
                raise DefinitionError(
                    f"Cannot number the ports {_list(members)}: not all of them can be even"
                )
            groups.append(tuple(members))
    if followers:
        raise DefinitionError(
            f"Cannot number the ports {_list(followers.values())}: each is next to another of them"
        )
    return groups


def fix(groups: Sequence[Group], exact: Mapping[str, int]) -> dict[str, int]:
    """The numbers that are asked for, and those that follow from them.

    Args:
        groups: What `group` gives.
        exact: Numbers that are asked for, by the port's name.

    Raises:
        UsageError: A name is none of the ports, a number is no port number, or two ports would
            share one.
        PortError: The numbers of a group do not fit each other.
    """
    names = [port.name for members in groups for port in members]
    for name in exact:
        if name not in names:
            raise UsageError(
                f"Cannot set port '{name}': there is no such port",
                hint=f"{nearest_hint(name, names)}its ports: {', '.join(names)}",
            )
    fixed: dict[str, int] = {}
    taken: dict[Numbered, str] = {}
    for members in groups:
        starts = {exact[port.name] - at for at, port in enumerate(members) if port.name in exact}
        if not starts:
            continue
        start = min(starts)
        if len(starts) > 1:
            raise PortError(
                f"Cannot set the ports {_list(members)}: each is the one before plus one",
                hint=f"Set only '{members[0].name}'",
            )
        for at, port in enumerate(members):
            number = start + at
            if not 1 <= number <= 65535:
                raise UsageError(f"Cannot set port '{port.name}' to {number}: ports are 1-65535")
            if port.even and number % 2:
                raise PortError(
                    f"Cannot set port '{port.name}' to {number}: it has to be even",
                    port=number,
                    hint=f"{_list(members)} have consecutive numbers" if len(members) > 1 else None,
                )
            other = taken.setdefault((port.transport, number), port.name)
            if other != port.name:
                raise UsageError(
                    f"Cannot set port '{port.name}' to {number}: '{other}' has that number"
                )
            fixed[port.name] = number
    return fixed


def assign(
    groups: Iterable[Group], candidates: range, unusable: Collection[Numbered]
) -> dict[str, int] | None:
    """Give each port a number, each number to one port.

    Args:
        groups: What `group` gives.
        candidates: The numbers to choose from.
        unusable: What is not to be given.

    Returns:
        The numbers by port name; None if the candidates do not suffice.
    """
    free = set(candidates)
    numbers: dict[str, int] = {}
    # Whoever is hardest to place goes first: pairs, then even numbers.
    for members in sorted(groups, key=lambda one: (-len(one), not one[0].even)):
        for start in candidates:
            if all(
                start + at in free
                and not (port.even and (start + at) % 2)
                and (port.transport, start + at) not in unusable
                for at, port in enumerate(members)
            ):
                break
        else:
            return None
        for at, port in enumerate(members):
            numbers[port.name] = start + at
            free.discard(start + at)
    return numbers


def _list(ports: Iterable[Port]) -> str:
    return ", ".join(f"'{port.name}'" for port in ports)
