"""A manager that is none: it remembers what it was told, and says what it was given."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from understudy.manager import Jobs, Transient, UnitStatus
from understudy.model import ManagerKind


def status(unit: str, *, active_state: str = "active", **known: object) -> UnitStatus:
    """A unit's status, in as few words as the test needs."""
    fields = {"load_state": "loaded", "sub_state": "running", **known}
    return UnitStatus(unit=unit, active_state=active_state, **fields)  # type: ignore[arg-type]


class FakeManager:
    """A `Manager` without a systemd.

    Args:
        folder: Its ``%t``.
        units: What it has loaded.
    """

    note = ""

    def __init__(
        self,
        folder: Path,
        units: Sequence[UnitStatus] = (),
        *,
        kind: ManagerKind = ManagerKind.SYSTEM,
    ) -> None:
        self.kind = kind
        self.runtime_dir = folder
        self.unit_dir = folder / "systemd" / kind.value
        self.units = {one.unit: one for one in units}
        self.stopped: list[str] = []
        self.reset: list[str] = []
        self.fails_to_stop: Exception | None = None

    def start_transient(
        self, unit: Transient, auxiliary: Sequence[Transient], *, stdin: int, timeout_s: float
    ) -> None:
        raise NotImplementedError

    def create(self, units: Sequence[Transient]) -> Sequence[Jobs]:
        raise NotImplementedError

    def start(self, units: Sequence[str]) -> Jobs:
        raise NotImplementedError

    def restart(self, unit: str) -> Jobs:
        raise NotImplementedError

    def stop(self, units: Sequence[str], *, timeout_s: float, forget: Sequence[str] = ()) -> None:
        self.stopped += units
        if self.fails_to_stop is not None:
            raise self.fails_to_stop
        self.reset += forget

    def begin_stop(self, units: Sequence[str]) -> None:
        self.stopped += units

    def reset_failed(self, units: Sequence[str]) -> None:
        self.reset += units

    def kill(self, unit: str, signal: int, *, whole: bool = False) -> None:
        raise NotImplementedError

    def status(self, units: Sequence[str]) -> dict[str, UnitStatus]:
        return {unit: self.units[unit] for unit in units}

    def list(self, patterns: Sequence[str]) -> dict[str, UnitStatus]:
        return {
            name: one
            for name, one in self.units.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        }

    def properties(self, unit: str, names: Sequence[str]) -> dict[str, str]:
        raise NotImplementedError

    def cat(self, unit: str) -> str:
        raise NotImplementedError

    def files(self) -> builtins.list[str]:
        """What lies in its unit directory."""
        return sorted(str(path.relative_to(self.unit_dir)) for path in self.unit_dir.rglob("*"))
