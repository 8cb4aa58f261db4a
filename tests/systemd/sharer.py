"""A process that shares an instance with others. Run by test_shared.py.

It prints a line of JSON when it has the instance, or has failed to get it, and ends with a line on
its standard input. Its first words say what it does otherwise.
"""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path
from typing import Any

from understudy.errors import UnderstudyError
from understudy.manager import connect
from understudy.run import Run


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def main(services: str, prefer: str, what: str, *more: str) -> None:
    manager = connect(prefer="commands" if prefer == "commands" else None)
    if what == "steps":
        count_steps(type(manager), int(more[0]))
    service = what if what in ("dies-fast", "never-ready") else "redis"
    with Run(manager=manager, units=Path(services)) as run:
        if what == "wait":
            say(waits=True)
            delay_ms = int(sys.stdin.readline())
            select.select([], [], [], delay_ms / 1000)
        keep_s = float(more[0]) if what == "group" and more else 0.0
        try:
            instance = run.shared(service, keep_s=keep_s)
        except UnderstudyError as exc:
            say(error=type(exc).__name__, message=str(exc))
        else:
            say(
                unit=instance.unit,
                ports=instance.ports,
                pid=instance.pid,
                user=run.id,
                steps=FATE.steps if FATE else 0,
            )
        sys.stdin.readline()


FATE: Any = None


def count_steps(manager: type[Any], last: int) -> None:
    """Make each call of the manager, and each file, a step; the last one kills this process."""
    global FATE
    sys.path.insert(0, os.fspath(Path(__file__).parent))
    import mortal  # type: ignore[import-not-found]

    FATE = mortal.Fate(last)
    for name in (*mortal.CALLS, "create"):
        FATE.watch(manager, name)
    FATE.watch(Path, "open", lambda _path, mode="r", *_: mode[0] in "wxa")
    FATE.watch(Path, "rename")
    import socket

    FATE.watch(socket, "send_fds")


if __name__ == "__main__":
    main(*sys.argv[1:])
