"""What `Manager.start` costs beside a bare loop of StartUnit calls and beside ``systemctl start``.

Run it where a systemd manager is: ``python tests/bench/bench_manager.py [UNITS] [ROUNDS]``.
Each round prepares fresh unit files for every way, and the ways take turns, so that what else the
machine does hits all alike. Times are from the first call to the last unit's finished job.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import pystemd.dbuslib

from understudy.manager import Manager, connect
from understudy.model import ManagerKind

SERVICE = "[Service]\nType=exec\nExecStart=/bin/sleep 1000\nTimeoutStopSec=5\n"
SYSTEMD = b"org.freedesktop.systemd1"
OBJECT = b"/org/freedesktop/systemd1"
MANAGER = b"org.freedesktop.systemd1.Manager"


def by_manager(manager: Manager, units: Sequence[str]) -> None:
    waiting = set(units)
    with contextlib.closing(manager.start(units)) as jobs:
        while waiting:
            waiting -= {unit for unit, _word in jobs.wait(60)}


def by_bare_loop(manager: Manager, units: Sequence[str]) -> None:
    bus = pystemd.dbuslib.DBusAddress(
        f"unix:path={manager.runtime_dir}/systemd/private".encode(), 1
    )
    bus.open()
    string = ord("s")
    waiting = {
        bus.call_method(
            SYSTEMD, OBJECT, MANAGER, b"StartUnit", [(string, unit.encode()), (string, b"fail")]
        ).body
        for unit in units
    }
    poll = select.poll()
    poll.register(bus.get_fd(), select.POLLIN)
    while waiting:
        message = bus.process()
        if message.is_empty():
            poll.poll()
        elif message.is_signal(MANAGER, b"JobRemoved"):
            message.process_reply(False)
            waiting.discard(message.body[1])
    bus.close()


def by_systemctl(manager: Manager, units: Sequence[str]) -> None:
    environment = os.environ | {"XDG_RUNTIME_DIR": str(manager.runtime_dir)}
    for unit in units:
        words = ["systemctl", f"--{manager.kind}", "start", "--", unit]
        subprocess.run(words, env=environment, check=True)


def timed(way: Callable[[Manager, Sequence[str]], None], manager: Manager, count: int) -> float:
    """Seconds in which fresh units are started this way; they are removed afterwards."""
    run = f"b{secrets.token_hex(3)}"
    units = [f"understudy-bench@{run}-{number}.service" for number in range(count)]
    paths = [manager.unit_dir / unit for unit in units]
    manager.unit_dir.mkdir(parents=True, exist_ok=True)
    for path in paths:
        path.write_text(SERVICE)
    try:
        begun = time.perf_counter()
        way(manager, units)
        return time.perf_counter() - begun
    finally:
        manager.stop(units, timeout_s=60)
        for path in paths:
            path.unlink()


def main(count: int = 200, rounds: int = 5) -> None:
    dbus, commands = connect(prefer="dbus"), connect(prefer="commands")
    ways: dict[str, tuple[Callable[[Manager, Sequence[str]], None], Manager]] = {
        "bare StartUnit loop": (by_bare_loop, dbus),
        "Manager.start, dbus": (by_manager, dbus),
        "Manager.start, commands": (by_manager, commands),
        "systemctl start, each": (by_systemctl, commands),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (way, manager) in ways.items():
            seconds[name].append(timed(way, manager, count))
    bare = statistics.median(seconds["bare StartUnit loop"])
    kind = "system" if dbus.kind is ManagerKind.SYSTEM else "user"
    print(f"{count} units on the {kind} manager, median of {rounds} rounds")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:26} {median * 1000:8.1f} ms  {median / bare:5.2f} x")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
