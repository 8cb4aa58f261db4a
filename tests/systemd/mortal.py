"""A process that owns a run and kills itself at its n-th step. Run by test_survival.py.

A step is the moment before, and the moment after, whatever leaves a trace outside the process:
a call of the manager, a file written or removed, a descriptor handed over, a process started, a
fork. With 0 it lives through them all and prints how many there are; with -1 it begins anew until
somebody else kills it.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from understudy.manager import Manager, connect
from understudy.run import Run

CALLS = ("start_transient", "start", "restart", "stop", "reset_failed", "kill", "status", "list")


class Fate:
    """Counts steps, and knows the last one."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, holder: Any, name: str, counts: Callable[..., bool] = lambda *_: True) -> None:
        """Make each call of a function two steps."""
        original = getattr(holder, name)

        @functools.wraps(original)
        def call(*arguments: Any, **named: Any) -> Any:
            if not counts(*arguments):
                return original(*arguments, **named)
            self.step()
            try:
                return original(*arguments, **named)
            finally:
                self.step()

        setattr(holder, name, call)


def fork() -> None:
    """A child that lives on, with a copy of every descriptor."""
    if os.fork() == 0:
        signal.alarm(300)  # whatever becomes of the test
        while True:
            signal.pause()


def main(last: int, prefer: str, services: str) -> None:
    """Live, and count the steps."""
    manager = connect(prefer="commands" if prefer == "commands" else None)
    fate = Fate(last)
    for name in CALLS:
        fate.watch(type(manager), name)
    fate.watch(Path, "open", lambda _path, mode="r", *_: mode[0] in "wxa")
    fate.watch(os, "open", lambda _path, flags, *_: bool(flags & os.O_CREAT))
    for holder, name in (
        (Path, "mkdir"),
        (Path, "unlink"),
        (shutil, "rmtree"),
        (socket, "send_fds"),
        (socket.socket, "bind"),
        (subprocess.Popen, "__init__"),
        (os, "fork"),
    ):
        fate.watch(holder, name)
    live(manager, Path(services))
    while last < 0:
        live(manager, Path(services))
    print(fate.steps)


def live(manager: Manager, services: Path) -> None:
    """What an owner does in its life."""
    run = Run(manager=manager, units=services)
    run.start()
    fork()
    first = run.spawn("redis")
    run.spawn(exec=["/bin/sleep", "1000"], env={"TOKEN": "hush"})
    fork()
    first.stop()
    run.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
