"""What was done, or would be: what `deploy` and `withdraw` give back."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from understudy.deploy.plan import Action
from understudy.errors import DeployError


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What was done for one service, or would be.

    Attributes:
        service: Its name.
        unit: Production's unit.
        changed: Whether anything was done.
        files: What was done with each file, in order; those that are as they were, too.
        diffs: By path, what was there against what is now.
        updates: Those of files that were there and have changed.
        texts: The content of each file that is written, by path; "" for a secret.
        exposure: How exposed each of its services is (systemd-analyze(1), security).
        plan: All that is done, in words and in order.
        restart_needed: Whether what runs is what was there before.
        notes: What people should know.
    """

    service: str
    unit: str
    changed: bool = False
    files: list[tuple[str, Action]] = field(default_factory=list)
    diffs: dict[str, str] = field(default_factory=dict)
    updates: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    exposure: dict[str, float] = field(default_factory=dict)
    plan: list[str] = field(default_factory=list)
    restart_needed: bool = False
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """The documented shape (docs/json.md); keys are only ever added."""
        return {
            "service": self.service,
            "unit": self.unit,
            "changed": self.changed,
            "files": [{"path": path, "action": action.value} for path, action in self.files],
            "diffs": self.diffs,
            "exposure": self.exposure,
            "steps": self.plan,
            "restart_needed": self.restart_needed,
            "notes": self.notes,
        }


def check_root(verb: str, names: Iterable[str]) -> None:
    """Demand that root asks.

    Args:
        verb: ``deploy`` or ``withdraw``.
        names: What for.

    Raises:
        DeployError: Somebody else does.
    """
    if os.geteuid():
        words = " ".join(names)
        raise DeployError(
            f"Cannot {verb} '{words}': only root may change what the host runs",
            hint=f"sudo understudy {verb} {words}",
        )
