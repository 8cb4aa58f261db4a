"""How production answers beside busy instances: none, in the background, and plain ones.

``python tests/bench/bench_background.py [COUNT [ROUNDS [REQUESTS]]]`` (100, 5 and 300 unless told),
in a bed, as root or a user. Production is the stand-in for MediaMTX, a unit of the same manager
outside of any run. All instances are there from the start, and stopped; the sides take turns: one
side goes on, a client asks production's API, the side is stopped again. Milliseconds from the
request to the whole answer.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from understudy import services
from understudy.manager import connect
from understudy.model import ManagerKind
from understudy.run import Run

COUNT = 100
ROUNDS = 5
REQUESTS = 300
LIMIT_S = 300.0
UNIT = "tests-lead-mediamtx.service"
PORT = services.find("mediamtx").ports["api"].number or 0
PATH = "/v3/paths/list"

BUSY = ["/usr/bin/perl", "-e", "kill STOP => $$; 1 while 1"]


def start_production(config: Path) -> None:
    """The stand-in, as any other service of this manager."""
    config.write_text("api: yes\npaths:\n  all_others:\n")
    whose = "--user" if os.geteuid() else "--system"
    subprocess.run(
        ["systemd-run", whose, "--quiet", "--collect", f"--unit={UNIT}", "--property=Type=exec",
         sys.executable, "-m", "understudy.standins.mediamtx", str(config)],
        check=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while True:
        try:
            ask()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def ask() -> float:
    """Milliseconds until production has answered."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=LIMIT_S)
    try:
        connection.request("GET", PATH)
        if connection.getresponse().read()[:1] != b"{":
            sys.exit("production did not answer")
    finally:
        connection.close()
    return (time.perf_counter() - began) * 1000


def ask_often(requests: int) -> list[float]:
    """Requests with pauses between, as clients make them."""
    took = []
    for _ in range(requests):
        time.sleep(random.uniform(0.001, 0.005))
        took.append(ask())
    return took


def measure(count: int, rounds: int, requests: int) -> None:
    """The three sides in turns."""
    with Run(timeout_s=LIMIT_S) as run:
        sides: dict[str, Sequence[int]] = {"none": []}
        for name, background in (("background", True), ("plain", False)):
            one = run.request(exec=BUSY, background=background)
            sides[name] = [instance.pid for instance in run.spawn_many([one] * count)]
        took: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, pids in sides.items():
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
                took[name] += ask_often(requests)
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
    print(f"{'':12}{'median':>10}{'99th':>12}{'ratio':>8}{'ratio':>13}")
    usual: tuple[float, float] | None = None
    for name, found in took.items():
        middle, late = statistics.median(found), statistics.quantiles(found, n=100)[98]
        usual = usual or (middle, late)
        ratios = middle / usual[0], late / usual[1]
        print(f"{name:12}{middle:7.2f} ms{late:9.2f} ms{ratios[0]:8.2f}{ratios[1]:13.2f}")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    autogroup = Path("/proc/sys/kernel/sched_autogroup_enabled")
    grouped = autogroup.exists() and autogroup.read_text().strip() == "1"
    kind = connect().kind
    print(f"{os.cpu_count()} processors, {kind} manager, autogroups {'on' if grouped else 'off'}")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        try:
            start_production(Path(folder, "mediamtx.yml"))
            measure(*(*given, *(COUNT, ROUNDS, REQUESTS)[len(given) :]))
        finally:
            whose = "--system" if kind is ManagerKind.SYSTEM else "--user"
            subprocess.run(["systemctl", whose, "stop", UNIT], check=True)
