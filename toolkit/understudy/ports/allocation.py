"""Claims on ports for instances: numbers that nobody uses, in blocks that nobody else has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack

from understudy.errors import PortError
from understudy.model import Port, Transport
from understudy.ports.claiming import Claim, claims
from understudy.ports.numbering import Group, Numbered, assign, fix, group
from understudy.ports.ownership import Holder, describe, describe_claim
from understudy.ports.ranges import BLOCK, VARIABLE, PortRange, block_of
from understudy.ports.sock_diag import Sockets, snapshot


class Allocator:
    """Gives numbers to ports.

    Args:
        port_range: Where from; `configured_range` gives what is set for this host.
        never: Numbers that are never given: those that definitions call production's.

    Attributes:
        never: The same.

    Raises:
        PortError: The kernel gives ports of the range to clients.
    """

    def __init__(self, port_range: PortRange, *, never: Collection[Numbered] = frozenset()) -> None:
        port_range.check_ephemeral()
        self._range = port_range
        self.never = frozenset(never)

    def claim(
        self,
        ports: Iterable[Port],
        *,
        exact: Mapping[str, int] | None = None,
        avoid: Collection[int] = frozenset(),
    ) -> tuple[Claim, dict[str, int]]:
        """Give each port a number of its own, in blocks claimed for it.

        No number is production's, and none was bound by anybody at that moment. Who does not
        claim can still bind one before the instance does: `check` what the instance got.

        Args:
            ports: The listeners; ``even`` and ``next_to`` are kept. No two get the same number,
                though one be TCP and the other UDP.
            exact: Numbers that are asked for, by the port's name. They may lie outside the
                range; there they are not claimed.
            avoid: Numbers not to choose, because an earlier try found them taken.

        Returns:
            The claim, and the numbers by port name.

        Raises:
            DefinitionError: The ports contradict each other (``next-to``).
            UsageError: ``exact`` names no port, or gives it no port number.
            PortError: An exact number cannot be had (the error names its holder), or no block
                is left (it names the users).
        """
        return self.claim_many([ports], exact=[exact or {}], avoid=avoid)[0]

    def claim_many(
        self,
        instances: Sequence[Iterable[Port]],
        *,
        exact: Sequence[Mapping[str, int]] | None = None,
        avoid: Collection[int] = frozenset(),
    ) -> list[tuple[Claim, dict[str, int]]]:
        """`claim` for several instances with one look at what is bound: all of them or none.

        Args:
            instances: The listeners of each.
            exact: Numbers that are asked for, for each; None for none.
            avoid: Numbers not to choose for any.
        """
        exact = exact or [{} for _ in instances]
        seen = snapshot(idle=any(exact))
        unusable = {(one.transport, one.port) for one in seen}
        unusable |= self.never
        unusable |= {(transport, number) for transport in Transport for number in avoid}
        fixed: set[Numbered] = set()
        answers = []
        with ExitStack() as undo:
            for ports, asked in zip(map(tuple, instances), exact, strict=True):
                claim = undo.enter_context(Claim())
                groups = group(ports)
                numbers = fix(groups, asked)
                given = [port for port in ports if port.name in numbers]
                self._claim_fixed(claim, given, numbers, seen, fixed)
                free = [members for members in groups if members[0].name not in numbers]
                numbers |= self._claim_free(claim, free, unusable)
                answers.append((claim, {port.name: numbers[port.name] for port in ports}))
            undo.pop_all()
        return answers

    def _claim_fixed(
        self,
        claim: Claim,
        ports: Iterable[Port],
        numbers: Mapping[str, int],
        seen: Sockets,
        others: set[Numbered],
    ) -> None:
        """Claim the numbers that are asked for; `others` are those of the instances before."""
        for port in ports:
            number = numbers[port.name]
            numbered = (port.transport, number)
            if numbered in self.never:
                raise _refused(port, number, "it is production's")
            if numbered in others:
                raise _refused(port, number, "it is asked for more than once")
            others.add(numbered)
            if bound := seen.bound(*numbered):
                raise _refused(port, number, "it is held by", describe(bound)[0])
            block = block_of(number)
            if block in claim.blocks or (block in self._range.blocks and claim.add([block])):
                continue
            # Outside the range nothing is claimed, but somebody's range may reach there.
            for claimed in claims([block]):
                raise _refused(port, number, "its block is", describe_claim(claimed, number))

    def _claim_free(
        self, claim: Claim, groups: Sequence[Group], unusable: Collection[Numbered]
    ) -> dict[str, int]:
        if not groups:
            return {}
        count = sum(len(members) for members in groups)
        blocks = self._range.blocks
        import random  # not needed by who only looks

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
            owner=", ".join(user for user, _ in users.most_common()) or None,
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
