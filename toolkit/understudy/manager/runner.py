"""Instances as transient units: one ``systemd-run`` each, all at once, waited for by pidfd."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence

from understudy.errors import NoManagerError
from understudy.manager import Manager, bus_variables, ours

LOOK_EVERY_S = 0.02
"""How often the manager is asked whether a unit that was started has died since."""


class RunnerJobs:
    """`understudy.manager.Jobs` of units that are started by ``systemd-run``.

    Each waits for its unit's start job, so its end is the job's end. What it says of a failure is
    in `said`, by unit: for a transient unit it is all there will ever be.

    Args:
        manager: Where the units are.
        commands: A whole ``systemd-run`` command line for each unit.

    Raises:
        NoManagerError: There is no ``systemd-run``.
        AccessDeniedError: A unit is not one of ours.
    """

    def __init__(self, manager: Manager, commands: Mapping[str, Sequence[str]]) -> None:
        self.said: dict[str, str] = {}
        self._manager = manager
        self._up: list[str] = []
        self._next_look = 0.0
        self._poll = select.poll()
        self._children: dict[int, tuple[str, subprocess.Popen[str]]] = {}
        for unit in commands:
            ours(unit)
        environment = {**os.environ, **bus_variables(manager), "LC_ALL": "C.UTF-8"}
        for unit, command in commands.items():
            try:
                child = subprocess.Popen(
                    list(command),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            except FileNotFoundError as exc:
                self.close()
                raise NoManagerError(
                    f"Cannot run 'systemd-run': {exc.strerror}", hint="apt install systemd"
                ) from exc
            pidfd = os.pidfd_open(child.pid)
            self._poll.register(pidfd, select.POLLIN)
            self._children[pidfd] = (unit, child)

    def wait(self, timeout_s: float) -> list[tuple[str, str]]:
        """See `Jobs.wait`."""
        deadline = time.monotonic() + timeout_s
        while True:
            news = self._ended(min(deadline, self._next_look))
            if self._up and time.monotonic() >= self._next_look:
                news += self._died()
                self._next_look = time.monotonic() + LOOK_EVERY_S
            if news or time.monotonic() >= deadline:
                return news

    def close(self) -> None:
        """See `Jobs.close`."""
        for pidfd in list(self._children):
            _unit, child = self._children.pop(pidfd)
            os.close(pidfd)
            child.kill()
            child.communicate()

    def _ended(self, until: float) -> list[tuple[str, str]]:
        pause_s = max(0.0, until - time.monotonic())
        news = []
        for pidfd, _event in self._poll.poll(pause_s * 1000):
            unit, child = self._children.pop(pidfd)
            self._poll.unregister(pidfd)
            os.close(pidfd)
            _output, said = child.communicate()
            if child.returncode == 0:
                self._up.append(unit)
            else:
                self.said[unit] = said.strip()
            news.append((unit, "done" if child.returncode == 0 else "failed"))
        return news

    def _died(self) -> list[tuple[str, str]]:
        statuses = self._manager.status(self._up)
        dead = [
            unit
            for unit, status in statuses.items()
            if status.active_state not in ("active", "activating", "reloading", "deactivating")
        ]
        self._up = [unit for unit in self._up if unit not in dead]
        return [(unit, "died") for unit in dead]
