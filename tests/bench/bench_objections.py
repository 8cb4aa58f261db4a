"""What AD-001 held against instances of one's own, counted: conflicts, orphans, resources, parity.

``python tests/bench/bench_objections.py [PROCESSES [ROUNDS [COUNT]]]`` (16, 20 and 50 unless told),
in a bed, as root or a user. Each is counted beside the way that suites do it today:

- instances of 12 ports each that meet one of another's, by ``find_free_port()`` and by claims,
- what is left of ten servers whose owner gets SIGKILL, and when that is gone,
- how much memory an idle instance of the stand-in MediaMTX takes, and how long COUNT take to start,
- in how many settings of production's ``[Service]`` an instance is like production.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context

from understudy import unitfile
from understudy.derive import render_production
from understudy.manager import Manager, connect
from understudy.run import Run
from understudy.services import find

PORTS = 12
USED_LATER_S = 0.05
"""How long a server takes from its start until it binds, at the least."""

MEDIAMTX = {"program": f"{sys.executable} -m understudy.standins.mediamtx"}

OWNER = """
import sys
from understudy.run import Run
run = Run()
run.start()
run.spawn_many([run.request(exec=["/bin/sleep", "1000"])] * 10)
print(run.id, flush=True)
sys.stdin.read()
"""
POPEN = """
import subprocess, sys
many = [subprocess.Popen(["/bin/sleep", "1000"]) for _ in range(10)]
print(*(one.pid for one in many), flush=True)
sys.stdin.read()
"""


def main(processes: int = 16, rounds: int = 20, count: int = 50) -> None:
    """Count and print.

    Args:
        processes: How many look for ports at a time.
        rounds: How many instances each of them starts, one after the other.
        count: How many instances are there at a time.
    """
    for name, way in (("find_free_port()", _by_luck), ("claimed by understudy", _by_claims)):
        hit = sum(_together(processes, rounds, way))
        total = processes * rounds
        print(f"port conflicts, {name}: {hit} of {total} instances ({100 * hit / total:.1f} %)")
    _print_orphans()
    _print_resources(count)
    _print_parity()


def find_free_port() -> int:
    """As suites have it: the port is free, or was."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _by_luck(rounds: int) -> int:
    return sum(_meets_another([find_free_port() for _ in range(PORTS)]) for _ in range(rounds))


def _by_claims(rounds: int) -> int:
    hit = 0
    with Run() as run:
        for _ in range(rounds):
            claimed = run.claim_ports(*["tcp"] * PORTS)
            hit += _meets_another([*claimed])
            claimed.release()
    return hit


def _meets_another(numbers: list[int]) -> bool:
    """Bind them a little later, as a server does, and have them for a while."""
    _wait(USED_LATER_S)
    with ExitStack() as bound:
        try:
            for number in numbers:
                # As servers have it: a connection of whoever was there before is in nobody's way.
                bound.enter_context(socket.create_server(("127.0.0.1", number)))
        except OSError:
            return True
        _wait(USED_LATER_S)
    return False


def _together(processes: int, rounds: int, way: Callable[[int], int]) -> list[int]:
    with get_context("spawn").Pool(processes) as pool:
        return pool.map(way, [rounds] * processes, chunksize=1)


def _print_orphans() -> None:
    with _killed(POPEN) as (said, _began):
        left = [pid for pid in map(int, said.split()) if _lives(pid)]
        print(f"orphans of a killed owner, subprocess: {len(left)} of 10 processes live on")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    manager = connect()
    with _killed(OWNER) as (run, began):
        while manager.list([f"understudy-*{run}*"]):
            _wait(0.005)
        gone_s = time.monotonic() - began
    files = [*manager.unit_dir.glob(f"understudy-*{run}*")]
    print(
        f"orphans of a killed owner, understudy: {len(files)} of 10 instances leave anything, "
        f"all gone after {gone_s * 1000:.0f} ms"
    )


class _killed:
    """A process that has started its servers, and has been killed."""

    def __init__(self, code: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> tuple[str, float]:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        self._process.kill()
        return said, time.monotonic()

    def __exit__(self, *_exc: object) -> None:
        self._process.stdin = None
        self._process.wait()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _print_resources(count: int) -> None:
    with Run(timeout_s=120) as run:
        began = time.monotonic()
        many = run.spawn_many([run.request("mediamtx", values=MEDIAMTX)] * count)
        took_s = time.monotonic() - began
        kib = [_resident_kib(one.pid) for one in many]
    print(
        f"{count} MediaMTX instances (stand-ins): ready in {took_s:.1f} s, "
        f"{sum(kib) / len(kib) / 1024:.0f} MiB resident each"
    )


def _resident_kib(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:  # noqa: PTH123
        found = re.search(r"^Pss:\s+(\d+) kB", file.read(), re.MULTILINE)
    return int(found[1]) if found else 0


def _print_parity() -> None:
    """Ask systemd for each setting of production's unit, of production and of an instance."""
    manager = connect()
    service = find("mediamtx")
    text = render_production(service, MEDIAMTX)["mediamtx.service"]
    names = [
        line.name
        for line in unitfile.parse(text)
        if line.section == "Service" and line.name and line.name != "ExecStart"
    ]
    lead = "bench-objections-lead.service"
    path = manager.unit_dir / lead
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    try:
        with Run() as run:
            one = run.spawn("mediamtx", values=MEDIAMTX)
            theirs, ours = (_settings(manager, unit, names) for unit in (lead, one.unit))
    finally:
        path.unlink()
    same = [name for name in dict.fromkeys(names) if theirs[name] == ours[name]]
    other = [name for name in dict.fromkeys(names) if name not in same]
    print(
        f"parity: {len(same)} of {len(same) + len(other)} settings of mediamtx.service are the "
        f"same in an instance; not: {', '.join(other)}"
    )


def _settings(manager: Manager, unit: str, names: list[str]) -> dict[str, str]:
    known = {name: f"{name[:-3]}USec" if name.endswith("Sec") else name for name in names}
    found = manager.properties(unit, [*known.values()])
    return {name: found.get(prop, "") for name, prop in known.items()}


def _wait(seconds: float) -> None:
    select.select([], [], [], seconds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
