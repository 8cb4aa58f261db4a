"""Faults of an instance's network, on request: cut off, slow, or losing what is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from understudy.errors import NetworkError, UsageError
from understudy.netns import Namespace


class InstanceNetwork(str):
    """The network of an instance: its name, and faults to be made in it.

    As a string it is ``host``, ``private``, or ``private:NAME``. Faults need a network of the
    instance's own, and are felt by all that is in it: services, and the proxies of published ports.
    They go with the network.

    Args:
        name: What it is called.
        unit: The instance, for people.
        pid: Gives the main process's PID, or 0 while it does not run.
    """

    def __new__(cls, name: str, unit: str, pid: Callable[[], int]) -> Self:  # noqa: D102
        made = super().__new__(cls, name)
        made._unit = unit
        made._pid = pid
        return made

    _unit: str
    _pid: Callable[[], int]

    def down(self) -> None:
        """Cut it off: nothing in it reaches anything, itself included.

        Connections stay, and are silent; new ones get no answer until their own time-out. On a
        published port they are accepted, by its proxy, and then silent as well.

        Raises:
            NetworkError: It is the host's, or the instance does not run.
        """
        with self._namespace() as namespace:
            namespace.set_loopback(up=False)

    def up(self) -> None:
        """Undo `down`.

        Raises:
            NetworkError: As `down`.
        """
        with self._namespace() as namespace:
            namespace.set_loopback(up=True)

    def disturb(self, *, delay_s: float = 0.0, loss: float = 0.0) -> None:
        """Delay what is sent, or lose some of it; with neither, undo it (tc-netem(8)).

        Args:
            delay_s: Seconds by which each packet is delayed; an answer comes after twice that.
            loss: The part of the packets that is lost, from 0 to 1. TCP sends them again.

        Raises:
            UsageError: A number is out of range.
            NetworkError: As `down`, or this kernel has no netem.
        """
        if not 0 <= delay_s <= 60 or not 0 <= loss <= 1:
            raise UsageError(
                f"Cannot disturb the network of '{self._unit}': a delay of {delay_s:g} s and a "
                f"loss of {loss:g}",
                hint="a delay is from 0 to 60 seconds, a loss from 0 to 1 (0.1 is one of ten)",
            )
        with self._namespace() as namespace:
            namespace.disturb(delay_s=delay_s, loss=loss)

    def delay(self, seconds: float) -> None:
        """Delay each packet by so many seconds: see `disturb`."""
        self.disturb(delay_s=seconds)

    def loss(self, part: float) -> None:
        """Lose this part of the packets, from 0 to 1: see `disturb`."""
        self.disturb(loss=part)

    @contextmanager
    def _namespace(self) -> Iterator[Namespace]:
        pid = self._pid()
        if not pid:
            raise NetworkError(f"Cannot reach the network of '{self._unit}': it does not run")
        with Namespace.of(pid) as found:
            if found.is_ours():
                raise NetworkError(
                    f"Cannot disturb the network of '{self._unit}': it is the one that this "
                    "process is in",
                    hint='one of its own: network="private", or understudy spawn --network private',
                )
            yield found
