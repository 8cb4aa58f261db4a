"""Autogroups: how the kernel shares processors among sessions where no controller does (sched(7)).

Each service is a session. So an idle policy makes it yield within itself alone, unless its
autogroup's own nice value says the same to the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

NICE: Final = 19
"""The nice value of an autogroup that yields to the others."""

PAUSE_S: Final = 0.02
"""The kernel takes one such value each tenth of a second, of all users but root."""

_SWITCH = Path("/proc/sys/kernel/sched_autogroup_enabled")


def are_on() -> bool:
    """Whether this kernel has autogroups, and they are on."""
    try:
        return _SWITCH.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


def nice(pid: int) -> int | None:
    """The nice value of a process's autogroup; None where it is in none that can be seen.

    Args:
        pid: The process.
    """
    try:
        return int(Path(f"/proc/{pid}/autogroup").read_text(encoding="ascii").split()[-1])
    except (OSError, IndexError):
        return None


def yield_to_others(
    pids: Iterable[int], *, deadline: float, canceled: Callable[[], bool] = lambda: False
) -> None:
    """Have autogroups yield to all others; what cannot be changed stays as it is.

    Args:
        pids: A process of each.
        deadline: When to give up, on the monotonic clock: without root they take a tenth of a
            second each.
        canceled: Asked again and again whether to give up.
    """
    for pid in pids:
        while nice(pid) not in (None, NICE):
            try:
                Path(f"/proc/{pid}/autogroup").write_text(f"{NICE}", encoding="ascii")
            except BlockingIOError:
                if canceled() or time.monotonic() >= deadline:
                    return
                time.sleep(PAUSE_S)
            except OSError:
                break  # it has ended, or is another user's
