"""Claims on ports for instances: numbers that nobody uses, in blocks that nobody else has."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack

from understudy.errors import PortError
from understudy.model import Port
from understudy.ports.claiming import Claim, claims
from understudy.ports.numbering import Group, Numbered, assign, fix, group
from understudy.ports.ownership import Holder, describe, describe_claim
from understudy.ports.ranges import BLOCK, VARIABLE, PortRange
from understudy.ports.sock_diag import Sockets, snapshot


class Allocator:
    """Gives numbers to ports.

    Args:
        port_range: Where from; `configured_range` gives what is set for this host.
        never: Numbers that are never given: those that definitions call production's.

    Raises:
        PortError: The kernel gives ports of the range to clients.
    """

    def __init__(self, port_range: PortRange, *, never: Collection[Numbered] = frozenset()) -> None:
        port_range.check_ephemeral()
        self._range = port_range
        self._never = frozenset(never)

    def claim(
        self,
        ports: Iterable[Port],
        *,
        exact: Mapping[str, int] | None = None,
        avoid: Collection[Numbered] = frozenset(),
    ) -> tuple[Claim, dict[str, int]]:
        """Give each port a number of its own, in blocks claimed for it.

        No number is production's, and none was bound by anybody at that moment. Who does not
        claim can still bind one before the instance does: `check` what the instance got.

        Args:
            ports: The listeners; ``even`` and ``next_to`` are kept. No two get the same number,
                though one be TCP and the other UDP.
            exact: Numbers that are asked for, by the port's name. They may lie outside the
                range; there they are not claimed.
            avoid: Numbers not to give, because an earlier try found them taken.

        Returns:
            The claim, and the numbers by port name.

        Raises:
            DefinitionError: The ports contradict each other (``next-to``).
            UsageError: ``exact`` names no port, or gives it no port number.
            PortError: An exact number cannot be had (the error names its holder), or no block
                is left (it names the users).
        """
        requests = [group(ports)]
        fixed = fix(requests[0], exact or {})
        return self._claim(requests, fixed, avoid)[0]

    def claim_many(
        self, instances: Iterable[Iterable[Port]], *, avoid: Collection[Numbered] = frozenset()
    ) -> list[tuple[Claim, dict[str, int]]]:
        """`claim` for several instances with one look at what is bound: all of them or none."""
        return self._claim([group(ports) for ports in instances], {}, avoid)

    def _claim(
        self,
        requests: Sequence[Sequence[Group]],
        fixed: Mapping[str, int],
        avoid: Collection[Numbered],
    ) -> list[tuple[Claim, dict[str, int]]]:
        seen = snapshot(idle=bool(fixed))
        unusable = self._never.union(avoid, ((one.transport, one.port) for one in seen))
        answers = []
        with ExitStack() as undo:
            for groups in requests:
                claim = undo.enter_context(Claim())
                self._claim_fixed(claim, groups, fixed, seen)
                free = [members for members in groups if members[0].name not in fixed]
                numbers = {**fixed, **self._claim_free(claim, free, unusable)}
                answers.append((claim, numbers))
            undo.pop_all()
        return answers

    def _claim_fixed(
        self, claim: Claim, groups: Iterable[Group], fixed: Mapping[str, int], seen: Sockets
    ) -> None:
        for port in (port for members in groups for port in members if port.name in fixed):
            number = fixed[port.name]
            if (port.transport, number) in self._never:
                raise _refused(port, number, "production has that one")
            if bound := seen.bound(port.transport, number):
                raise _refused(port, number, "it is held by", describe(bound)[0])
            block = number - number % BLOCK
            if block in claim.blocks:
                continue
            if block not in self._range.blocks:
                others = claims([block])
            else:
                others = [] if claim.add([block]) else claims([block])
            if others:
                raise _refused(port, number, "its block is", describe_claim(others[0], number))

    def _claim_free(
        self, claim: Claim, groups: Sequence[Group], unusable: Collection[Numbered]
    ) -> dict[str, int]:
        if not groups:
            return {}
        count = sum(len(members) for members in groups)
        blocks = self._range.blocks
        start = random.randrange(len(blocks))  # so that users who come together seldom meet
        least = -(-count // BLOCK)
        for size in (least, least + 1):  # one more where numbers in between are in use
            for at in (*range(start, len(blocks)), *range(start)):
                window = blocks[at : at + size]
                if len(window) < size:
                    continue
                candidates = range(window[0], window[-1] + BLOCK)
                numbers = assign(groups, candidates, unusable)
                if numbers is not None and claim.add(window):
                    return numbers
        raise self._exhausted(count)

    def _exhausted(self, count: int) -> PortError:
        blocks = self._range.blocks
        users = Counter(one.user for one in claims(blocks))
        by = ", ".join(f"{number} by {user}" for user, number in users.most_common()) or "none"
        return PortError(
            f"Cannot find {count} free ports in {self._range} ({self._range.origin}):"
            f" of its {len(blocks)} blocks {users.total()} are claimed ({by})",
            owner=", ".join(users) or None,
            hint=f"End runs ('understudy stop --all' ends yours), or set {VARIABLE} to more",
        )


def _refused(port: Port, number: int, why: str, owner: Holder | None = None) -> PortError:
    return PortError(
        f"Cannot give {port.transport} port {number} to '{port.name}': {why}"
        + (f" {owner}" if owner else ""),
        port=number,
        owner=str(owner) if owner else None,
        hint="Ask for another number, or for none: then a free one is chosen",
    )
