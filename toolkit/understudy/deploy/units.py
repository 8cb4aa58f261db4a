"""Units of the system manager that are not understudy's: the one door to them, and it is narrow.

`understudy.manager.ours` refuses every unit that is not called ``understudy-…``. Here it is the
other way round: exactly the units of the services that root deploys or withdraws, and no other.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from understudy.deploy.records import UnitState
from understudy.errors import AccessDeniedError, DeployError
from understudy.manager import Manager, UnitStatus
from understudy.model import OURS

STOP_TRIES: Final = 5
# A static one is started by others, or by hand: there is nothing to enable.
_ENABLED = ("enabled", "enabled-runtime", "alias", "static")
_DEAD = ("inactive", "failed")
_UP = ("active", "reloading", "refreshing")


class HostUnits:
    """Changes these units of the system manager.

    Args:
        manager: The system manager; here it only looks.
        names: The units that may be changed.
    """

    def __init__(self, manager: Manager, names: Collection[str]) -> None:
        self._manager = manager
        self._names = frozenset(names)

    def state(self, unit: str) -> UnitState:
        """How a unit is now."""
        status = self._manager.status([unit])[unit]
        return UnitState(
            active=status.active_state not in _DEAD,
            enabled=self.enabled(unit),
            invocation=status.invocation_id,
            loaded=status.load_state != "not-found",
        )

    def runs(self, unit: str) -> bool:
        """Whether it is up, and not on its way up or down, or dying again and again."""
        return self._manager.status([unit])[unit].active_state in _UP

    def status(self, units: Sequence[str]) -> dict[str, UnitStatus]:
        """What the manager says of them now."""
        return self._manager.status(units)

    def enabled(self, unit: str) -> bool:
        """Whether it is started at boot, as the files say now."""
        return self._run("is-enabled", [unit]).stdout.strip() in _ENABLED

    def reload(self) -> None:
        """Have the manager read all unit files again.

        Raises:
            DeployError: It does not.
        """
        self._demand(self._run("daemon-reload", []), "reload", "systemd")

    def enable(self, units: Sequence[str], *, anew: bool = False) -> None:
        """Have them started at boot.

        Args:
            units: The units.
            anew: Take away what an earlier file of theirs said of it.

        Raises:
            DeployError: systemd refuses.
        """
        self._change("reenable" if anew else "enable", units)

    def disable(self, units: Sequence[str]) -> None:
        """Have them no longer started at boot.

        Raises:
            DeployError: systemd refuses.
        """
        self._change("disable", units)

    def start(self, units: Sequence[str], *, timeout_s: float) -> None:
        """Start them, in one go, and return when their jobs are done.

        Raises:
            DeployError: One did not start.
        """
        self.forget(units)
        self._change("start", units, timeout_s=timeout_s)

    def restart(self, units: Sequence[str], *, timeout_s: float) -> None:
        """Restart them, in one go, and return when their jobs are done.

        Raises:
            DeployError: One did not start.
        """
        self.forget(units)
        self._change("restart", units, timeout_s=timeout_s)

    def stop(self, units: Sequence[str], *, timeout_s: float) -> None:
        """Stop them, sockets first, until all are stopped.

        A connection that waits in one of several sockets brings the service back while the
        others are being stopped: then once more.

        Raises:
            DeployError: One could not be stopped.
        """
        units = sorted(units, key=lambda unit: not unit.endswith(".socket"))
        deadline = time.monotonic() + timeout_s
        left: list[str] = list(units)
        for _ in range(STOP_TRIES):
            self._change("stop", left, timeout_s=max(1.0, deadline - time.monotonic()))
            states = self._manager.status(left)
            left = [unit for unit in left if states[unit].active_state not in _DEAD]
            if not left:
                return
        raise DeployError(
            f"Cannot stop '{' '.join(left)}': it is started again each time",
            hint=f"by whom: systemctl status {left[0]}",
        )

    def forget(self, units: Iterable[str]) -> None:
        """Forget that they failed, and how often they were started (systemctl(1), reset-failed)."""
        for unit in units:
            self._run("reset-failed", [self._only(unit)])

    def _only(self, unit: str) -> str:
        if unit not in self._names or unit.startswith(OURS):
            raise AccessDeniedError(
                f"Cannot change '{unit}': it is no unit of what is deployed",
                hint=f"those are: {', '.join(sorted(self._names)) or 'none'}",
            )
        return unit

    def _change(self, verb: str, units: Sequence[str], *, timeout_s: float | None = None) -> None:
        for unit in units:
            self._only(unit)
        if not units:
            return
        try:
            done = self._run(verb, units, timeout_s)
        except subprocess.TimeoutExpired:
            raise DeployError(
                f"Cannot {verb} '{' '.join(units)}': not done after {timeout_s:g} s",
                hint=f"systemctl status {units[-1]}; more time: --timeout",
            ) from None
        self._demand(done, verb, " ".join(units))

    @staticmethod
    def _run(
        verb: str, units: Sequence[str], timeout_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemctl", "--system", "--no-pager", "--no-ask-password", verb, "--", *units],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            start_new_session=True,  # Ctrl-C is for us, who then take back what was done
            check=False,
        )

    @staticmethod
    def _demand(done: subprocess.CompletedProcess[str], verb: str, what: str) -> None:
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise DeployError(
                f"Cannot {verb} '{what}': {said[0] if said else f'exit code {done.returncode}'}",
                hint="\n        ".join(said[1:]) or None,
            )
