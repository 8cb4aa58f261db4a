"""A light look at production before the first instance and after the last: is it the same?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from understudy import services
from understudy.errors import UnderstudyError
from understudy.manager import Manager, connect
from understudy.model import ManagerKind

Seen = dict[str, list[str]]
"""Invocation id, main PID and number of restarts, by manager and unit: ``system mediamtx.service``.

Only what was active is among them."""


def look(manager: Manager, units: Path | None) -> Seen:
    """See what production is like: one question to each manager, nothing if there is none.

    Args:
        manager: Where the instances live.
        units: A folder of definitions to look in before all others.
    """
    try:
        wanted = services.production_units(units=units)
        managers = [manager]
        if os.geteuid() != 0 and manager.kind is ManagerKind.USER:
            managers.append(connect(ManagerKind.SYSTEM))
        return {
            f"{one.kind} {unit}": [
                status.invocation_id,
                str(status.main_pid),
                str(status.n_restarts),
            ]
            for one in managers
            for unit, status in one.list(wanted).items()
            if status.active_state == "active"
        }
    except UnderstudyError:
        return {}


def changes(before: Mapping[str, list[str]], manager: Manager, units: Path | None) -> list[str]:
    """What has become of production, for people; nothing where it is as it was.

    Args:
        before: What was seen.
        manager: Where the instances live.
        units: As for `look`.
    """
    if not before:
        return []
    after = look(manager, units)
    found = []
    for name, (invocation, pid, restarts) in before.items():
        unit = name.partition(" ")[2]
        now = after.get(name)
        if now is None:
            found.append(f"{unit} is no longer active")
        elif now[0] != invocation:
            found.append(f"{unit} was started anew (PID {pid} before, {now[1]} now)")
        elif now[2] != restarts:
            found.append(f"{unit} was restarted by its manager")
        elif now[1] != pid:
            found.append(f"{unit} has another main process (PID {pid} before, {now[1]} now)")
    return found
