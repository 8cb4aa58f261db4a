"""What one look at every bound port costs: our snapshot, ``ss`` and /proc/net, side by side.

Run it as ``python tests/bench/bench_sock_diag.py [SOCKETS]``. It binds that many sockets on
loopback (100 unless told), a third each of TCP, TCP on IPv6 and UDP, and prints the median of
many looks in milliseconds. The looks take turns, so that all meet the same noise.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from understudy.model import Port, Transport
from understudy.ports import Allocator, check, configured_range, snapshot

ROUNDS = 50


def main(count: int = 100) -> None:
    """Measure and print.

    Args:
        count: How many sockets to bind.
    """
    with ExitStack() as undo:
        for index in range(count):
            family, kind, host = (
                (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
                (socket.AF_INET6, socket.SOCK_STREAM, "::1"),
                (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
            )[index % 3]
            one = undo.enter_context(socket.socket(family, kind))
            one.bind((host, 0))
            if kind == socket.SOCK_STREAM:
                one.listen()
        figures = measure(looks())
    base = figures["snapshot"]
    print(f"{'ms':>8}  {'ratio':>6}  look at {count} sockets (median of {ROUNDS})")
    for name, median in figures.items():
        print(f"{median:8.3f}  {median / base:6.1f}  {name}")


def looks() -> dict[str, Callable[[], object]]:
    """What is compared, by name."""
    ports = [Port(name=str(number), transport=Transport.TCP) for number in range(12)]
    numbers = {port.name: 20000 + index for index, port in enumerate(ports)}
    allocator = Allocator(configured_range())
    found: dict[str, Callable[[], object]] = {
        "snapshot": snapshot,
        "snapshot with idle TCP": lambda: snapshot(idle=True),
        "snapshot and check of 12 ports": lambda: check(ports, numbers, snapshot(), ids={0}),
        "claim of 12 ports, snapshot included": lambda: allocator.claim(ports)[0].close(),
        "/proc/net/{tcp,tcp6,udp,udp6}": proc_net,
    }
    if shutil.which("ss"):
        found["ss -Htuln"] = lambda: subprocess.run(["ss", "-Htuln"], stdout=subprocess.DEVNULL)
    return found


def proc_net() -> list[tuple[str, str]]:
    """Address and inode of each socket, from text; it tells no cgroup."""
    return [
        (fields[1], fields[9])
        for name in ("tcp", "tcp6", "udp", "udp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
        if (fields := line.split())[3] in ("0A", "07")
    ]


def measure(functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median of each in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
