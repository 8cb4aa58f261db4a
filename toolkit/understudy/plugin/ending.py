"""The end of tests' instances, which goes on while the next test begins."""

from __future__ import annotations

from collections.abc import Sequence

from understudy import instance
from understudy.instance import Instance

ENDING_MAX = 8
"""How many may be on their way to their end at a time."""


class Ending:
    """The instances of one process that have been told to end.

    Until their end has been seen they keep their ports.
    """

    def __init__(self) -> None:
        self._instances: list[Instance] = []

    def begin(self, instances: Sequence[Instance]) -> bool:
        """Have instances end.

        Args:
            instances: Which; those that have been stopped are left alone.

        Returns:
            Whether so many are on their way that they are to be waited for.

        Raises:
            ManagerError: The manager refused.
        """
        instance.end_all(instances)
        self._instances += instances
        if len(self._instances) >= ENDING_MAX:
            self._instances = instance.collect(self._instances)
        return len(self._instances) >= ENDING_MAX

    def wait(self) -> bool:
        """Wait until all of them have ended.

        Returns:
            Whether there were any.

        Raises:
            ManagerError: One was not stopped in time; it ends with its run.
        """
        waited_for, self._instances = self._instances, []
        instance.stop_all(waited_for)
        return bool(waited_for)
