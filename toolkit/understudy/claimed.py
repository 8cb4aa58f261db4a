"""Ports for a server that a test starts by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import overload


class ClaimedPorts(Sequence[int]):
    """Port numbers that are one's own until they are released, or their run ends.

    Made by `understudy.Run.claim_ports`. A sequence of numbers, and a context manager:
    ``with run.claim_ports("tcp", "udp") as (http, media):``.
    """

    def __init__(self, numbers: Sequence[int], free: Callable[[], None]) -> None:
        self._numbers = tuple(numbers)
        self._free = free
        self._released = False
        self._owner_pid = os.getpid()

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        return self._numbers[index]

    def __len__(self) -> int:
        return len(self._numbers)

    def __repr__(self) -> str:
        return f"<ClaimedPorts {' '.join(map(str, self._numbers))}>"

    def __enter__(self) -> ClaimedPorts:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the numbers back. A second call does nothing, nor does one in a forked child."""
        if not self._released and os.getpid() == self._owner_pid:
            self._released = True
            self._free()
